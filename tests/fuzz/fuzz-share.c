// SPDX-License-Identifier: Apache-2.0
/*
 * The page store's packets: any sequence of them from two clients of one store. The input is records {u8: client and what to do, u8: length
 * of the packet in units of 8 bytes}, then the packet. Type 0 in a packet's head stands for one that is built here from its first
 * bytes, so that second sightings, right answers and sealed files are met often.
 */
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <fcntl.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "ksm/store-internal.h"

#define PAGES 64u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void content(unsigned n, uint8_t page[4096])
{
	memset(page, 0, 4096);
	page[0] = (uint8_t)n;
}

static int sealed(unsigned n)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (ftruncate(fd, (n % 5) * 4096) < 0 || pwrite(fd, &n, 1, 0) < 0)
		return fd;
	fcntl(fd, F_ADD_SEALS, n & 0x10 ? F_SEAL_WRITE : F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL);
	return fd;
}

static int say(struct gw_store_client *c, unsigned type, uint32_t cookie, const void *e, unsigned n, size_t size, int fd)
{
	static uint8_t packet[GW_SHARE_MAX_PACKET] __attribute__((aligned(8)));
	struct gw_share_head h = { (uint16_t)type, (uint16_t)n, cookie };

	memcpy(packet, &h, sizeof(h));
	if (n > 0)
		memcpy(packet + sizeof(h), e, n * size);
	return gw_store_packet(c, packet, sizeof(h) + n * size, fd);
}

/* Asks for names, or offers as many as a file has pages, or about. */
static int by_name(struct gw_store_client *c, unsigned what, unsigned arg)
{
	struct gw_share_named named[5];
	struct gw_share_find find[8];

	for (unsigned i = 0; i < 8; i++)
		find[i].name = arg / 8 % 8 + i;
	for (unsigned i = 0; i < 5; i++)
		named[i] = (struct gw_share_named){ .name = arg / 16 % 8 + i * (what & 1) };
	if (what & 2)
		return say(c, GW_SHARE_FIND, arg, find, 1 + arg % 8, sizeof(find[0]), -1);
	return say(c, GW_SHARE_OFFER, arg, named, GW_MAX(arg % 5, 1u), sizeof(named[0]), sealed(arg));
}

/* A sensible packet from two bytes of input. */
static int sensible(struct gw_store *s, struct gw_store_client *c, unsigned what, unsigned arg)
{
	static struct gw_share_page pages[GW_SHARE_MAX_PAGES];
	struct gw_share_hash h[8];
	unsigned n = 0;

	switch (what % 6) {
	case 0:
	case 1: /* contents arg.. at pages arg.. */
		for (; n < 8; n++) {
			uint8_t page[4096];
			XXH128_hash_t x;

			content((arg >> 2) + n, page);
			x = XXH3_128bits_withSecret(page, sizeof(page), s->secret, sizeof(s->secret));
			h[n] = (struct gw_share_hash){ (arg + n * (1 + what / 6 % 3)) % PAGES, x.low64, x.high64 };
		}
		return say(c, GW_SHARE_REPORT, 0, h, n, sizeof(h[0]), -1);
	case 2: /* the answer to a FETCH, right but for some */
		for (unsigned i = 0; c->fetch && i < MAX_FETCHES; i++) {
			struct fetch *f = &c->fetch[i];

			if (f->sent_ns == 0)
				continue;
			for (unsigned k = f->next; k < f->n && n < GW_SHARE_MAX_PAGES - (arg & 1); k++) {
				const struct pending *p = &s->pending[f->pending[k]];

				if (arg & 2 && k % 3 == 0)
					continue;
				pages[n].page = p->page;
				for (unsigned m = 0; m < 256; m++) {
					XXH128_hash_t x;

					content(m, pages[n].bytes);
					x = XXH3_128bits_withSecret(pages[n].bytes, 4096, s->secret, sizeof(s->secret));
					if (x.low64 == p->low)
						break;
				}
				n++;
			}
			return say(c, GW_SHARE_PAGES, f->cookie, pages, n, sizeof(pages[0]), -1);
		}
		return 0;
	case 3:
		return say(c, GW_SHARE_SYNC, arg, NULL, 0, 0, -1);
	case 4: {
		struct gw_share_live live = { arg % 8, arg / 8 % 9 };

		return say(c, GW_SHARE_LIVE, 0, &live, 1, sizeof(live), -1);
	}
	default: {
		struct gw_share_slots slots = { .chunk = arg % 8, .live = { arg >> 3 & 7 } };

		return say(c, GW_SHARE_SLOTS, 0, &slots, 1, sizeof(slots), -1);
	}
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static const uint8_t key[32] = "fuzz";
	static uint8_t packet[GW_SHARE_MAX_PACKET] __attribute__((aligned(8)));
	struct gw_store_client *c[2] = { NULL, NULL };
	struct gw_store *s = NULL;
	uint64_t now = gw_now_ns();

	if (gw_store_new("fuzz", key, &s, NULL) < 0)
		return 0;
	while (len >= 2) {
		unsigned what = data[0], n = data[1] * 8u;
		struct gw_store_client **x = &c[what & 1];
		int r = 0;

		data += 2;
		len -= 2;
		n = (unsigned)GW_MIN(n, len);
		if (!*x) {
			struct gw_share_hello h = { 1, what & 4 ? 1 : 2, PAGES };

			if (gw_store_join(s, 0, NULL, x) < 0)
				break;
			if (what & 2)
				r = say(*x, GW_SHARE_HELLO, 0, &h, 1, sizeof(h), -1);
		}
		switch (what >> 4) {
		case 0:
			now += 600 * GW_NS_PER_MS;
			gw_store_tick(s, now);
			break;
		case 1:
			gw_store_idle(s);
			break;
		case 2:
			r = -EPIPE;
			break;
		case 3: {
			struct gw_share_adopt a = { what, what >> 2 & 3 };

			r = say(*x, GW_SHARE_ADOPT, 0, &a, 1, sizeof(a), sealed(n));
			break;
		}
		case 8:
			r = by_name(*x, what >> 2 & 3, n);
			break;
		case 4:
		case 5:
		case 6:
		case 7:
			memcpy(packet, data, n);
			r = gw_store_packet(*x, packet, n, -1);
			break;
		default:
			r = sensible(s, *x, what >> 2, data[-1]);
			n = 0;
			break;
		}
		if (r < 0 || gw_store_outbox(*x)->overflow) {
			gw_store_leave(*x);
			*x = NULL;
		}
		while (gw_store_next_ready(s))
			;
		data += n;
		len -= n;
	}
	gw_store_leave(c[0]);
	gw_store_leave(c[1]);
	if (s->nchunks != 0 || s->used_pending != 0 || s->used_waiters != 0 || s->stored_pages != 0 || s->live_pages != 0 ||
	    s->names.count != 0)
		__builtin_trap();
	gw_store_free(s);
	return 0;
}
