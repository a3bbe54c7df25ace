// SPDX-License-Identifier: Apache-2.0
/* The client's end of the share protocol; see link.h. */
#include "ksm/link.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "lib/util.h"

#define SEND_TIMEOUT_MS 10000

struct gw_link {
	int fd;
	_Alignas(8) uint8_t in[GW_SHARE_MAX_PACKET]; /* entries are read where they lie */
};

/* What the daemon may send: the size of an entry and how many. */
static const struct {
	uint16_t size, min, max;
} shapes[] = {
	[GW_SHARE_WELCOME] = { sizeof(struct gw_share_welcome), 1, 1 },
	[GW_SHARE_DONE] = { 0, 0, 0 },
	[GW_SHARE_FETCH] = { sizeof(struct gw_share_wanted), 1, GW_SHARE_MAX_FETCH },
	[GW_SHARE_CHUNK] = { sizeof(struct gw_share_chunk), 1, 1 },
	[GW_SHARE_MERGE] = { sizeof(struct gw_share_merge), 1, GW_SHARE_MAX_RUNS },
	[GW_SHARE_REMAP] = { sizeof(struct gw_share_remap), 1, GW_SHARE_MAX_RUNS },
	[GW_SHARE_SYNCED] = { 0, 0, 0 },
	[GW_SHARE_ADOPTED] = { sizeof(struct gw_share_adopted), 1, 1 },
	[GW_SHARE_FOUND] = { sizeof(struct gw_share_found), 0, GW_SHARE_MAX_FIND },
};

static bool for_clients(unsigned type)
{
	return type < ARRAY_SIZE(shapes) && (shapes[type].max > 0 || type == GW_SHARE_DONE || type == GW_SHARE_SYNCED);
}

int gw_link_new(int fd, struct gw_link **ret)
{
	struct gw_link *l = malloc(sizeof(*l));

	if (!l) {
		close(fd);
		return -ENOMEM;
	}
	l->fd = fd;
	*ret = l;
	return 0;
}

void gw_link_free(struct gw_link *l)
{
	if (!l)
		return;
	close(l->fd);
	free(l);
}

int gw_link_fd(const struct gw_link *l)
{
	return l->fd;
}

static int send_packet(struct gw_link *l, struct iovec *iov, size_t n, int fd, bool wait)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = n };

	if (fd >= 0) {
		struct cmsghdr *c;

		memset(&control, 0, sizeof(control));
		msg.msg_control = control.bytes;
		msg.msg_controllen = sizeof(control.bytes);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(int));
	}
	for (;;) {
		struct pollfd p = { .fd = l->fd, .events = POLLOUT };

		if (sendmsg(l->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
			return 0;
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return errno == ECONNRESET || errno == EPIPE ? -EPIPE : -errno;
		if (!wait)
			return -EAGAIN;
		if (poll(&p, 1, SEND_TIMEOUT_MS) == 0)
			return -ETIMEDOUT;
	}
}

static int send_entries(struct gw_link *l, enum gw_share_type type, uint32_t cookie, const void *entries, unsigned count, int fd, bool wait)
{
	static const uint16_t sizes[] = {
		[GW_SHARE_HELLO] = sizeof(struct gw_share_hello),
		[GW_SHARE_REPORT] = sizeof(struct gw_share_hash),
		[GW_SHARE_LIVE] = sizeof(struct gw_share_live),
		[GW_SHARE_SLOTS] = sizeof(struct gw_share_slots),
		[GW_SHARE_SYNC] = 0,
		[GW_SHARE_ADOPT] = sizeof(struct gw_share_adopt),
		[GW_SHARE_FIND] = sizeof(struct gw_share_find),
		[GW_SHARE_OFFER] = sizeof(struct gw_share_named),
	};
	struct gw_share_head head = { .type = (uint16_t)type, .count = (uint16_t)count, .cookie = cookie };
	struct iovec iov[2] = { { &head, sizeof(head) }, { (void *)entries, (size_t)count * sizes[type] } };

	return send_packet(l, iov, 2, fd, wait);
}

int gw_link_send(struct gw_link *l, enum gw_share_type type, uint32_t cookie, const void *entries, unsigned count, int fd)
{
	return send_entries(l, type, cookie, entries, count, fd, true);
}

int gw_link_post(struct gw_link *l, enum gw_share_type type, uint32_t cookie, const void *entries, unsigned count, int fd)
{
	return send_entries(l, type, cookie, entries, count, fd, false);
}

int gw_link_send_pages(struct gw_link *l, uint32_t cookie, const uint64_t *pages, const void *const *bytes, unsigned count)
{
	struct gw_share_head head = { .type = GW_SHARE_PAGES, .count = (uint16_t)count, .cookie = cookie };
	struct iovec iov[1 + 2 * GW_SHARE_MAX_PAGES];
	size_t n = 0;

	iov[n++] = (struct iovec){ &head, sizeof(head) };
	for (unsigned i = 0; i < count; i++) {
		iov[n++] = (struct iovec){ (void *)&pages[i], sizeof(pages[i]) };
		iov[n++] = (struct iovec){ (void *)bytes[i], GW_PAGE_SIZE };
	}
	return send_packet(l, iov, n, -1, true);
}

static int take_fd(struct msghdr *msg)
{
	int fd = -1;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(int)))
			memcpy(&fd, CMSG_DATA(c), sizeof(int));
	}
	return fd;
}

int gw_link_receive(struct gw_link *l, int timeout_ms, struct gw_link_message *ret, struct gw_error *err)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = { l->in, sizeof(l->in) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes) };
	struct gw_share_head head;
	gw_autofd fd = -1;
	ssize_t n;

	if (timeout_ms != 0) {
		struct pollfd p = { .fd = l->fd, .events = POLLIN };

		if (poll(&p, 1, timeout_ms) == 0)
			return 0;
	}
	n = recvmsg(l->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0)
		return gw_error_set(err, EPIPE, "the page store's daemon is gone");
	fd = take_fd(&msg);
	if ((size_t)n < sizeof(head))
		return gw_error_set(err, EPROTO, "the page store's daemon sent %zd bytes", n);
	memcpy(&head, l->in, sizeof(head));
	if (!for_clients(head.type) || head.count < shapes[head.type].min || head.count > shapes[head.type].max ||
	    (size_t)n != sizeof(head) + (size_t)head.count * shapes[head.type].size || (fd >= 0) != (head.type == GW_SHARE_CHUNK) ||
	    (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
		return gw_error_set(err, EPROTO, "the page store's daemon sent a message of type %u with %u entries in %zd bytes", head.type,
				    head.count, n);
	*ret = (struct gw_link_message){ .head = head, .body = l->in + sizeof(head), .fd = gw_steal_fd(&fd) };
	return 1;
}
