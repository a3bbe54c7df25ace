// SPDX-License-Identifier: Apache-2.0
/* The daemon as a process; see ksmd-process.h. */
#include "ksmd-process.h"

#include <dirent.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "cmocka-all.h"
#include "ksm/server.h"
#include "lib/clock.h"
#include "lib/log.h"
#include "lib/util.h"
#include "proto/frame.h"
#include "proto/share.pb-c.h"

#define REQUEST 32
#define REPLY 33

struct ksmd_process ksmd = { -1, -1 };

static uint64_t soon(void)
{
	return gw_now_ns() + TEST_PATIENCE;
}

static void run_daemon(int fd, const char *path)
{
	struct gw_share_server *s = NULL;
	sd_event *loop = NULL;
	struct gw_error err = GW_ERROR_INIT;
	int r;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	gw_log_init("ksmd", NULL, GW_LOG_WARN);
	r = sd_event_new(&loop);
	r = r < 0 ? r : gw_share_server_new(loop, &s, &err);
	if (r >= 0)
		r = path ? gw_share_server_listen(s, path, &err) : gw_share_server_control(s, fd, true, &err);
	if (r >= 0)
		r = sd_event_loop(loop);
	gw_share_server_free(s);
	sd_event_unref(loop);
	/* exit() would run the handlers of the test's own libraries as well, and a leak check must be had. */
	exit(r < 0 ? 1 : 0);
}

void ksmd_start(const char *path)
{
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	ksmd.pid = fork();
	assert_true(ksmd.pid >= 0);
	if (ksmd.pid == 0) {
		close(pair[0]);
		run_daemon(pair[1], path);
	}
	close(pair[1]);
	ksmd.control = pair[0];
}

void ksmd_stop(void)
{
	int status = -1;

	gw_closep(&ksmd.control);
	assert_int_equal(waitpid(ksmd.pid, &status, 0), ksmd.pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	ksmd.pid = -1;
}

void ksmd_kill(void)
{
	if (ksmd.pid < 0)
		return;
	kill(ksmd.pid, SIGKILL);
	assert_int_equal(waitpid(ksmd.pid, NULL, 0), ksmd.pid);
	ksmd.pid = -1;
	gw_closep(&ksmd.control);
}

Godwit__ShareReply *ksmd_ask(const Godwit__ShareRequest *req, const int *fds, unsigned nfds)
{
	ProtobufCMessage *reply = NULL;

	assert_int_equal(gw_frame_send(ksmd.control, REQUEST, &req->base, fds, nfds, soon()), 0);
	assert_int_equal(gw_frame_recv(ksmd.control, REPLY, &godwit__share_reply__descriptor, &reply, NULL, NULL, soon()), 0);
	return (Godwit__ShareReply *)reply;
}

Godwit__ShareReply *ksmd_figures(void)
{
	Godwit__ShareRequest req = GODWIT__SHARE_REQUEST__INIT;
	Godwit__ShareStatsRequest st = GODWIT__SHARE_STATS_REQUEST__INIT;

	req.op_case = GODWIT__SHARE_REQUEST__OP_STATS;
	req.stats = &st;
	return ksmd_ask(&req, NULL, 0);
}

unsigned ksmd_fds(const char *name)
{
	char path[64], to[64];
	struct dirent *e;
	unsigned n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", ksmd.pid);
	dir = opendir(path);
	while ((e = readdir(dir))) {
		ssize_t len = readlinkat(dirfd(dir), e->d_name, to, sizeof(to) - 1);

		to[len > 0 ? len : 0] = '\0';
		n += strstr(to, name) != NULL;
	}
	closedir(dir);
	return n;
}

int ksmd_attach_with(const char *vm, const char *domain, const char *key, size_t key_len, const int *fds, unsigned nfds)
{
	Godwit__ShareRequest req = GODWIT__SHARE_REQUEST__INIT;
	Godwit__ShareAttach a = GODWIT__SHARE_ATTACH__INIT;
	Godwit__ShareReply *reply;
	int r;

	a.vm = (char *)vm;
	a.domain = (char *)domain;
	a.key.data = (uint8_t *)key;
	a.key.len = key_len;
	a.pages = 1 << 20;
	req.op_case = GODWIT__SHARE_REQUEST__OP_ATTACH;
	req.attach = &a;
	reply = ksmd_ask(&req, fds, nfds);
	r = -reply->error;
	assert_true((r == 0) == (reply->message[0] == '\0'));
	godwit__share_reply__free_unpacked(reply, NULL);
	return r;
}

int ksmd_attach(const char *vm, const char *domain)
{
	char key[33];
	int pair[2];

	snprintf(key, sizeof(key), "key of %-25.25s", domain);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(ksmd_attach_with(vm, domain, key, 32, &pair[1], 1), 0);
	close(pair[1]);
	return pair[0];
}
