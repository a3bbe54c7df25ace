// SPDX-License-Identifier: Apache-2.0
/*
 * A daemon under a barrage of clients that were taken over, of two tenants, between pairs of honest VMs of the same tenants: those keep what they
 * wrote and go on sharing, and the daemon lives, with bounded memory and descriptors.
 *
 * GODWIT_SIEGE_ROUNDS and GODWIT_SIEGE_SEED choose how long and what; the seed is printed.
 */
#include "cmocka-all.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "ksmd-process.h"
#include "lib/clock.h"
#include "lib/util.h"
#include "share-vm.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PLAIN 0
#define ROUNDS 400u
#else
#define PLAIN 1
#define ROUNDS 3000u
#endif
#define ROUNDS_A_GENERATION 200u
#define HOSTILES 8u
#define KEPT_FDS 32u
/* Far more than is needed, far less than what the barrage would take if nothing were bounded. */
#define MOST_MEMORY (48ull << 20)
#define MOST_FDS 200u

/* Honest memory: the pair's, twice the same of its own, and its own. */
#define PAGES 1024u
#define PAIR 256u
#define TWICE 64u

static uint64_t prng;

static uint64_t next(void)
{
	prng ^= prng << 13;
	prng ^= prng >> 7;
	prng ^= prng << 17;
	return prng * 0x2545f4914f6cdd1dull;
}

static unsigned below(unsigned n)
{
	return (unsigned)((next() >> 32) % n);
}

/* ---- contents: what share_vm_fill() writes; the upper bits tell whose it is ---- */

#define GOLDEN 0x9e3779b97f4a7c15ull

enum whose { HONEST = 1, HOSTILE = 10 };

static uint64_t content(enum whose whose, unsigned domain, uint64_t n)
{
	return (uint64_t)(whose + domain) << 40 | n;
}

static void bytes_of(uint64_t seed, uint8_t page[4096])
{
	uint64_t words[512];

	for (unsigned k = 0; k < 512; k++)
		words[k] = seed * GOLDEN + k;
	memcpy(page, words, sizeof(words));
}

static uint64_t seed_of(const uint8_t page[4096])
{
	uint64_t word, inverse = 1;

	memcpy(&word, page, sizeof(word));
	for (unsigned i = 0; i < 6; i++)
		inverse *= 2 - GOLDEN * inverse;
	return word * inverse;
}

/* ---- a client that was taken over ---- */

enum answer { TRUTH, LIE, OMIT, SILENT, HALF };

struct hostile {
	int sock;        /* -1: none */
	unsigned domain;
	bool welcome, reads;
	enum answer answer;
	uint8_t secret[GW_SHARE_SECRET_LEN];
	uint64_t at[PAGES]; /* content of each of its pages */
	int fd[KEPT_FDS];   /* chunks that it got */
	uint32_t id[KEPT_FDS];
	unsigned nfds;
};

static const char *const domains[] = { "red", "blue" };
static uint64_t generation[2]; /* of the honest pair's contents */

/* As much of it as the socket takes now. */
static void throw(struct hostile *h, const void *data, size_t len, const int *fds, unsigned nfds)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(8 * sizeof(int))];
	} control = { 0 };
	struct iovec iov = { (void *)data, len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (nfds > 0) {
		struct cmsghdr *c;

		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(nfds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, nfds * sizeof(int));
	}
	(void)!sendmsg(h->sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void say(struct hostile *h, unsigned type, uint32_t cookie, const void *entries, unsigned count, size_t size, int fd)
{
	static uint8_t packet[GW_SHARE_MAX_PACKET];
	struct gw_share_head head = { .type = (uint16_t)type, .count = (uint16_t)count, .cookie = cookie };

	memcpy(packet, &head, sizeof(head));
	if (count > 0 && size > 0)
		memcpy(packet + sizeof(head), entries, count * size);
	throw(h, packet, sizeof(head) + count * size, &fd, fd >= 0);
}

static void let_go(struct hostile *h)
{
	gw_closep(&h->sock);
	while (h->nfds > 0)
		gw_closep(&h->fd[--h->nfds]);
	h->welcome = false;
}

static void connect_one(struct hostile *h, unsigned number)
{
	struct gw_share_hello hello = { 1, 1, PAGES };
	char name[32];

	let_go(h);
	h->domain = below(2);
	h->reads = below(8) != 0;
	h->answer = (enum answer)below(5);
	snprintf(name, sizeof(name), "hostile-%u", number);
	h->sock = ksmd_attach(name, domains[h->domain]);
	if (below(16) == 0)
		hello.pages = next() >> below(64);
	if (below(16) == 0)
		hello.version_min = hello.version_max = (uint32_t)next();
	if (below(16) != 0)
		say(h, GW_SHARE_HELLO, 0, &hello, 1, sizeof(hello), -1);
}

/* A chunk of the daemon's cannot be changed, whoever opens it however. */
static void attack(int fd)
{
	char path[64];
	uint8_t page[4096] = { 1 };
	void *p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	int again;

	assert_ptr_not_equal(p, MAP_FAILED);
	assert_int_not_equal(mprotect(p, 4096, PROT_READ | PROT_WRITE), 0);
	munmap(p, 4096);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, O_RDWR | O_CLOEXEC);
	if (again < 0)
		again = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	assert_true(pwrite(again, page, sizeof(page), 0) < 0);
	assert_true(ftruncate(again, 0) < 0);
	assert_true(ftruncate(again, 4 << 20) < 0);
	assert_true(fallocate(again, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) < 0);
	assert_true(fallocate(again, 0, 4 << 20, 4096) < 0);
	assert_ptr_equal(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0), MAP_FAILED);
	close(again);
}

/* What the daemon hands out is of the client's own domain. */
static void take_chunk(struct hostile *h, const struct gw_share_chunk *c, int fd)
{
	uint8_t page[4096];

	for (unsigned i = 0; i < c->slots; i++) {
		uint64_t whose;

		assert_int_equal(pread(fd, page, sizeof(page), (off_t)i * 4096), 4096);
		whose = seed_of(page) >> 40;
		if (whose != HONEST + h->domain && whose != HOSTILE + h->domain)
			fail_msg("a client of domain %u got a page of %llu", h->domain, (unsigned long long)whose);
	}
	attack(fd);
	if (h->nfds == KEPT_FDS) {
		close(fd);
		return;
	}
	h->id[h->nfds] = c->chunk;
	h->fd[h->nfds++] = fd;
}

static void answer_fetch(struct hostile *h, uint32_t cookie, const struct gw_share_wanted *w, unsigned n)
{
	struct gw_share_page out[GW_SHARE_MAX_PAGES];
	unsigned k = 0;

	for (unsigned i = 0; i < n && h->answer < OMIT; i++) {
		/* It may have said that it has more. */
		if (w[i].page >= PAGES)
			continue;
		out[k].page = w[i].page;
		bytes_of(h->at[w[i].page] + (h->answer == LIE ? 1 : 0), out[k].bytes);
		if (++k == GW_SHARE_MAX_PAGES) {
			say(h, GW_SHARE_PAGES, cookie, out, k, sizeof(out[0]), -1);
			k = 0;
		}
	}
	if (h->answer == HALF) {
		for (; k < GW_SHARE_MAX_PAGES && k < n; k++) {
			out[k].page = w[k].page;
			bytes_of(h->at[w[k].page % PAGES], out[k].bytes);
		}
		say(h, GW_SHARE_PAGES, cookie, out, k, sizeof(out[0]), -1);
		let_go(h);
	} else if (h->answer != SILENT) {
		say(h, GW_SHARE_PAGES, cookie, out, k, sizeof(out[0]), -1);
	}
}

static void handle(struct hostile *h, const uint8_t *packet, int fd)
{
	const struct gw_share_head *head = (const void *)packet;
	const void *body = head + 1;

	if (head->type == GW_SHARE_WELCOME) {
		memcpy(h->secret, ((const struct gw_share_welcome *)body)->secret, sizeof(h->secret));
		h->welcome = true;
	} else if (head->type == GW_SHARE_CHUNK) {
		take_chunk(h, body, gw_steal_fd(&fd));
	} else if (head->type == GW_SHARE_FETCH) {
		answer_fetch(h, head->cookie, body, head->count);
	}
	gw_closep(&fd);
}

/* Reads what is there. */
static void drain(struct hostile *h)
{
	static uint8_t packet[GW_SHARE_MAX_PACKET] __attribute__((aligned(8)));

	while (h->sock >= 0) {
		union {
			struct cmsghdr align;
			char space[CMSG_SPACE(sizeof(int))];
		} control;
		struct iovec iov = { packet, sizeof(packet) };
		struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
		ssize_t n = recvmsg(h->sock, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
		int fd = -1;

		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			let_go(h);
			return;
		}
		if (c && c->cmsg_type == SCM_RIGHTS)
			memcpy(&fd, CMSG_DATA(c), sizeof(fd));
		handle(h, packet, fd);
	}
}

/* ---- what it does ---- */

static void garbage(struct hostile *h)
{
	static uint8_t junk[GW_SHARE_MAX_PACKET];
	struct gw_share_head head = { .type = (uint16_t)below(18), .count = (uint16_t)(below(2) ? below(8) : next()), .cookie = below(3) };
	size_t len = 1 + below(below(4) ? 200 : sizeof(junk));

	for (size_t i = 0; i < len; i += 8) {
		uint64_t x = next();

		memcpy(junk + i, &x, GW_MIN(sizeof(x), sizeof(junk) - i));
	}
	if (len >= sizeof(head) && below(4) != 0)
		memcpy(junk, &head, sizeof(head));
	throw(h, junk, len, NULL, 0);
}

/* Pages that it has, some of the honest ones' contents among them. `how` 0: true hashes; 1: any; 2: half of a true one; 3: pages that it has not. */
static void report(struct hostile *h, unsigned how)
{
	struct gw_share_hash e[GW_SHARE_MAX_REPORT];
	unsigned n = 1 + below(below(2) ? 64 : 512), first = below(PAGES - n + 1);

	for (unsigned i = 0; i < n; i++) {
		uint64_t c = below(4) ? content(HONEST, h->domain, generation[h->domain] + below(PAIR)) : content(HOSTILE, h->domain, below(300));
		uint8_t page[4096];
		XXH128_hash_t x;

		h->at[first + i] = c;
		bytes_of(c, page);
		x = XXH3_128bits_withSecret(page, sizeof(page), h->secret, sizeof(h->secret));
		e[i] = (struct gw_share_hash){ first + i, x.low64, x.high64 };
		if (how == 1)
			e[i].low = next();
		if (how == 2)
			e[i].high = next();
		if (how == 3 && i == n / 2)
			e[i].page = below(2) ? PAGES : next();
	}
	say(h, GW_SHARE_REPORT, 0, e, n, sizeof(e[0]), -1);
}

static void flood(struct hostile *h)
{
	unsigned n = below(2000), type = below(2) ? GW_SHARE_SYNC : GW_SHARE_REPORT;
	struct gw_share_hash e = { .page = below(PAGES) };

	for (unsigned i = 0; i < n; i++) {
		e.low = next();
		say(h, type, type == GW_SHARE_SYNC ? i : 0, &e, type == GW_SHARE_REPORT, sizeof(e), -1);
	}
}

/* Chunks that are not its own, and what is not true of those that are. */
static void lie_of_chunks(struct hostile *h)
{
	struct gw_share_live live[8];
	struct gw_share_slots slots[8];

	for (unsigned i = 0; i < 8; i++) {
		uint32_t id = h->nfds > 0 && below(2) ? h->id[below(h->nfds)] : below(8) ? below(64) : (uint32_t)next();

		live[i] = (struct gw_share_live){ id, below(4) ? below(PAGES) : (uint32_t)next() };
		slots[i].chunk = id;
		for (unsigned w = 0; w < ARRAY_SIZE(slots[i].live); w++)
			slots[i].live[w] = below(2) ? 0 : next();
	}
	if (below(2))
		say(h, GW_SHARE_LIVE, 0, live, 1 + below(8), sizeof(live[0]), -1);
	else
		say(h, GW_SHARE_SLOTS, 0, slots, 1 + below(8), sizeof(slots[0]), -1);
}

/* Files for ADOPT: what may still change, has no length of pages, is too short or long, or no memfd; and some that are right. */
static void bring(struct hostile *h)
{
	static const int seals[] = { F_SEAL_WRITE, F_SEAL_GROW, F_SEAL_SHRINK, F_SEAL_SEAL };
	struct gw_share_adopt m = { .chunk = below(8) ? below(100) : (uint32_t)next(), .pages = below(8) ? below(PAGES) : (uint32_t)next() };
	unsigned how = below(9), pages = how == 5 ? 513 + below(100) : 1 + below(20);
	int with = seals[0] | seals[1] | seals[2] | seals[3], fd;
	uint8_t page[4096];

	if (how == 0) {
		fd = open(below(2) ? "/dev/zero" : "/proc/self/exe", O_RDONLY | O_CLOEXEC);
	} else {
		fd = memfd_create("godwit-chunk", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		for (unsigned i = 0; i < pages && how != 4; i++) {
			bytes_of(below(2) ? content(HONEST, h->domain, generation[h->domain] + below(PAIR)) : content(HOSTILE, h->domain, i), page);
			assert_int_equal(pwrite(fd, page, sizeof(page), (off_t)i * 4096), 4096);
		}
		if (how == 3)
			assert_int_equal(ftruncate(fd, (off_t)pages * 4096 - 1 - below(4095)), 0);
		if (how == 1)
			with = 0;
		if (how == 2)
			with &= ~seals[below(4)];
		assert_int_equal(fcntl(fd, F_ADD_SEALS, with), 0);
	}
	say(h, GW_SHARE_ADOPT, 0, &m, 1, sizeof(m), how == 8 && below(4) == 0 ? -1 : fd);
	close(fd);
}

static void stray_fds(struct hostile *h)
{
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC), fds[8];
	struct gw_share_head head = { .type = GW_SHARE_SYNC };

	for (unsigned i = 0; i < ARRAY_SIZE(fds); i++)
		fds[i] = fd;
	throw(h, &head, below(2) ? sizeof(head) : 1, fds, 1 + below(8));
	close(fd);
}

static void one_round(struct hostile *h, unsigned number)
{
	if (h->sock >= 0 && (h->reads || !h->welcome))
		drain(h);
	if (h->sock < 0 || below(12) == 0)
		connect_one(h, number);
	switch (below(16)) {
	case 0:
		garbage(h);
		break;
	case 1:
		flood(h);
		break;
	case 2:
		lie_of_chunks(h);
		break;
	case 3:
		stray_fds(h);
		break;
	case 4:
		say(h, GW_SHARE_PAGES, below(10), NULL, 0, 0, -1);
		break;
	case 5:
	case 6:
		bring(h);
		break;
	case 7:
		say(h, GW_SHARE_SYNC, (uint32_t)next(), NULL, 0, 0, -1);
		break;
	case 8:
		report(h, 1 + below(3));
		break;
	default:
		if (h->welcome)
			report(h, 0);
		break;
	}
	if (h->sock >= 0 && h->reads)
		drain(h);
}

/* ---- the honest ones ---- */

struct pair {
	struct share_vm_process vm[2];
	unsigned domain;
};

static void start_pair(struct pair *p, unsigned domain)
{
	p->domain = domain;
	for (unsigned i = 0; i < 2; i++) {
		char name[32];

		snprintf(name, sizeof(name), "%s-%u", domains[domain], i);
		p->vm[i] = share_vm_start(ksmd_attach(name, domains[domain]), PAGES, &share_vm_quick);
		share_vm_tell_fill(&p->vm[i], 0, PAIR, content(HONEST, domain, generation[domain]));
		share_vm_tell_fill(&p->vm[i], 300, TWICE, content(HONEST, domain, 1000000000 + i * 1000));
		share_vm_tell_fill(&p->vm[i], 400, TWICE, content(HONEST, domain, 1000000000 + i * 1000));
		share_vm_tell_fill(&p->vm[i], 500, PAGES - 500, content(HONEST, domain, 2000000000 + i * 1000));
		share_vm_tell_attach(&p->vm[i]);
	}
}

/* They hold what they wrote, and share what is equal. */
static bool go_on(struct pair *p)
{
	bool all = true;

	for (unsigned i = 0; i < 2; i++) {
		struct gw_sharer_stats s = share_vm_ask_stats(&p->vm[i]);

		assert_true(share_vm_ask_holds(&p->vm[i], 0, PAIR, content(HONEST, p->domain, generation[p->domain])));
		assert_true(share_vm_ask_holds(&p->vm[i], 300, TWICE, content(HONEST, p->domain, 1000000000 + i * 1000)));
		assert_true(share_vm_ask_holds(&p->vm[i], 400, TWICE, content(HONEST, p->domain, 1000000000 + i * 1000)));
		assert_true(share_vm_ask_holds(&p->vm[i], 500, PAGES - 500, content(HONEST, p->domain, 2000000000 + i * 1000)));
		if (s.passes > 0 && !s.attached)
			fail_msg("an honest VM lost its session: %s", s.reason);
		all = all && s.shared_pages >= PAIR + 2 * TWICE;
	}
	return all;
}

/* They share no more: how they stand. */
static void fail_pair(struct pair *pair)
{
	for (unsigned i = 0; i < 4; i++) {
		struct gw_sharer_stats s = share_vm_ask_stats(&pair[i / 2].vm[i % 2]);

		print_message("%s-%u: shared %llu, broken %llu, merged %llu, again %llu, differing %llu, failed %llu, chunks %llu, hashed %llu\n",
			      domains[i / 2], i % 2, (unsigned long long)s.shared_pages, (unsigned long long)s.broken_pages,
			      (unsigned long long)s.merged_pages, (unsigned long long)s.again_pages, (unsigned long long)s.differing_pages,
			      (unsigned long long)s.failed_pages, (unsigned long long)s.chunks, (unsigned long long)s.hashed_pages);
	}
	fail_msg("honest VMs do not share any more");
}

/* Other contents, in both at once. */
static void write_anew(struct pair *p)
{
	generation[p->domain] += 100000;
	for (unsigned i = 0; i < 2; i++)
		share_vm_tell_fill(&p->vm[i], 0, PAIR, content(HONEST, p->domain, generation[p->domain]));
}

static uint64_t daemon_memory(void)
{
	gw_autofree char *line = NULL;
	char path[64];
	gw_autofile *f = NULL;
	size_t cap = 0;
	uint64_t kib = 0;

	snprintf(path, sizeof(path), "/proc/%d/status", ksmd.pid);
	f = fopen(path, "re");
	assert_non_null(f);
	while (getline(&line, &cap, f) > 0) {
		if (strncmp(line, "VmHWM:", 6) == 0)
			kib = strtoull(line + 6, NULL, 10);
	}
	return kib << 10;
}

static void check_daemon(unsigned *most_fds)
{
	assert_int_equal(waitpid(ksmd.pid, NULL, WNOHANG), 0);
	*most_fds = GW_MAX(*most_fds, ksmd_fds(""));
	assert_in_range(*most_fds, 1, MOST_FDS);
	if (PLAIN)
		assert_in_range(daemon_memory(), 1, MOST_MEMORY);
}

static unsigned from_env(const char *name, unsigned otherwise)
{
	const char *v = getenv(name);

	return v ? (unsigned)strtoul(v, NULL, 0) : otherwise;
}

static void run_siege(void **state)
{
	static struct hostile hostile[HOSTILES];
	unsigned rounds = from_env("GODWIT_SIEGE_ROUNDS", ROUNDS), seed = from_env("GODWIT_SIEGE_SEED", (unsigned)gw_now_ns()), most_fds = 0;
	struct pair pair[2];
	uint64_t longest = 0, end;
	Godwit__ShareReply *st;
	uint64_t lies = 0;

	print_message("%u rounds, seed %u\n", rounds, seed);
	prng = seed * GOLDEN | 1;
	generation[0] = generation[1] = 1;
	for (unsigned i = 0; i < HOSTILES; i++)
		hostile[i].sock = -1;
	for (unsigned i = 0; i < 2; i++)
		start_pair(&pair[i], i);
	for (unsigned round = 0, since = 0; round < rounds || since > 0; round++) {
		static uint64_t began;
		unsigned who = below(HOSTILES);

		one_round(&hostile[who], who);
		if (round % 16 == 0)
			check_daemon(&most_fds);
		if (since == 0)
			began = gw_now_ns();
		/* The barrage goes on until the honest ones have found together. */
		if (++since < ROUNDS_A_GENERATION)
			continue;
		if (go_on(&pair[0]) & go_on(&pair[1])) {
			longest = GW_MAX(longest, gw_now_ns() - began);
			write_anew(&pair[0]);
			write_anew(&pair[1]);
			since = 0;
		} else if (gw_now_ns() - began > 120 * GW_NS_PER_SEC) {
			fail_pair(pair);
		}
	}
	st = ksmd_figures();
	for (size_t i = 0; i < st->n_clients; i++)
		lies += st->clients[i]->lies;
	godwit__share_reply__free_unpacked(st, NULL);
	print_message("most: %u descriptors, %llu KiB; longest generation %llu ms, %llu lies of those who are there\n", most_fds,
		      (unsigned long long)daemon_memory() >> 10, (unsigned long long)longest / GW_NS_PER_MS, (unsigned long long)lies);
	for (unsigned i = 0; i < HOSTILES; i++)
		let_go(&hostile[i]);
	for (end = gw_now_ns() + TEST_PATIENCE; !(go_on(&pair[0]) & go_on(&pair[1]));) {
		if (gw_now_ns() > end)
			fail_pair(pair);
		usleep(5000);
	}
	for (unsigned i = 0; i < 4; i++)
		share_vm_end(&pair[i / 2].vm[i % 2]);
	WAIT_FOR(ksmd_fds("godwit-chunk") == 0);
}

static void test_siege(void **state)
{
	if (!*state)
		skip();
	run_siege(state);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test_setup_teardown(test_siege, share_vm_with_daemon, share_vm_without_daemon) };

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests_name("ksmd-siege", tests, NULL, NULL);
}
