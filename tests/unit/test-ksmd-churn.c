// SPDX-License-Identifier: Apache-2.0
/*
 * A thousand VMs come and go beside one that stays: each end of a session gives back what only that VM used, and neither the daemon nor the
 * VM that stays grows by it. All of it is measured from outside: descriptors, mappings, memory.
 */
#include "cmocka-all.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "ksmd-process.h"
#include "lib/clock.h"
#include "lib/util.h"
#include "share-peer.h"
#include "share-vm.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PLAIN 0 /* memory and mappings are mostly the sanitizer's */
#define VMS 100u
#define WARM_UP 50u
#else
#define PLAIN 1
#define VMS 1000u
#define WARM_UP 200u
#endif
#define AT_ONCE 5u
#define BATCH 50u

/* Pages of the one that stays: COMMON of them are everyone's, the rest its own. */
#define LONG_PAGES 1536u
#define COMMON 512u
/* Of each of the others: some of what is common, what its group of four has, twice the same of its own, and its own. */
#define SHORT_PAGES 448u
#define OF_COMMON 128u
#define OF_GROUP 96u
#define TWICE 64u

/* A content that nobody else has. */
static uint64_t own(unsigned vm)
{
	return 1000000 + vm * 1000ull;
}

static uint64_t of_group(unsigned vm)
{
	return 100000000 + vm / 4 * 1000ull;
}

/* ---- VMs that come and go ---- */

static void die(void)
{
	kill(getpid(), SIGKILL);
}

/* Where each part of a VM's memory lies, and what is in it. */
struct part {
	unsigned page, count;
	uint64_t seed;
};

static unsigned parts(unsigned vm, struct part part[5])
{
	part[0] = (struct part){ 0, OF_COMMON, 1 + vm % 4 * OF_COMMON };
	part[1] = (struct part){ 128, OF_GROUP, of_group(vm) };
	part[2] = (struct part){ 224, TWICE, own(vm) };
	part[3] = (struct part){ 288, TWICE, own(vm) };
	part[4] = (struct part){ 352, SHORT_PAGES - 352, own(vm) + TWICE };
	return 5;
}

/* The real client. `how` 0: ends; 1: is killed when it shares; 2: is killed some time before. */
static void run_vm(unsigned vm, unsigned how, int sock)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_sharer_stats s;
	struct share_vm v;
	struct part part[5];
	uint64_t end = gw_now_ns() + TEST_PATIENCE;

	if (share_vm_try(SHORT_PAGES, &share_vm_quick, &v, &err) < 0)
		_exit(2);
	for (unsigned i = 0; i < parts(vm, part); i++)
		share_vm_fill(&v, part[i].page, part[i].count, part[i].seed);
	gw_sharer_attach(v.sharer, sock);
	if (how == 2) {
		usleep(vm * 7919 % 15000);
		die();
	}
	do {
		usleep(1000);
		s = share_vm_stats(&v);
	} while (s.shared_pages < OF_COMMON + 2 * TWICE && gw_now_ns() < end);
	if (s.shared_pages < OF_COMMON + 2 * TWICE) {
		print_error("VM %u shares %llu pages after %llu passes, merged %llu, differing %llu, busy %llu, failed %llu, over budget %llu; %s %s\n", vm,
			    (unsigned long long)s.shared_pages, (unsigned long long)s.passes, (unsigned long long)s.merged_pages,
			    (unsigned long long)s.differing_pages, (unsigned long long)s.busy_pages, (unsigned long long)s.failed_pages,
			    (unsigned long long)s.over_budget_pages, s.attached ? "attached" : s.reason, s.limit);
		_exit(3);
	}
	for (unsigned i = 0; i < parts(vm, part); i++) {
		if (!share_vm_holds(&v, part[i].page, part[i].count, part[i].seed))
			_exit(4);
	}
	if (how == 1)
		die();
	share_vm_free(&v);
}

/* By hand, to end where the real client would not: 3 in the middle of an answer, 4 with chunks received and packets unread. */
static void run_peer(unsigned vm, unsigned how, int sock)
{
	struct gw_share_page page[GW_SHARE_MAX_PAGES] = { 0 };
	struct share_peer p;

	share_peer_connect(&p, sock, SHORT_PAGES);
	for (unsigned i = 0; i < SHORT_PAGES; i++)
		p.content[i] = i < 256 ? vm * 1000 + i % 128 : vm * 1000 + i;
	p.silent = how == 3;
	share_peer_report(&p, 0, SHORT_PAGES);
	while (p.fetches == 0 && share_peer_step(&p, 10000))
		;
	if (how == 3) {
		for (unsigned i = 0; i < GW_SHARE_MAX_PAGES; i++) {
			page[i].page = p.fetched_page[i];
			share_content(p.content[page[i].page], page[i].bytes);
		}
		share_peer_say(&p, GW_SHARE_PAGES, p.last_cookie, page, GW_SHARE_MAX_PAGES, sizeof(page[0]), -1);
	} else {
		share_peer_sync(&p, 1);
		while (p.chunks == 0 && share_peer_step(&p, 10000))
			;
		share_peer_report(&p, 0, SHORT_PAGES);
	}
	die();
}

static pid_t start_vm(unsigned vm)
{
	unsigned how = vm % 8 < 5 ? vm % 8 : vm % 3;
	char name[32];
	pid_t pid;
	int sock;

	snprintf(name, sizeof(name), "vm-%u", vm);
	sock = ksmd_attach(name, "one");
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		gw_closep(&ksmd.control);
		if (how < 3)
			run_vm(vm, how, sock);
		else
			run_peer(vm, how, sock);
		_exit(0);
	}
	close(sock);
	return pid;
}

static void await_one(void)
{
	int status;
	pid_t pid = waitpid(-1, &status, 0);

	assert_true(pid > 0 && pid != ksmd.pid);
	if (WIFEXITED(status) ? WEXITSTATUS(status) != 0 : WTERMSIG(status) != SIGKILL)
		fail_msg("a VM ended with status %x", (unsigned)status);
}

static void run_vms(unsigned first, unsigned n)
{
	unsigned running = 0;

	for (unsigned i = 0; i < n; i++) {
		if (running == AT_ONCE) {
			await_one();
			running--;
		}
		start_vm(first + i);
		running++;
	}
	for (; running > 0; running--)
		await_one();
}

/* ---- what is seen from outside ---- */

struct seen {
	uint64_t chunk_bytes;     /* of files that the daemon or the VM that stays has open */
	unsigned fds, long_fds;   /* of the daemon, of the VM */
	unsigned maps, long_maps; /* mappings, likewise */
	uint64_t anonymous;       /* bytes of the daemon */
	uint64_t rss;
};

static unsigned count_fds(pid_t pid)
{
	char path[64];
	unsigned n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static unsigned count_maps(pid_t pid)
{
	gw_autofree char *line = NULL;
	char path[64];
	gw_autofile *f = NULL;
	unsigned n = 0;
	size_t cap = 0;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	f = fopen(path, "re");
	while (getline(&line, &cap, f) > 0)
		n++;
	return n;
}

static uint64_t rollup(pid_t pid, const char *field)
{
	gw_autofree char *line = NULL;
	char path[64];
	gw_autofile *f = NULL;
	size_t cap = 0;
	uint64_t kib = 0;

	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", pid);
	f = fopen(path, "re");
	while (getline(&line, &cap, f) > 0) {
		if (strncmp(line, field, strlen(field)) == 0)
			kib = strtoull(line + strlen(field), NULL, 10);
	}
	return kib << 10;
}

/* Memory of the chunks among a process' descriptors, each file once. */
static uint64_t chunk_bytes(pid_t pid, ino_t *known, unsigned *nknown, unsigned room)
{
	char path[64], to[64];
	uint64_t bytes = 0;
	struct dirent *e;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	while ((e = readdir(dir))) {
		ssize_t len = readlinkat(dirfd(dir), e->d_name, to, sizeof(to) - 1);
		struct stat st;
		unsigned i = 0;

		to[len > 0 ? len : 0] = '\0';
		if (!strstr(to, "godwit-chunk") || fstatat(dirfd(dir), e->d_name, &st, 0) < 0)
			continue;
		while (i < *nknown && known[i] != st.st_ino)
			i++;
		if (i < *nknown || i == room)
			continue;
		known[(*nknown)++] = st.st_ino;
		bytes += (uint64_t)st.st_blocks * 512;
	}
	closedir(dir);
	return bytes;
}

static struct seen look(const struct share_vm_process *vm)
{
	ino_t known[512];
	unsigned n = 0;
	struct seen s;

	s.chunk_bytes = chunk_bytes(ksmd.pid, known, &n, ARRAY_SIZE(known));
	s.chunk_bytes += chunk_bytes(vm->pid, known, &n, ARRAY_SIZE(known));
	s.fds = count_fds(ksmd.pid);
	s.long_fds = count_fds(vm->pid);
	s.maps = count_maps(ksmd.pid);
	s.long_maps = count_maps(vm->pid);
	s.anonymous = rollup(ksmd.pid, "Anonymous:");
	s.rss = rollup(ksmd.pid, "Rss:");
	return s;
}

static void print(const char *when, const struct seen *s, uint64_t ns)
{
	print_message("%s: chunks %llu KiB, daemon: %u descriptors, %u mappings, %llu KiB (Rss %llu KiB), VM: %u descriptors, %u mappings; "
		      "back after %llu ms\n",
		      when, (unsigned long long)s->chunk_bytes >> 10, s->fds, s->maps, (unsigned long long)s->anonymous >> 10,
		      (unsigned long long)s->rss >> 10, s->long_fds, s->long_maps, (unsigned long long)ns / GW_NS_PER_MS);
}

/* Of what the VM that stays shares, an eighth more may be there, and little besides. */
static bool is_back(const struct share_vm_process *vm, struct seen *s)
{
	Godwit__ShareReply *st = ksmd_figures();
	size_t n = st->n_clients;

	godwit__share_reply__free_unpacked(st, NULL);
	*s = look(vm);
	return n == 1 && s->chunk_bytes <= (COMMON + COMMON / 8 + 16) * 4096ull;
}

/* Where it has stayed. */
static void explain(struct share_vm_process *vm)
{
	struct gw_sharer_stats s = share_vm_ask_stats(vm);
	Godwit__ShareReply *st = ksmd_figures();

	for (size_t i = 0; i < st->n_clients; i++)
		print_message("daemon: %s maps %llu pages of %llu chunks\n", st->clients[i]->vm, (unsigned long long)st->clients[i]->live_pages,
			      (unsigned long long)st->clients[i]->chunks);
	for (size_t i = 0; i < st->n_domains; i++)
		print_message("daemon: %llu pages in %llu chunks, %llu compacted\n", (unsigned long long)st->domains[i]->stored_pages,
			      (unsigned long long)st->domains[i]->chunks, (unsigned long long)st->domains[i]->compacted_chunks);
	print_message("VM: %llu pages of %llu chunks, broken %llu, differing %llu, failed %llu, passes %llu\n", (unsigned long long)s.shared_pages,
		      (unsigned long long)s.chunks, (unsigned long long)s.broken_pages, (unsigned long long)s.differing_pages,
		      (unsigned long long)s.failed_pages, (unsigned long long)s.passes);
	godwit__share_reply__free_unpacked(st, NULL);
}

/* Everything that only gone VMs used is given back; what is printed is to be within 5 s on an idle machine. */
static struct seen until_back(const char *when, struct share_vm_process *vm)
{
	uint64_t began = gw_now_ns();
	struct seen s;

	while (!is_back(vm, &s)) {
		if (gw_now_ns() - began > TEST_PATIENCE) {
			print(when, &s, gw_now_ns() - began);
			explain(vm);
			fail_msg("memory of VMs that are gone is not given back");
		}
		usleep(20000);
	}
	print(when, &s, gw_now_ns() - began);
	return s;
}

static void run_nothing_grows(void **state)
{
	/* It goes over its memory once: what comes later comes from the others. */
	const struct gw_sharer_config once = { .cpu_percent = 100, .interval_ns = 3600 * GW_NS_PER_SEC };
	struct share_vm_process vm = share_vm_start(ksmd_attach("long", "one"), LONG_PAGES, &once);
	unsigned vms = getenv("GODWIT_CHURN") ? (unsigned)strtoul(getenv("GODWIT_CHURN"), NULL, 10) : VMS;
	struct seen before, after = { 0 };

	share_vm_tell_fill(&vm, 0, COMMON, 1);
	share_vm_tell_fill(&vm, COMMON, LONG_PAGES - COMMON, 500000000);
	share_vm_tell_attach(&vm);
	WAIT_FOR(share_vm_ask_stats(&vm).passes == 1);
	run_vms(0, WARM_UP);
	before = until_back("warm", &vm);
	for (unsigned i = 0; i < vms; i += BATCH) {
		char when[32];

		run_vms(WARM_UP + i, BATCH);
		snprintf(when, sizeof(when), "%u VMs", i + BATCH);
		after = until_back(when, &vm);
	}
	assert_true(share_vm_ask_holds(&vm, 0, COMMON, 1));
	assert_true(share_vm_ask_holds(&vm, COMMON, LONG_PAGES - COMMON, 500000000));
	assert_int_equal(share_vm_ask_stats(&vm).shared_pages, COMMON);
	/* A chunk more or less, as it comes, and a heap's usual holes. */
	assert_in_range(after.fds, 0, before.fds + 2);
	assert_in_range(after.long_fds, 0, before.long_fds + 2);
	if (PLAIN) {
		assert_in_range(after.maps, 0, before.maps + 8);
		assert_in_range(after.long_maps, 0, before.long_maps + 16);
		assert_in_range(after.anonymous, 0, before.anonymous + (512 << 10));
	}
	share_vm_end(&vm);
}

static void test_nothing_grows(void **state)
{
	if (!*state)
		skip();
	run_nothing_grows(state);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test_setup_teardown(test_nothing_grows, share_vm_with_daemon, share_vm_without_daemon) };

	return cmocka_run_group_tests_name("ksmd-churn", tests, NULL, NULL);
}
