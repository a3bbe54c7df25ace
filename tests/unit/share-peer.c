// SPDX-License-Identifier: Apache-2.0
/* A client of the page store for tests; see share-peer.h. */
#include "cmocka-all.h"

#include "share-peer.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "ksm/chunk.h"
#include "lib/util.h"

void share_content(uint64_t number, uint8_t page[4096])
{
	uint64_t x = number * 0x9e3779b97f4a7c15 + 1;

	for (unsigned i = 0; i < 4096; i += 8) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		memcpy(page + i, &x, 8);
	}
}

static void init(struct share_peer *p, uint64_t pages)
{
	memset(p, 0, sizeof(*p));
	p->sock = p->far = -1;
	p->pages = pages;
	p->content = calloc(pages, sizeof(*p->content));
	p->chunk = malloc(pages * sizeof(*p->chunk));
	p->slot = calloc(pages, sizeof(*p->slot));
	memset(p->chunk, 0xff, pages * sizeof(*p->chunk));
	for (unsigned i = 0; i < PEER_CHUNKS; i++)
		p->fd[i] = -1;
}

static void hello(struct share_peer *p, uint64_t claim)
{
	struct gw_share_hello h = { .version_min = 1, .version_max = 7, .pages = claim };

	share_peer_say(p, GW_SHARE_HELLO, 0, &h, 1, sizeof(h), -1);
}

void share_peer_join(struct share_peer *p, struct gw_store *s, uint64_t pages, uint64_t claim)
{
	int pair[2];

	init(p, pages);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	p->sock = pair[0];
	p->far = pair[1];
	assert_int_equal(gw_store_join(s, 0, p, &p->client), 0);
	hello(p, claim);
	assert_int_equal(p->error, 0);
	share_peer_step(p, 0);
	assert_int_equal(p->welcomed, 1);
}

void share_peer_connect(struct share_peer *p, int sock, uint64_t pages)
{
	init(p, pages);
	p->sock = sock;
	hello(p, pages);
	while (p->welcomed == 0 && share_peer_step(p, 10000))
		;
	assert_int_equal(p->welcomed, 1);
}

void share_peer_end(struct share_peer *p)
{
	gw_store_leave(p->client);
	gw_closep(&p->sock);
	gw_closep(&p->far);
	for (unsigned i = 0; i < PEER_CHUNKS; i++)
		gw_closep(&p->fd[i]);
	free(p->content);
	free(p->chunk);
	free(p->slot);
	memset(p, 0, sizeof(*p));
	p->sock = p->far = -1;
}

int share_peer_send(struct share_peer *p, const void *data, size_t len, int fd)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = { .iov_base = (void *)data, .iov_len = len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (p->client) {
		p->error = gw_store_packet(p->client, data, len, fd >= 0 ? dup(fd) : -1);
		return p->error;
	}
	if (fd >= 0) {
		struct cmsghdr *c;

		memset(&control, 0, sizeof(control));
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(int));
	}
	p->error = sendmsg(p->sock, &msg, MSG_NOSIGNAL) < 0 ? -errno : 0;
	return p->error;
}

int share_peer_say(struct share_peer *p, unsigned type, uint32_t cookie, const void *entries, unsigned count, size_t size, int fd)
{
	uint8_t packet[GW_SHARE_MAX_PACKET] __attribute__((aligned(8)));
	struct gw_share_head head = { .type = (uint16_t)type, .count = (uint16_t)count, .cookie = cookie };

	memcpy(packet, &head, sizeof(head));
	if (count > 0)
		memcpy(packet + sizeof(head), entries, count * size);
	return share_peer_send(p, packet, sizeof(head) + count * size, fd);
}

void share_peer_hash(const struct share_peer *p, uint64_t number, struct gw_share_hash *ret)
{
	uint8_t page[4096];
	XXH128_hash_t h;

	share_content(number, page);
	h = XXH3_128bits_withSecret(page, sizeof(page), p->secret, sizeof(p->secret));
	ret->low = h.low64;
	ret->high = h.high64;
}

void share_peer_report(struct share_peer *p, uint64_t first, unsigned n)
{
	struct gw_share_hash h[GW_SHARE_MAX_REPORT];
	unsigned k = 0;

	for (unsigned i = 0; i < n; i++) {
		h[k].page = first + i;
		share_peer_hash(p, p->content[first + i], &h[k++]);
		if (k == GW_SHARE_MAX_REPORT || i + 1 == n) {
			share_peer_say(p, GW_SHARE_REPORT, 0, h, k, sizeof(h[0]), -1);
			k = 0;
		}
	}
}

void share_peer_live(struct share_peer *p, uint32_t chunk, uint32_t pages)
{
	struct gw_share_live m = { .chunk = chunk, .pages = pages };

	share_peer_say(p, GW_SHARE_LIVE, 0, &m, 1, sizeof(m), -1);
}

void share_peer_slots(struct share_peer *p, uint32_t chunk)
{
	struct gw_share_slots m = { .chunk = chunk };

	for (uint64_t i = 0; i < p->pages; i++)
		if (p->chunk[i] == chunk)
			m.live[p->slot[i] / 64] |= 1ull << p->slot[i] % 64;
	share_peer_say(p, GW_SHARE_SLOTS, 0, &m, 1, sizeof(m), -1);
}

static int share_file(uint64_t content, unsigned n)
{
	struct gw_chunk *k;
	int fd;

	assert_int_equal(gw_chunk_new(&k), 0);
	for (unsigned i = 0; i < n; i++) {
		uint8_t page[4096];
		const struct iovec iov = { page, sizeof(page) };

		share_content(content + i, page);
		assert_int_equal(gw_chunk_append(k, &iov, 1), 0);
	}
	assert_int_equal(gw_chunk_seal(k), 0);
	fd = dup(k->fd);
	gw_chunk_unref(k);
	return fd;
}

void share_peer_offer(struct share_peer *p, uint32_t cookie, uint64_t content, uint64_t name, unsigned n)
{
	struct gw_share_named named[GW_SHARE_CHUNK_PAGES];
	int fd = share_file(content, n);

	for (unsigned i = 0; i < n; i++) {
		named[i].name = name + i;
		memset(named[i].proof, (int)((name + i) & 0xff), sizeof(named[i].proof));
	}
	share_peer_say(p, GW_SHARE_OFFER, cookie, named, n, sizeof(named[0]), fd);
	close(fd);
}

void share_peer_find(struct share_peer *p, uint32_t cookie, uint64_t name, unsigned n)
{
	struct gw_share_find ask[GW_SHARE_MAX_FIND];

	for (unsigned i = 0; i < n; i++)
		ask[i].name = name + i;
	share_peer_say(p, GW_SHARE_FIND, cookie, ask, n, sizeof(ask[0]), -1);
}

void share_peer_sync(struct share_peer *p, uint32_t cookie)
{
	share_peer_say(p, GW_SHARE_SYNC, cookie, NULL, 0, 0, -1);
}

static void unmap(struct share_peer *p, uint64_t page, bool tell)
{
	uint32_t k = p->chunk[page];

	if (k == GW_SHARE_NO_CHUNK)
		return;
	p->chunk[page] = GW_SHARE_NO_CHUNK;
	p->live[k]--;
	if (p->live[k] == 0)
		gw_closep(&p->fd[k]);
	if (tell)
		share_peer_live(p, k, p->live[k]);
}

void share_peer_drop(struct share_peer *p, uint64_t first, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		unmap(p, first + i, true);
}

void share_peer_drop_quietly(struct share_peer *p, uint64_t first, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		unmap(p, first + i, false);
}

/* ---- what comes ---- */

static void merge_one(struct share_peer *p, uint64_t page, uint32_t chunk, unsigned slot)
{
	uint8_t ours[4096], theirs[4096];

	assert_true(page < p->pages);
	/* A chunk that we let go of meanwhile. */
	if (chunk >= PEER_CHUNKS || p->fd[chunk] < 0)
		return;
	assert_true(slot < p->slots[chunk]);
	assert_int_equal(pread(p->fd[chunk], theirs, sizeof(theirs), slot * 4096), 4096);
	share_content(p->content[page], ours);
	if (memcmp(ours, theirs, sizeof(ours)) != 0) {
		p->refused++;
		return;
	}
	if (p->chunk[page] == chunk && p->slot[page] == slot)
		return;
	p->live[chunk]++;
	unmap(p, page, true);
	p->chunk[page] = chunk;
	p->slot[page] = (uint16_t)slot;
	p->merged++;
}

static void answer(struct share_peer *p, uint32_t cookie, const struct gw_share_wanted *w, unsigned n)
{
	static struct gw_share_page out[GW_SHARE_MAX_PAGES];
	unsigned k = 0;

	p->last_cookie = cookie;
	p->fetches++;
	for (unsigned i = 0; i < n; i++, p->fetched++)
		if (p->fetched < ARRAY_SIZE(p->fetched_page))
			p->fetched_page[p->fetched] = w[i].page;
	if (p->silent)
		return;
	for (unsigned i = 0; i < n && !p->omit; i++) {
		assert_true(w[i].page < p->pages);
		out[k].page = w[i].page;
		share_content(p->content[w[i].page] + (p->lie ? 1000000 : 0), out[k].bytes);
		if (++k == GW_SHARE_MAX_PAGES) {
			share_peer_say(p, GW_SHARE_PAGES, cookie, out, k, sizeof(out[0]), -1);
			k = 0;
		}
	}
	share_peer_say(p, GW_SHARE_PAGES, cookie, out, k, sizeof(out[0]), -1);
}

static void handle(struct share_peer *p, const struct gw_share_head *h, size_t len, int fd)
{
	const struct gw_share_welcome *welcome = (const void *)(h + 1);
	const struct gw_share_chunk *chunk = (const void *)(h + 1);
	const struct gw_share_merge *merge = (const void *)(h + 1);
	const struct gw_share_remap *remap = (const void *)(h + 1);
	const struct gw_share_adopted *adopted = (const void *)(h + 1);
	const struct gw_share_found *found = (const void *)(h + 1);

	assert_true((fd >= 0) == (h->type == GW_SHARE_CHUNK));
	switch (h->type) {
	case GW_SHARE_WELCOME:
		memcpy(p->secret, welcome->secret, sizeof(p->secret));
		p->welcomed++;
		break;
	case GW_SHARE_DONE:
		p->dones++;
		break;
	case GW_SHARE_FETCH:
		answer(p, h->cookie, (const void *)(h + 1), h->count);
		break;
	case GW_SHARE_CHUNK:
		assert_true(chunk->chunk < PEER_CHUNKS && p->fd[chunk->chunk] < 0);
		p->fd[chunk->chunk] = fd;
		p->slots[chunk->chunk] = chunk->slots;
		p->live[chunk->chunk] = 0;
		p->chunks++;
		break;
	case GW_SHARE_MERGE:
		assert_true(h->count <= GW_SHARE_MAX_RUNS);
		p->runs += h->count;
		for (unsigned i = 1; i < h->count; i++)
			assert_true(merge[i - 1].page + merge[i - 1].count <= merge[i].page);
		for (unsigned i = 0; i < h->count; i++)
			for (unsigned k = 0; k < merge[i].count; k++)
				merge_one(p, merge[i].page + k, merge[i].chunk, merge[i].slot + k);
		break;
	case GW_SHARE_REMAP:
		p->remap_runs += h->count;
		for (unsigned i = 0; i < h->count; i++) {
			p->remap_pages += remap[i].count;
			for (uint64_t page = 0; page < p->pages; page++) {
				unsigned off = p->slot[page] - remap[i].from_slot;

				if (p->chunk[page] != remap[i].from_chunk || p->slot[page] < remap[i].from_slot || off >= remap[i].count)
					continue;
				merge_one(p, page, remap[i].to_chunk, remap[i].to_slot + off);
				p->remapped++;
			}
		}
		break;
	case GW_SHARE_SYNCED:
		p->synced++;
		p->last_sync = h->cookie;
		p->merged_at_sync = p->merged;
		break;
	case GW_SHARE_ADOPTED:
		p->adopted++;
		p->adopted_as = adopted->now;
		break;
	case GW_SHARE_FOUND:
		p->founds++;
		p->nfound = h->count;
		memcpy(p->found, found, h->count * sizeof(*found));
		for (unsigned i = 0; i < h->count; i++)
			assert_true(found[i].reserved == 0 && (i == 0 || found[i].index > found[i - 1].index));
		break;
	default:
		fail_msg("a message of type %u", h->type);
	}
}

bool share_peer_step(struct share_peer *p, int wait_ms)
{
	static uint8_t packet[GW_SHARE_MAX_PACKET] __attribute__((aligned(8)));
	struct pollfd poll_fd = { .fd = p->sock, .events = POLLIN };
	bool any = false;

	if (p->client)
		assert_true(gw_outbox_flush(gw_store_outbox(p->client), p->far) <= 0);
	while (poll(&poll_fd, 1, any ? 0 : wait_ms) > 0) {
		union {
			struct cmsghdr align;
			char space[CMSG_SPACE(sizeof(int))];
		} control;
		struct iovec iov = { .iov_base = packet, .iov_len = sizeof(packet) };
		struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
		ssize_t n = recvmsg(p->sock, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
		int fd = -1;

		if (n <= 0)
			return any;
		if (c && c->cmsg_type == SCM_RIGHTS)
			memcpy(&fd, CMSG_DATA(c), sizeof(fd));
		handle(p, (const struct gw_share_head *)packet, (size_t)n, fd);
		any = true;
		if (p->client)
			(void)gw_outbox_flush(gw_store_outbox(p->client), p->far);
	}
	return any;
}

void share_peers_run(struct share_peer **p, unsigned n, int wait_ms)
{
	bool any = true;

	while (any) {
		any = false;
		for (unsigned i = 0; i < n; i++)
			any = share_peer_step(p[i], wait_ms) || any;
	}
}

bool share_peer_closed(struct share_peer *p, int wait_ms)
{
	uint8_t byte;

	for (;;) {
		struct pollfd poll_fd = { .fd = p->sock, .events = POLLIN };
		ssize_t n;

		if (poll(&poll_fd, 1, wait_ms) <= 0)
			return false;
		n = recv(p->sock, &byte, 1, MSG_DONTWAIT);
		if (n == 0 || (n < 0 && errno != EAGAIN))
			return true;
	}
}
