// SPDX-License-Identifier: Apache-2.0
/* Page-store daemons for tests; see agent-ksmd.h. */
#include "agent-ksmd.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "ksm/server.h"
#include "lib/clock.h"
#include "lib/error.h"
#include "lib/io.h"
#include "lib/parse.h"
#include "lib/util.h"
#include "proto/frame.h"
#include "proto/share.pb-c.h"

#define MAX_CLIENTS 16
#define PAGES 1000

struct client {
	char vm[64], domain[64];
	int fd;
};

static char *path_of(const char *file)
{
	char *path;

	return asprintf(&path, "%s/%s", getenv("GW_TEST_DIR") ?: "/tmp", file) < 0 ? NULL : path;
}

static bool told_to(const char *file)
{
	gw_autofree char *path = path_of(file);

	return access(path, F_OK) == 0;
}

static int attach(struct client *clients, unsigned *n, const Godwit__ShareAttach *a, int fd, struct gw_error *err)
{
	gw_autofree char *path = path_of("attached");
	gw_autofile *file = fopen(path, "ae");
	char key[65] = "";

	if (told_to("ksmd-refuses") || *n == MAX_CLIENTS || fd < 0 || a->key.len != 32)
		return gw_error_set(err, EPERM, "not this one");
	gw_format_hex(a->key.data, 32, key);
	fprintf(file, "%d %s %s %s\n", (int)getpid(), a->vm, a->domain, key);
	for (unsigned i = 0; i < *n; i++) {
		if (!strcmp(clients[i].vm, a->vm)) {
			close(clients[i].fd);
			clients[i] = clients[--*n];
		}
	}
	snprintf(clients[*n].vm, sizeof(clients[*n].vm), "%s", a->vm);
	snprintf(clients[*n].domain, sizeof(clients[*n].domain), "%s", a->domain);
	clients[(*n)++].fd = fd;
	return 0;
}

static void stats(struct client *clients, unsigned n, int control)
{
	Godwit__ShareReply reply = GODWIT__SHARE_REPLY__INIT;
	Godwit__ShareClientStats c[MAX_CLIENTS], *cp[MAX_CLIENTS];
	Godwit__ShareDomainStats d[MAX_CLIENTS], *dp[MAX_CLIENTS];

	reply.cpu_us = 1500000;
	reply.clients = cp;
	reply.domains = dp;
	for (unsigned i = 0; i < n; i++) {
		size_t at = 0;

		while (at < reply.n_domains && strcmp(d[at].domain, clients[i].domain) != 0)
			at++;
		if (at == reply.n_domains) {
			godwit__share_domain_stats__init(&d[at]);
			d[at].domain = clients[i].domain;
			d[at].stored_pages = PAGES;
			d[at].metadata_bytes = 5000;
			dp[reply.n_domains++] = &d[at];
		}
		godwit__share_client_stats__init(&c[i]);
		c[i].vm = clients[i].vm;
		c[i].domain = clients[i].domain;
		c[i].live_pages = PAGES;
		c[i].stored_pages = d[at].clients ? 0 : PAGES;
		d[at].clients++;
		d[at].live_pages += PAGES;
		cp[reply.n_clients++] = &c[i];
	}
	gw_frame_send(control, 33, &reply.base, NULL, 0, GW_NO_DEADLINE);
}

static int serve_really(void)
{
	struct gw_share_server *s = NULL;
	sd_event *loop = NULL;
	int r = sd_event_new(&loop);

	r = r < 0 ? r : gw_share_server_new(loop, &s, NULL);
	r = r < 0 ? r : gw_share_server_control(s, 3, true, NULL);
	r = r < 0 ? r : sd_event_loop(loop);
	gw_share_server_free(s);
	sd_event_unref(loop);
	return r < 0;
}

int agent_ksmd_main(int argc, char **argv)
{
	struct client clients[MAX_CLIENTS];
	unsigned n = 0, nfds = 0;
	int fds[GW_MAX_FDS];
	ProtobufCMessage *m;

	if (argc != 3 || strcmp(argv[1], "--control-fd") != 0 || strcmp(argv[2], "3") != 0)
		return 2;
	if (getenv("GW_TEST_SHARING"))
		return serve_really();
	while (gw_frame_recv(3, 32, &godwit__share_request__descriptor, &m, fds, &nfds, GW_NO_DEADLINE) == 0) {
		Godwit__ShareRequest *req = (Godwit__ShareRequest *)m;
		Godwit__ShareReply reply = GODWIT__SHARE_REPLY__INIT;
		struct gw_error err = GW_ERROR_INIT;

		while (told_to("ksmd-hangs"))
			usleep(10000);
		if (req->op_case == GODWIT__SHARE_REQUEST__OP_STATS) {
			stats(clients, n, 3);
		} else {
			reply.error = -attach(clients, &n, req->attach, nfds ? fds[0] : -1, &err);
			reply.message = err.msg;
			gw_frame_send(3, 33, &reply.base, NULL, 0, GW_NO_DEADLINE);
		}
		godwit__share_request__free_unpacked(req, NULL);
	}
	return 0;
}
