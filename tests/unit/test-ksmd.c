// SPDX-License-Identifier: Apache-2.0
/* godwit-ksmd as a process of its own: its control connection, and clients over their sockets, good and bad. */
#include "cmocka-all.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "ksm/server.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/log.h"
#include "lib/util.h"
#include "proto/frame.h"
#include "proto/share.pb-c.h"
#include "ksmd-process.h"
#include "share-peer.h"

static uint64_t soon(void)
{
	return gw_now_ns() + TEST_PATIENCE;
}

static int teardown(void **state)
{
	ksmd_stop();
	return 0;
}

static void join(struct share_peer *p, const char *vm, const char *domain, uint64_t pages)
{
	share_peer_connect(p, ksmd_attach(vm, domain), pages);
}

static int setup(void **state)
{
	ksmd_start(NULL);
	/* It is up, with all descriptors of its own. */
	godwit__share_reply__free_unpacked(ksmd_figures(), NULL);
	return 0;
}

static bool no_clients(void)
{
	Godwit__ShareReply *st = ksmd_figures();
	size_t n = st->n_clients;

	godwit__share_reply__free_unpacked(st, NULL);
	return n == 0;
}

/* Nobody is left, and nothing that still has to be freed. */
static bool empty(void)
{
	Godwit__ShareReply *st = ksmd_figures();
	size_t n = st->n_clients + st->n_domains;

	godwit__share_reply__free_unpacked(st, NULL);
	return n == 0 && ksmd_fds("godwit-chunk") == 0;
}

static void until(bool (*condition)(void))
{
	uint64_t end = soon();

	while (!condition()) {
		if (gw_now_ns() > end)
			fail_msg("sessions do not end");
		usleep(2000);
	}
}

static void until_empty(void)
{
	until(empty);
}

static void run_both(struct share_peer *a, struct share_peer *b)
{
	struct share_peer *p[] = { a, b };

	share_peers_run(p, 2, 100);
}

static void put(struct share_peer *p, unsigned first, unsigned n, uint64_t content)
{
	for (unsigned i = 0; i < n; i++)
		p->content[first + i] = content + i;
}

static void test_share(void **state)
{
	unsigned before = ksmd_fds("");
	struct share_peer a, b, c;
	Godwit__ShareReply *st;

	join(&a, "a", "red", 5000);
	join(&b, "b", "red", 5000);
	join(&c, "c", "blue", 5000);
	put(&a, 0, 2000, 1);
	put(&b, 1000, 2000, 1);
	put(&c, 0, 2000, 1);
	share_peer_report(&a, 0, 2000);
	share_peer_report(&c, 0, 2000);
	run_both(&a, &c);
	share_peer_report(&b, 1000, 2000);
	run_both(&a, &b);
	/* Within about a second the open chunk is sealed without anybody's asking. */
	for (unsigned i = 0; i < 60 && a.merged < 2000; i++)
		run_both(&a, &b);
	assert_int_equal(a.merged, 2000);
	assert_int_equal(b.merged, 2000);
	assert_true(a.runs <= 8);
	run_both(&c, &c);
	assert_int_equal(c.chunks + c.fetched, 0);
	share_peer_live(&a, a.chunk[0], a.live[a.chunk[0]]);
	run_both(&a, &b);
	st = ksmd_figures();
	assert_int_equal(st->n_domains, 2);
	assert_int_equal(st->n_clients, 3);
	assert_true(st->cpu_us > 0);
	for (size_t i = 0; i < st->n_domains; i++) {
		bool red = strcmp(st->domains[i]->domain, "red") == 0;

		assert_int_equal(st->domains[i]->stored_pages, red ? 2000 : 0);
		assert_int_equal(st->domains[i]->store_bytes, red ? 2000 * 4096 : 0);
		assert_int_equal(st->domains[i]->index_entries, 2000);
		assert_int_equal(st->domains[i]->clients, red ? 2 : 1);
		assert_true(st->domains[i]->metadata_bytes > 2000 * 16 && st->domains[i]->metadata_bytes < 1 << 20);
	}
	for (size_t i = 0; i < st->n_clients; i++) {
		assert_int_equal(st->clients[i]->reported, 2000);
		assert_int_equal(st->clients[i]->pages, 5000);
	}
	godwit__share_reply__free_unpacked(st, NULL);
	assert_int_equal(ksmd_fds("godwit-chunk"), 4);
	share_peer_end(&a);
	share_peer_end(&b);
	share_peer_end(&c);
	until_empty();
	assert_int_equal(ksmd_fds("godwit-chunk"), 0);
	assert_int_equal(ksmd_fds(""), before);
}

static void test_attach(void **state)
{
	unsigned before = ksmd_fds("");
	int seq[2], stream[2], file = open("/dev/null", O_RDONLY | O_CLOEXEC);
	const char *key = "12345678901234567890123456789012", *other = "12345678901234567890123456789013";
	Godwit__ShareRequest none = GODWIT__SHARE_REQUEST__INIT;
	Godwit__ShareReply *reply;
	struct share_peer a, b;

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, seq), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, stream), 0);
	assert_int_equal(ksmd_attach_with("a", "red", key, 32, NULL, 0), -EINVAL);
	assert_int_equal(ksmd_attach_with("a", "red", key, 32, seq, 2), -EINVAL);
	assert_int_equal(ksmd_attach_with("a", "red", key, 32, &file, 1), -EINVAL);
	assert_int_equal(ksmd_attach_with("a", "red", key, 32, stream, 1), -EINVAL);
	assert_int_equal(ksmd_attach_with("a", "red", key, 31, seq, 1), -EINVAL);
	assert_int_equal(ksmd_attach_with("", "red", key, 32, seq, 1), -EINVAL);
	assert_int_equal(ksmd_attach_with("a", "../red", key, 32, seq, 1), -EINVAL);
	reply = ksmd_ask(&none, NULL, 0);
	assert_int_equal(reply->error, EOPNOTSUPP);
	godwit__share_reply__free_unpacked(reply, NULL);
	/* A failed attach leaves no domain with its key behind. */
	assert_int_equal(ksmd_attach_with("a", "red", other, 32, stream, 1), -EINVAL);
	assert_int_equal(ksmd_attach_with("a", "red", key, 32, seq, 1), 0);
	assert_int_equal(ksmd_attach_with("b", "red", other, 32, stream, 1), -EINVAL);
	{
		int more[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, more), 0);
		assert_int_equal(ksmd_attach_with("b", "red", other, 32, more, 1), -EACCES);
		/* A second of the same name replaces the first, which keeps the domain's key. */
		assert_int_equal(ksmd_attach_with("a", "red", key, 32, more, 1), 0);
		close(more[0]);
		close(seq[0]);
		{
			struct share_peer first = { .sock = seq[1], .far = -1 };

			assert_true(share_peer_closed(&first, 5000));
		}
		share_peer_connect(&a, more[1], 100);
		share_peer_end(&a);
	}
	until_empty();
	close(seq[1]);
	/* Another key may come now: nobody shares under the old one. Replacing may lead to another domain. */
	join(&a, "a", "red", 100);
	join(&b, "a", "blue", 100);
	assert_true(share_peer_closed(&a, 5000));
	share_peer_end(&a);
	share_peer_end(&b);
	until_empty();
	/* A domain whose chunks are still to be freed is over; its name may come with another key at once. */
	join(&a, "a", "red", 20000);
	join(&b, "b", "red", 20000);
	put(&a, 0, 14 * 1024, 1);
	put(&b, 0, 14 * 1024, 1);
	share_peer_report(&a, 0, 14 * 1024);
	run_both(&a, &b);
	share_peer_report(&b, 0, 14 * 1024);
	run_both(&a, &b);
	assert_true(ksmd_fds("godwit-chunk") >= 27);
	share_peer_end(&a);
	share_peer_end(&b);
	until(no_clients);
	{
		int more[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, more), 0);
		assert_int_equal(ksmd_attach_with("b", "red", other, 32, &more[1], 1), 0);
		close(more[0]);
		close(more[1]);
	}
	close(stream[0]);
	close(stream[1]);
	close(file);
	until_empty();
	assert_int_equal(ksmd_fds(""), before);
}

/* What each bad client costs: itself. */
static void test_hostile(void **state)
{
	unsigned before = ksmd_fds("");
	struct share_peer good, bad;
	static uint8_t junk[GW_SHARE_MAX_PACKET];
	uint64_t seed = 3;
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	join(&good, "good", "red", 1000);
	put(&good, 0, 1000, 1);
	share_peer_report(&good, 0, 1000);
	for (unsigned round = 0; round < 72; round++) {
		int small = 4096;

		join(&bad, "bad", "red", 1000);
		put(&bad, 0, 1000, 1);
		switch (round % 6) {
		case 0: /* garbage, of a known type mostly */
			for (unsigned i = 0; i < sizeof(junk); i += 8) {
				seed = seed * 6364136223846793005 + 1442695040888963407;
				memcpy(junk + i, &seed, 8);
			}
			junk[0] = (uint8_t)(1 + seed % 16);
			junk[1] = 0;
			share_peer_send(&bad, junk, 1 + seed % (sizeof(junk) - 1), -1);
			break;
		case 1: /* longer than a packet may be; what does not fit in the socket's buffer is never sent */
			share_peer_say(&bad, 200, 0, NULL, 0, 0, -1);
			break;
		case 2: /* descriptors where none belong, then more than there may be */
			share_peer_sync(&bad, 1);
			assert_int_equal(gw_send_fds(bad.sock, junk, 8, (int[]){ fd, fd, fd }, 1 + round / 6 % 3, soon()), 0);
			break;
		case 3: { /* REPORTs ahead without reading */
			struct gw_share_hash h = { .page = 1, .low = round, .high = round };

			setsockopt(bad.sock, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
			for (unsigned i = 0; i < 200000 && bad.error == 0; i++) {
				h.low++;
				share_peer_say(&bad, GW_SHARE_REPORT, 0, &h, 1, sizeof(h), -1);
			}
			assert_true(bad.error == -EPIPE || bad.error == -ECONNRESET);
			break;
		}
		case 4: /* bytes that nobody asked for */
			share_peer_say(&bad, GW_SHARE_PAGES, 1, NULL, 0, 0, -1);
			break;
		default: /* dies with a FETCH unanswered and packets unread */
			bad.silent = true;
			share_peer_report(&bad, 0, 1000);
			share_peer_step(&bad, 100);
			break;
		}
		if (round % 6 != 5)
			assert_true(share_peer_closed(&bad, 5000));
		share_peer_end(&bad);
	}
	/* The good one has noticed nothing. */
	join(&bad, "other", "red", 1000);
	put(&bad, 0, 1000, 1);
	share_peer_report(&bad, 0, 1000);
	run_both(&good, &bad);
	share_peer_sync(&bad, 5);
	run_both(&good, &bad);
	assert_int_equal(good.merged, 1000);
	assert_int_equal(bad.merged, 1000);
	share_peer_end(&good);
	share_peer_end(&bad);
	close(fd);
	until_empty();
	assert_int_equal(ksmd_fds(""), before);
}

/* A client that does not read while others' pages make orders for it. */
static void test_slow_reader(void **state)
{
	struct share_peer slow, busy;
	bool lost = false;

	join(&slow, "slow", "red", 60000);
	join(&busy, "busy", "red", 60000);
	put(&slow, 0, 512, 1);
	share_peer_report(&slow, 0, 512);
	run_both(&slow, &busy);
	/* It goes on to ask for SYNCs, and never reads. */
	for (unsigned i = 0; i < 2000000 && slow.error == 0; i++)
		share_peer_sync(&slow, i);
	lost = slow.error == -EPIPE || slow.error == -ECONNRESET;
	assert_true(lost);
	put(&busy, 0, 600, 1);
	put(&busy, 600, 600, 1);
	share_peer_report(&busy, 0, 1200);
	run_both(&busy, &busy);
	share_peer_sync(&busy, 1);
	run_both(&busy, &busy);
	assert_int_equal(busy.merged, 1200);
	share_peer_end(&slow);
	share_peer_end(&busy);
	until_empty();
}

/* Nonsense on the control connection ends it, and with it this daemon; at a path others go on. */
static void test_control(void **state)
{
	char path[] = "/tmp/gw-ksmd-XXXXXX", sock[64];
	unsigned n, nulls;
	int mine, status;
	uint8_t junk[64];

	ksmd_stop();
	assert_non_null(mkdtemp(path));
	snprintf(sock, sizeof(sock), "%s/control", path);
	ksmd_start(sock);
	gw_closep(&ksmd.control);
	for (n = 0; n < 6000 && gw_unix_connect(sock, &ksmd.control, NULL) < 0; n++)
		usleep(10000);
	assert_true(ksmd.control >= 0);
	nulls = ksmd_fds("null"); /* its standard streams may be some */
	memset(junk, 0xff, sizeof(junk));
	for (unsigned i = 0; i < 40; i++) {
		int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

		assert_int_equal(gw_unix_connect(sock, &mine, NULL), 0);
		if (i % 3 == 0) {
			struct gw_frame_header h = { .len = 8, .type = 32, .version = 1 };

			memcpy(junk, &h, sizeof(h));
		} else {
			memset(junk, 0xff, sizeof(junk));
		}
		/* A descriptor a byte, whole frames of nonsense, halves. */
		(void)gw_send_fds(mine, junk, 1 + i, &fd, 1, soon());
		(void)gw_send_fds(mine, junk, 1 + i, &fd, 1, soon());
		close(fd);
		close(mine);
	}
	godwit__share_reply__free_unpacked(ksmd_figures(), NULL);
	for (n = 0; n < 6000 && ksmd_fds("null") > nulls; n++)
		usleep(10000);
	assert_int_equal(ksmd_fds("null"), nulls);
	gw_closep(&ksmd.control);
	kill(ksmd.pid, SIGTERM);
	assert_int_equal(waitpid(ksmd.pid, &status, 0), ksmd.pid);
	unlink(sock);
	rmdir(path);
	setup(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_share), cmocka_unit_test(test_attach),      cmocka_unit_test(test_hostile),
		cmocka_unit_test(test_slow_reader), cmocka_unit_test(test_control),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests_name("ksmd", tests, setup, teardown);
}
