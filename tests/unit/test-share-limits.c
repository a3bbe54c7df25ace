// SPDX-License-Identifier: Apache-2.0
/*
 * Sharing where the kernel can less or allows less: what remains, and what is said of it. Each VM is a process of its own, for which system calls
 * fail (deny.h), mappings run out, or privileges are gone.
 */
#include "cmocka-all.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "deny.h"
#include "ksmd-process.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/ram/pagemap.h"
#include "lib/util.h"
#include "share-vm.h"

#define PAGES 2048u
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true /* it needs mappings at any time, or it ends the process */
#else
#define SANITIZED false
#endif

static void need_sharing(void **state)
{
	if (!*state)
		skip();
}

static struct share_vm_process vm_with(const char *name, const struct gw_sharer_config *config, void (*before)(void))
{
	return share_vm_start_after(ksmd_attach(name, "one"), PAGES, config, before);
}

static struct gw_sharer_stats ask(struct share_vm_process *p)
{
	return share_vm_ask_stats(p);
}

/* As on Linux 6.1: everything is shared all the same, each pass costs more, and that is said. */
static void test_no_pagemap_scan(void **state)
{
	struct share_vm_process a, b;
	uint64_t hashed, passes;

	need_sharing(state);
	a = vm_with("a", &share_vm_quick, deny_pagemap_scan);
	b = vm_with("b", &share_vm_quick, NULL);
	share_vm_tell_fill(&a, 0, 600, 1);
	share_vm_tell_fill(&a, 1000, 100, 100000);
	share_vm_tell_fill(&b, 200, 600, 1);
	share_vm_tell_attach(&a);
	share_vm_tell_attach(&b);
	WAIT_FOR(ask(&a).shared_pages == 600 && ask(&b).shared_pages == 600);
	assert_false(ask(&a).tracks);
	assert_non_null(strstr(ask(&a).limit, "PAGEMAP_SCAN"));
	assert_string_equal(ask(&a).reason, "");
	/* Written, and equal again. */
	share_vm_tell_fill(&a, 50, 10, 7777777);
	WAIT_FOR(ask(&a).broken_pages == 10);
	share_vm_tell_fill(&a, 50, 10, 51);
	WAIT_FOR(ask(&a).broken_pages == 0 && ask(&a).shared_pages == 600);
	/* What is not shared is read by every pass; what is shared by none. */
	hashed = ask(&a).hashed_pages;
	passes = ask(&a).passes;
	WAIT_FOR(ask(&a).passes >= passes + 4);
	assert_in_range(ask(&a).hashed_pages - hashed, 300, (ask(&a).passes - passes + 1) * 110);
	assert_true(share_vm_ask_holds(&a, 0, 600, 1) && share_vm_ask_holds(&a, 1000, 100, 100000) && share_vm_ask_holds(&b, 200, 600, 1));
	share_vm_end(&a);
	share_vm_end(&b);
}

/* What a VM without userfaultfd is told; the child's report. */
struct refused {
	int r;
	char why[256];
};

static struct refused try_after(void (*before)(void))
{
	struct refused *said = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), ret;
	pid_t pid = fork();
	int status;

	assert_true(pid >= 0);
	if (pid == 0) {
		struct gw_error err = GW_ERROR_INIT;
		struct share_vm vm = { 0 };

		before();
		said->r = share_vm_try(PAGES, &share_vm_quick, &vm, &err);
		snprintf(said->why, sizeof(said->why), "%s", said->r < 0 ? gw_error_text(&err) : "");
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	ret = *said;
	munmap(said, 4096);
	return ret;
}

static void not_allowed(void)
{
	deny_userfaultfd(EPERM);
}

static void not_there(void)
{
	deny_userfaultfd(ENOSYS);
}

static void unprivileged(void)
{
	/* /proc/self stays ours. */
	if (setresgid(65534, 65534, 65534) < 0 || setresuid(65534, 65534, 65534) < 0 || prctl(PR_SET_DUMPABLE, 1) < 0)
		abort();
}

/* Nothing is merged without a userfaultfd: it is refused, with what would help. */
static void test_no_userfaultfd(void **state)
{
	gw_autofree char *allowed = NULL;
	struct refused said = try_after(not_allowed);
	size_t len;

	assert_int_equal(said.r, -EPERM);
	assert_non_null(strstr(said.why, "vm.unprivileged_userfaultfd"));
	said = try_after(not_there);
	assert_int_equal(said.r, -ENOSYS);
	assert_non_null(strstr(said.why, "CONFIG_USERFAULTFD"));
	if (getuid() != 0 || access("/dev/userfaultfd", F_OK) < 0 ||
	    gw_read_file("/proc/sys/vm/unprivileged_userfaultfd", 16, &allowed, &len, NULL) < 0 || allowed[0] != '0')
		return;
	said = try_after(unprivileged);
	assert_int_equal(said.r, -EPERM);
	assert_non_null(strstr(said.why, "/dev/userfaultfd"));
}

/* Every second page is common: each takes two mappings. */
static void fill_singles(struct share_vm_process *a, struct share_vm_process *b)
{
	share_vm_tell_fill(a, 0, PAGES, 1000000);
	share_vm_tell_fill(b, 0, PAGES, 2000000);
	for (unsigned i = 0; i < 600; i++) {
		share_vm_tell_fill(a, i * 2, 1, 1 + i * 10);
		share_vm_tell_fill(b, i * 2, 1, 1 + i * 10);
	}
	/* And a run, which is worth its mappings to the end. */
	share_vm_tell_fill(a, 1500, 400, 50000);
	share_vm_tell_fill(b, 1500, 400, 50000);
}

static bool hold_singles(struct share_vm_process *p, uint64_t own)
{
	bool ok = share_vm_ask_holds(p, 1500, 400, 50000) && share_vm_ask_holds(p, 1900, PAGES - 1900, own + 1900);

	for (unsigned i = 0; i < 600 && ok; i++)
		ok = share_vm_ask_holds(p, i * 2, 1, 1 + i * 10) && share_vm_ask_holds(p, i * 2 + 1, 1, own + i * 2 + 1);
	return ok;
}

/* The budget is kept, what is worth most is shared within it, and it is said. */
static void test_few_mappings(void **state)
{
	struct gw_sharer_config few = share_vm_quick;
	struct share_vm_process a, b;
	uint64_t passes;

	need_sharing(state);
	few.mappings = 200;
	a = vm_with("a", &few, NULL);
	b = vm_with("b", &share_vm_quick, NULL);
	fill_singles(&a, &b);
	share_vm_tell_attach(&b);
	WAIT_FOR(ask(&b).passes >= 1);
	share_vm_tell_attach(&a);
	WAIT_FOR(ask(&b).shared_pages == 1000 && ask(&a).over_budget_pages > 300);
	passes = ask(&a).passes;
	WAIT_FOR(ask(&a).passes >= passes + 2 && *ask(&a).limit);
	assert_in_range(ask(&a).mappings, 100, 200);
	assert_in_range(ask(&a).shared_pages, 440, 600);
	assert_non_null(strstr(ask(&a).limit, "of the 200 mappings"));
	assert_non_null(strstr(ask(&a).limit, "vm.max_map_count"));
	assert_string_equal(ask(&b).limit, "");
	assert_true(hold_singles(&a, 1000000) && hold_singles(&b, 2000000));
	share_vm_end(&a);
	share_vm_end(&b);
}

/* Where the limit is half as high as what the process has, and it has not been told: mappings that are there for nothing. */
static uint8_t *ballast;
#define BALLAST_LEFT 120u

static unsigned max_map_count(void)
{
	gw_autofree char *text = NULL;
	size_t len;

	return gw_read_file("/proc/sys/vm/max_map_count", 32, &text, &len, NULL) < 0 ? 0 : (unsigned)strtoul(text, NULL, 10);
}

/* Every second page with another protection is a mapping of its own. */
static void take_mappings(void)
{
	size_t n = max_map_count();

	ballast = mmap(NULL, n * 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	for (size_t i = 1; ballast != MAP_FAILED && i < n; i += 2) {
		if (mprotect(ballast + i * 4096, 4096, PROT_NONE) < 0)
			break;
	}
	/* What is left is enough to begin with. */
	for (size_t i = 1; i < BALLAST_LEFT; i += 2)
		(void)mprotect(ballast + i * 4096, 4096, PROT_READ);
}

/* None are left in the middle of it: windows fail, are told of, hold nobody up and change no byte; what can be had is shared. */
static void test_no_mappings_left(void **state)
{
	struct gw_sharer_config many = share_vm_quick;
	struct share_vm_process a, b;

	need_sharing(state);
	if (SANITIZED || max_map_count() == 0 || max_map_count() > 300000) {
		print_message("skipped: vm.max_map_count is %u, or a sanitizer needs mappings itself\n", max_map_count());
		skip();
	}
	many.mappings = 1u << 30;
	a = vm_with("a", &many, take_mappings);
	b = vm_with("b", &share_vm_quick, NULL);
	fill_singles(&a, &b);
	share_vm_tell_attach(&b);
	WAIT_FOR(ask(&b).passes >= 1);
	share_vm_tell_attach(&a);
	WAIT_FOR(ask(&b).shared_pages == 1000 && ask(&a).failed_pages > 0 && ask(&a).passes >= 2);
	WAIT_FOR(strstr(ask(&a).limit, "vm.max_map_count"));
	assert_true(ask(&a).attached);
	assert_true(hold_singles(&a, 1000000) && hold_singles(&b, 2000000));
	/* It can be written, too, wherever a window failed. */
	share_vm_tell_fill(&a, 0, PAGES, 3000000);
	assert_true(share_vm_ask_holds(&a, 0, PAGES, 3000000));
	share_vm_end(&a);
	share_vm_end(&b);
}

static int set_up(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct share_vm vm;
	int r = share_vm_try(16, &share_vm_quick, &vm, &err);

	if (r == 0) {
		share_vm_free(&vm);
		ksmd_start(NULL);
		*state = &ksmd;
		return 0;
	}
	print_message("skipped: %s\n", gw_error_text(&err));
	return 0;
}

static int tear_down(void **state)
{
	ksmd_kill();
	return 0;
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_no_pagemap_scan),
		TEST(test_no_userfaultfd),
		TEST(test_few_mappings),
		TEST(test_no_mappings_left),
	};

	return cmocka_run_group_tests_name("share-limits", tests, NULL, NULL);
}
