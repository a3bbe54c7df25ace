// SPDX-License-Identifier: Apache-2.0
/*
 * What a page costs the store's daemon, without sockets: bench-ksmd-report MIB CLIENTS. Clients of MIB of RAM each report pages: first
 * sightings, the same again, changed, second sightings with their bytes (checked, copied, sealed), and hits of stored pages.
 * "sockets" as a third argument: the daemon as a process of its own, all of its CPU time. Prints one JSON object, ns of CPU time a page.
 */
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "ksm/server.h"
#include "ksm/store-internal.h"
#include "lib/io.h"
#include "lib/util.h"
#include "proto/frame.h"
#include "proto/share.pb-c.h"
#include "tests/unit/share-peer.h"

static uint8_t packet[GW_SHARE_MAX_PACKET] __attribute__((aligned(64)));

static void die(const char *what)
{
	fprintf(stderr, "bench-ksmd-report: %s: error %d\n", what, errno);
	exit(1);
}

static void drain(struct gw_store_client *c)
{
	gw_outbox_release(&c->out);
	gw_outbox_init(&c->out);
	while (gw_store_next_ready(c->store))
		;
}

/* CPU time: other work on the machine does not count. */
static uint64_t cpu_ns(void)
{
	return gw_clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 31) * 0x7fb5d329728ea185;
	x = (x ^ x >> 27) * 0x81dadef4bc2dd44d;
	return x ^ x >> 33;
}

static void say(struct gw_store_client *c, unsigned type, uint32_t cookie, unsigned count, size_t size)
{
	struct gw_share_head h = { (uint16_t)type, (uint16_t)count, cookie };

	memcpy(packet, &h, sizeof(h));
	if (gw_store_packet(c, packet, sizeof(h) + count * size, -1) < 0)
		die("a packet is refused");
}

/* Content `first` + page at each page; contents hash to any number here, but for those of which bytes are sent. */
static uint64_t report(struct gw_store_client *c, uint64_t pages, uint64_t first)
{
	struct gw_share_hash *h = (void *)(packet + sizeof(struct gw_share_head));
	uint64_t ns = 0;

	for (uint64_t at = 0; at < pages; at += GW_SHARE_MAX_REPORT) {
		uint64_t t;

		for (unsigned i = 0; i < GW_SHARE_MAX_REPORT; i++)
			h[i] = (struct gw_share_hash){ at + i, mix(first + at + i), mix(~(first + at + i)) };
		t = cpu_ns();
		say(c, GW_SHARE_REPORT, 0, GW_SHARE_MAX_REPORT, sizeof(*h));
		drain(c);
		ns += cpu_ns() - t;
	}
	return ns;
}

/* ---- the daemon as a process, over sockets ---- */

static uint64_t daemon_cpu_us(int control)
{
	Godwit__ShareRequest req = GODWIT__SHARE_REQUEST__INIT;
	Godwit__ShareStatsRequest st = GODWIT__SHARE_STATS_REQUEST__INIT;
	ProtobufCMessage *reply = NULL;
	uint64_t us;

	req.op_case = GODWIT__SHARE_REQUEST__OP_STATS;
	req.stats = &st;
	if (gw_frame_send(control, 32, &req.base, NULL, 0, GW_NO_DEADLINE) < 0 ||
	    gw_frame_recv(control, 33, &godwit__share_reply__descriptor, &reply, NULL, NULL, GW_NO_DEADLINE) < 0)
		die("stats");
	us = ((Godwit__ShareReply *)reply)->cpu_us;
	protobuf_c_message_free_unpacked(reply, NULL);
	return us;
}

static int attach(int control, const char *vm)
{
	Godwit__ShareRequest req = GODWIT__SHARE_REQUEST__INIT;
	Godwit__ShareAttach a = GODWIT__SHARE_ATTACH__INIT;
	ProtobufCMessage *reply = NULL;
	uint8_t key[32] = "bench";
	int pair[2];

	a.vm = (char *)vm;
	a.domain = (char *)"bench";
	a.key.data = key;
	a.key.len = sizeof(key);
	req.op_case = GODWIT__SHARE_REQUEST__OP_ATTACH;
	req.attach = &a;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0 ||
	    gw_frame_send(control, 32, &req.base, &pair[1], 1, GW_NO_DEADLINE) < 0 ||
	    gw_frame_recv(control, 33, &godwit__share_reply__descriptor, &reply, NULL, NULL, GW_NO_DEADLINE) < 0)
		die("attach");
	protobuf_c_message_free_unpacked(reply, NULL);
	close(pair[1]);
	return pair[0];
}

static void report_socket(struct share_peer *p, uint64_t pages)
{
	struct gw_share_hash *h = (void *)(packet + sizeof(struct gw_share_head));
	struct gw_share_head head = { GW_SHARE_REPORT, GW_SHARE_MAX_REPORT, 0 };
	unsigned sent = 0, before = p->dones;

	memcpy(packet, &head, sizeof(head));
	for (uint64_t at = 0; at < pages; at += GW_SHARE_MAX_REPORT) {
		for (unsigned i = 0; i < GW_SHARE_MAX_REPORT; i++)
			h[i] = (struct gw_share_hash){ at + i, mix(at + i), mix(~(at + i)) };
		if (share_peer_send(p, packet, sizeof(head) + sizeof(*h) * GW_SHARE_MAX_REPORT, -1) < 0)
			die("report");
		sent++;
		while (sent - (p->dones - before) >= 8)
			share_peer_step(p, 1000);
	}
	while (p->dones - before < sent)
		share_peer_step(p, 1000);
}

static int sockets(uint64_t pages)
{
	static struct share_peer p, q;
	uint64_t us[5];
	int pair[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0 || (pid = fork()) < 0)
		die("daemon");
	if (pid == 0) {
		struct gw_share_server *s = NULL;
		sd_event *loop = NULL;

		close(pair[0]);
		mallopt(M_MMAP_THRESHOLD, 128 << 10);
		if (sd_event_new(&loop) < 0 || gw_share_server_new(loop, &s, NULL) < 0 ||
		    gw_share_server_control(s, pair[1], true, NULL) < 0 || sd_event_loop(loop) < 0)
			_exit(1);
		_exit(0);
	}
	close(pair[1]);
	share_peer_connect(&p, attach(pair[0], "p"), pages);
	share_peer_connect(&q, attach(pair[0], "q"), pages);
	us[0] = daemon_cpu_us(pair[0]);
	report_socket(&p, pages);
	us[1] = daemon_cpu_us(pair[0]);
	report_socket(&p, pages);
	us[2] = daemon_cpu_us(pair[0]);
	for (uint64_t i = 0; i < pages; i++)
		p.content[i] = q.content[i] = 1 + i;
	share_peer_report(&p, 0, (unsigned)GW_MIN(pages, 14 * 1024ull));
	share_peers_run((struct share_peer *[]){ &p, &q }, 2, 200);
	us[3] = daemon_cpu_us(pair[0]);
	share_peer_report(&q, 0, (unsigned)GW_MIN(pages, 14 * 1024ull));
	share_peer_sync(&q, 1);
	share_peers_run((struct share_peer *[]){ &p, &q }, 2, 200);
	us[4] = daemon_cpu_us(pair[0]);
	printf("{\"pages\": %llu, \"first_ns\": %.1f, \"again_ns\": %.1f, \"stored_ns\": %.1f, \"merged\": %u}\n",
	       (unsigned long long)pages, (double)(us[1] - us[0]) * 1e3 / (double)pages, (double)(us[2] - us[1]) * 1e3 / (double)pages,
	       (double)(us[4] - us[3]) * 1e3 / (double)GW_MIN(pages, 14 * 1024ull), p.merged + q.merged);
	share_peer_end(&p);
	share_peer_end(&q);
	close(pair[0]);
	waitpid(pid, NULL, 0);
	return 0;
}

/* ---- the store alone ---- */

static void content(uint64_t n, uint8_t page[4096])
{
	memset(page, 0, 4096);
	memcpy(page, &n, sizeof(n));
}

static uint64_t report_true(struct gw_store_client *c, uint64_t at, uint64_t first)
{
	struct gw_share_hash *h = (void *)(packet + sizeof(struct gw_share_head));
	uint8_t page[4096];
	uint64_t t;

	for (unsigned i = 0; i < GW_SHARE_MAX_REPORT; i++) {
		XXH128_hash_t x;

		content(first + at + i, page);
		x = XXH3_128bits_withSecret(page, sizeof(page), c->store->secret, sizeof(c->store->secret));
		h[i] = (struct gw_share_hash){ at + i, x.low64, x.high64 };
	}
	t = cpu_ns();
	say(c, GW_SHARE_REPORT, 0, GW_SHARE_MAX_REPORT, sizeof(*h));
	return cpu_ns() - t;
}

/* Answers all that a client is asked for. */
static uint64_t answer(struct gw_store_client *c, uint64_t first)
{
	struct gw_share_page *p = (void *)(packet + sizeof(struct gw_share_head));
	uint64_t ns = 0;

	while (c->nfetches > 0) {
		for (unsigned i = 0; i < MAX_FETCHES; i++) {
			struct fetch *f = &c->fetch[i];
			unsigned n = 1;

			while (f->sent_ns != 0 && n > 0) {
				uint64_t t;

				n = GW_MIN(GW_SHARE_MAX_PAGES, (unsigned)(f->n - f->next));
				for (unsigned k = 0; k < n; k++) {
					p[k].page = c->store->pending[f->pending[f->next + k]].page;
					content(first + p[k].page, p[k].bytes);
				}
				t = cpu_ns();
				say(c, GW_SHARE_PAGES, f->cookie, n, sizeof(*p));
				ns += cpu_ns() - t;
			}
		}
	}
	return ns;
}

int main(int argc, char **argv)
{
	uint64_t pages = (argc > 1 ? strtoull(argv[1], NULL, 10) : 1024) * 256;
	unsigned n = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 4;
	static const uint8_t key[32] = "bench";
	struct gw_store_client *c[64];
	uint64_t first = 0, again = 0, changed = 0, second = 0, hits = 0, total = pages * n, digest, leave, leave_last, end, bring = GW_MIN(pages, 131072ull);
	uint8_t name[GW_CHUNK_DIGEST_LEN];
	struct gw_store_stats st, full;
	struct gw_store *s;

	if (argc > 3 && strcmp(argv[3], "sockets") == 0)
		return sockets(pages);
	if (n < 2 || n > 62 || pages % GW_SHARE_MAX_REPORT || gw_store_new("bench", key, &s, NULL) < 0)
		die("arguments");
	for (unsigned i = 0; i < n + 2; i++) {
		struct gw_share_hello *h = (void *)(packet + sizeof(struct gw_share_head));

		if (gw_store_join(s, 0, NULL, &c[i]) < 0)
			die("join");
		*h = (struct gw_share_hello){ 1, 1, pages };
		say(c[i], GW_SHARE_HELLO, 0, 1, sizeof(*h));
	}
	for (unsigned i = 0; i < n; i++)
		first += report(c[i], pages, i * pages);
	gw_store_stats(s, &full);
	for (unsigned i = 0; i < n; i++)
		again += report(c[i], pages, i * pages);
	for (unsigned i = 0; i < n; i++)
		changed += report(c[i], pages, (n + i) * pages);
	for (uint64_t at = 0; at < bring; at += GW_SHARE_MAX_REPORT)
		report_true(c[0], at, 1ull << 40), drain(c[0]);
	for (uint64_t at = 0; at < bring; at += GW_SHARE_MAX_REPORT) {
		second += report_true(c[1], at, 1ull << 40);
		second += answer(c[1], 1ull << 40);
		drain(c[0]);
		drain(c[1]);
	}
	for (uint64_t at = 0; at < bring; at += GW_SHARE_MAX_REPORT) {
		hits += report_true(c[n], at, 1ull << 40);
		drain(c[n]);
	}
	gw_store_stats(s, &st);
	digest = cpu_ns();
	for (uint32_t i = 0; i < s->cap_chunks; i++)
		if (s->chunk[i] && s->chunk[i]->sealed)
			(void)gw_store_digest(s, i, (uint16_t)(s->chunk[i]->slots - 1), name);
	digest = cpu_ns() - digest;
	leave = cpu_ns();
	gw_store_leave(c[0]);
	gw_store_leave(c[1]);
	leave_last = cpu_ns();
	gw_store_leave(c[n]);
	end = cpu_ns();
	printf("{\"pages\": %llu, \"first_ns\": %.1f, \"again_ns\": %.1f, \"changed_ns\": %.1f, \"stored_ns\": %.1f, \"hit_ns\": %.1f, "
	       "\"digest_ns\": %.1f, \"index_bytes_an_entry\": %.1f, \"stored_pages\": %llu, "
	       "\"leave_us_a_chunk\": %.1f, \"close_us_a_chunk\": %.1f}\n",
	       (unsigned long long)total, (double)first / (double)total, (double)again / (double)total, (double)changed / (double)total,
	       (double)second / (double)bring, (double)hits / (double)bring, (double)digest / (double)bring,
	       (double)full.metadata_bytes / (double)full.index_entries, (unsigned long long)st.stored_pages,
	       (double)(leave_last - leave) / 1e3 / ((double)bring / 512), (double)(end - leave_last) / 1e3 / ((double)bring / 512));
	gw_store_free(s);
	return 0;
}
