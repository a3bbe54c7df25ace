// SPDX-License-Identifier: Apache-2.0
/* Requests to a VMM; see vmmctl.h. */
#include "agent/vmmctl.h"

#include <errno.h>

#include "lib/clock.h"
#include "lib/util.h"
#include "proto/frame.h"

int gw_vmmctl_recv(int sock, uint16_t *type, struct gw_buf *body, int *fd, uint64_t deadline_ns)
{
	uint8_t raw[GW_FRAME_HEADER];
	struct gw_frame_header h;
	int fds[GW_MAX_FDS];
	unsigned nfds = 0;
	int r = gw_recv_fds(sock, raw, sizeof(raw), fds, &nfds, deadline_ns);

	if (r < 0)
		return r;
	r = gw_frame_parse_header(raw, &h);
	if (r == 0 && h.len > GW_VMM_FRAME_MAX)
		r = -EPROTO;
	body->len = 0;
	if (r == 0 && !gw_buf_reserve(body, (size_t)h.len + 1))
		r = -ENOMEM;
	if (r == 0)
		r = gw_read_full(sock, body->data, h.len, deadline_ns);
	for (unsigned i = r == 0 && fd ? 1 : 0; i < nfds; i++)
		close(fds[i]);
	if (r < 0)
		return r;
	if (fd)
		*fd = nfds > 0 ? fds[0] : -1;
	body->len = h.len;
	*type = h.type;
	return 0;
}

static int take_reply(const struct gw_buf *body, Godwit__VmmReply **ret, struct gw_error *err)
{
	Godwit__VmmReply *m = godwit__vmm_reply__unpack(NULL, body->len, body->data);
	int r;

	if (!m)
		return gw_error_set(err, EPROTO, "the VMM's reply is malformed");
	if (m->error) {
		r = gw_error_set(err, m->error < 0 || m->error > 4095 ? EIO : m->error, "%.400s",
				 *m->message ? m->message : "the VMM refuses");
		godwit__vmm_reply__free_unpacked(m, NULL);
		return r;
	}
	*ret = m;
	return 0;
}

int gw_vmmctl_ask(const char *path, const Godwit__VmmRequest *req, const int *fds, unsigned nfds, Godwit__VmmReply **reply,
		  int *fd, struct gw_error *err)
{
	uint64_t deadline = gw_now_ns() + GW_VMM_TIMEOUT;
	gw_autobuf body = GW_BUF_INIT;
	gw_autofd sock = -1;
	gw_autofd got = -1;
	Godwit__VmmReply *m = NULL;
	uint16_t type = 0;
	int r = gw_unix_connect(path, &sock, err);

	if (r < 0)
		return r;
	r = gw_frame_send(sock, GW_FRAME_VMM_REQUEST, &req->base, fds, nfds, deadline);
	while (r == 0 && type != GW_FRAME_VMM_REPLY) {
		gw_closep(&got);
		r = gw_vmmctl_recv(sock, &type, &body, &got, deadline);
	}
	if (r < 0)
		return gw_error_errno(err, r, "the VMM does not answer");
	r = take_reply(&body, &m, err);
	if (r < 0)
		return r;
	if (fd)
		*fd = gw_steal_fd(&got);
	if (reply)
		*reply = m;
	else
		godwit__vmm_reply__free_unpacked(m, NULL);
	return 0;
}

int gw_vmmctl_simple(const char *path, Godwit__VmmRequest__OpCase op, Godwit__VmmReply **reply, struct gw_error *err)
{
	Godwit__VmmRequest req = GODWIT__VMM_REQUEST__INIT;
	Godwit__Empty empty = GODWIT__EMPTY__INIT;

	req.op_case = op;
	/* All members of the union are pointers to messages. */
	req.status = &empty;
	return gw_vmmctl_ask(path, &req, NULL, 0, reply, NULL, err);
}
