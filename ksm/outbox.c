// SPDX-License-Identifier: Apache-2.0
/* Outgoing packets; see outbox.h. */
#include "ksm/outbox.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "lib/util.h"

struct gw_outbox_packet {
	struct gw_outbox_packet *next;
	struct gw_chunk *chunk; /* a reference: its number may be gone by the time that this is sent, its descriptor must not be */
	uint32_t len;
	uint8_t data[];
};

void gw_outbox_init(struct gw_outbox *o)
{
	memset(o, 0, sizeof(*o));
	o->last = &o->first;
}

static void drop_first(struct gw_outbox *o)
{
	struct gw_outbox_packet *p = o->first;

	o->first = p->next;
	if (!o->first)
		o->last = &o->first;
	o->bytes -= sizeof(*p) + p->len;
	if (((struct gw_share_head *)p->data)->type == GW_SHARE_DONE)
		o->dones--;
	gw_chunk_unref(p->chunk);
	free(p);
}

void gw_outbox_release(struct gw_outbox *o)
{
	while (o->first)
		drop_first(o);
}

void gw_outbox_put(struct gw_outbox *o, enum gw_share_type type, uint32_t cookie, const void *entries, unsigned count, size_t size,
		   struct gw_chunk *chunk)
{
	struct gw_share_head head = { .type = (uint16_t)type, .count = (uint16_t)count, .cookie = cookie };
	size_t len = sizeof(head) + count * size;
	struct gw_outbox_packet *p = NULL;

	if (!o->overflow && o->bytes + sizeof(*p) + len <= GW_OUTBOX_MAX)
		p = malloc(sizeof(*p) + len);
	if (!p) {
		o->overflow = true;
		return;
	}
	p->next = NULL;
	p->chunk = chunk ? gw_chunk_ref(chunk) : NULL;
	p->len = (uint32_t)len;
	memcpy(p->data, &head, sizeof(head));
	if (count > 0 && size > 0)
		memcpy(p->data + sizeof(head), entries, count * size);
	*o->last = p;
	o->last = &p->next;
	o->bytes += sizeof(*p) + len;
	o->dones += type == GW_SHARE_DONE;
}

static int send_one(int sock, const struct gw_outbox_packet *p)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = { .iov_base = (void *)p->data, .iov_len = p->len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (p->chunk) {
		struct cmsghdr *c;

		memset(&control, 0, sizeof(control));
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &p->chunk->fd, sizeof(int));
	}
	return sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

int gw_outbox_flush(struct gw_outbox *o, int sock)
{
	while (o->first) {
		int r = send_one(sock, o->first);

		if (r == -EINTR)
			continue;
		/* Too many descriptors on their way: waiting for this socket to become writable would be a busy loop. */
		if (r == -ETOOMANYREFS || r == -ENOBUFS || r == -ENOMEM)
			return -EBUSY;
		if (r < 0)
			return r;
		drop_first(o);
	}
	return 0;
}
