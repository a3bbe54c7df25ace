// SPDX-License-Identifier: Apache-2.0
/*
 * The machine on real KVM, with a real Linux in it: state survives a round trip into a new VM, written pages are found, stopping is
 * quick, a reset boots anew. Needs /dev/kvm and, in the environment, GODWIT_TEST_KERNEL and GODWIT_TEST_INITRD (a shell on the
 * serial console that says GUEST-READY); skipped without. tests/lab/test-kvm.py runs it in an emulated host.
 */
#include "tests/unit/cmocka-all.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/ram/ram.h"
#include "lib/util.h"
#include "vmm/prefault.h"
#include "vmm/tty.h"
#include "vmm/vm.h"

#define MEMORY (256ull << 20)
#define CPUS 2
#define DAMAGES 100u

struct guest {
	struct gw_vm_config config;
	struct gw_vm *vm;
	int console;
	struct gw_buf said;
	size_t seen; /* how much of it an expectation has used up */
};

#define check_ok(expr, err) \
	do { \
		if ((expr) < 0) \
			fail_msg("%s: %s", #expr, gw_error_text(err)); \
	} while (0)

static bool can_run(void)
{
	return access("/dev/kvm", R_OK | W_OK) == 0 && getenv("GODWIT_TEST_KERNEL") && getenv("GODWIT_TEST_INITRD");
}

static void build(struct guest *g, bool incoming, bool bitmap)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_tty_client client = { .owned = true, .socket = true, .replay = true };
	int pair[2];

	g->config = (struct gw_vm_config){
		.name = "test",
		.memory = MEMORY,
		.cpus = CPUS,
		.kernel = getenv("GODWIT_TEST_KERNEL"),
		.initrd = getenv("GODWIT_TEST_INITRD"),
		.cmdline = "console=ttyS0 quiet",
		.incoming = incoming,
		.dirty_bitmap = bitmap,
	};
	g->said.len = g->seen = 0;
	check_ok(gw_vm_new(&g->config, &g->vm, &err), &err);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	g->console = pair[1];
	client.in = client.out = pair[0];
	check_ok(gw_tty_attach(gw_vm_console(g->vm), &client, &err), &err);
}

static void destroy(struct guest *g)
{
	gw_vm_free(g->vm);
	g->vm = NULL;
	gw_closep(&g->console);
}

/* Reads the console until it has said `text` once more. */
static void expect(struct guest *g, const char *text, unsigned seconds)
{
	uint64_t deadline = gw_now_ns() + seconds * GW_NS_PER_SEC;

	for (;;) {
		const char *found = g->said.len > g->seen ?
			memmem(g->said.data + g->seen, g->said.len - g->seen, text, strlen(text)) : NULL;
		char *room;
		ssize_t n;

		if (found) {
			g->seen = (size_t)((const uint8_t *)found - g->said.data) + strlen(text);
			return;
		}
		if (gw_wait_fd(g->console, POLLIN, deadline) < 0)
			fail_msg("the guest did not say \"%s\" but: %.*s", text, (int)g->said.len, (const char *)g->said.data);
		room = gw_buf_reserve(&g->said, 4096);
		assert_non_null(room);
		n = read(g->console, room, 4096);
		assert_true(n > 0);
		g->said.len += (size_t)n;
	}
}

static void say(struct guest *g, const char *line)
{
	assert_int_equal(gw_write_full(g->console, line, strlen(line), gw_now_ns() + TEST_PATIENCE), 0);
}

static void boot(struct guest *g, bool bitmap)
{
	build(g, false, bitmap);
	gw_vm_run(g->vm);
	expect(g, "GUEST-READY", 120);
}

/* Moves the guest into a new VM: state by save and load, memory by copy. It does not run yet. */
static void carry_over(struct guest *g, bool prefault)
{
	struct gw_error err = GW_ERROR_INIT;
	gw_autobuf state = GW_BUF_INIT, again = GW_BUF_INIT;
	uint8_t before[16], after[16];
	uint64_t size = gw_ram_size(gw_vm_ram(g->vm));
	uint8_t *copy = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(copy, MAP_FAILED);
	gw_vm_stop(g->vm);
	assert_false(gw_vm_running(g->vm));
	gw_ram_digest(gw_vm_ram(g->vm), before);
	check_ok(gw_vm_save(g->vm, &state, &err), &err);
	/* Saving changes nothing, guest memory least of all. */
	check_ok(gw_vm_save(g->vm, &again, &err), &err);
	gw_ram_digest(gw_vm_ram(g->vm), after);
	assert_memory_equal(before, after, sizeof(before));
	assert_int_equal(gw_ram_read(gw_vm_ram(g->vm), 0, copy, size), 0);
	destroy(g);
	build(g, true, false);
	assert_int_equal(gw_ram_write(gw_vm_ram(g->vm), 0, copy, size), 0);
	munmap(copy, size);
	if (prefault)
		gw_vm_prefault(g->vm);
	check_ok(gw_vm_load(g->vm, state.data, state.len, &err), &err);
	gw_ram_digest(gw_vm_ram(g->vm), after);
	assert_memory_equal(before, after, sizeof(before));
}

static void transplant(struct guest *g)
{
	carry_over(g, true);
	gw_vm_run(g->vm);
}

/* Page faults of all guests of this host so far; false when the kernel does not show them. */
static bool read_faults(uint64_t *ret)
{
	unsigned long long n;
	FILE *f = fopen("/sys/kernel/debug/kvm/pf_taken", "re");
	bool ok = f && fscanf(f, "%llu", &n) == 1;

	if (f)
		fclose(f);
	*ret = ok ? n : 0;
	return ok;
}

/* Faults that the guest takes from its arrival to its first answer. */
static uint64_t faults_of_arrival(struct guest *g, bool prefault)
{
	uint64_t before, after;

	carry_over(g, prefault);
	assert_true(read_faults(&before));
	gw_vm_run(g->vm);
	say(g, "echo here-$((6*7))\n");
	expect(g, "here-42", 60);
	assert_true(read_faults(&after));
	return after - before;
}

static void test_prefault(void **arg)
{
	struct guest g = { .said = GW_BUF_INIT };
	uint64_t faults, without, with;

	if (!can_run() || !read_faults(&faults))
		skip();
	boot(&g, false);
	without = faults_of_arrival(&g, false);
	with = faults_of_arrival(&g, true);
	print_message("faults of an arrived guest: %llu, with its memory mapped before %llu\n", (unsigned long long)without, (unsigned long long)with);
	assert_true(without > 0);
	assert_true(with <= without / 2);
	destroy(&g);
	gw_buf_release(&g.said);
}

static void test_round_trip(void **arg)
{
	struct guest g = { .said = GW_BUF_INIT };
	char line[80], answer[40];

	if (!can_run())
		skip();
	boot(&g, false);
	/* What the emulation of a host lets go wrong at boot is none of our business here. */
	say(&g, "dmesg -c > /dev/null; x=0; (while :; do x=$((x+1)); done) & (while :; do dd if=/dev/zero of=/tmp/f bs=64k count=64 2>/dev/null; done) &\n");
	for (int i = 0; i < 10; i++) {
		snprintf(line, sizeof(line), "sleep 0.2; echo round-$((%d*3))-\n", i);
		snprintf(answer, sizeof(answer), "round-%d-", i * 3);
		say(&g, line);
		expect(&g, answer, 60);
		transplant(&g);
	}
	say(&g, "dmesg | grep -E 'BUG|Oops|stall|lockup|unstable|WARNING' | sed 's/^/bad:/'; echo checked-$((6*7))\n");
	expect(&g, "checked-42", 60);
	/* The echo of the command has it once. */
	if (memmem(g.said.data, g.said.len, "\nbad:", 5))
		fail_msg("the guest complains: %.*s", (int)g.said.len, (const char *)g.said.data);
	destroy(&g);
	gw_buf_release(&g.said);
}

/* The wall clock goes on over a stop: what passed outside has passed inside. */
static void test_wall_clock(void **arg)
{
	struct guest g = { .said = GW_BUF_INIT };
	uint64_t inside, outside;
	char *end;

	if (!can_run())
		skip();
	boot(&g, false);
	gw_vm_stop(g.vm);
	poll(NULL, 0, 2500); /* the length of the blackout is the test */
	transplant(&g);
	say(&g, "echo now=$(date +%s).\n");
	/* The echo of the command says "now=$", the answer digits. */
	expect(&g, "now=1", 60);
	expect(&g, ".", 60);
	outside = gw_realtime_ns() / GW_NS_PER_SEC;
	end = (char *)g.said.data + g.seen - 1;
	while (end > (char *)g.said.data && end[-1] != '=')
		end--;
	inside = strtoull(end, NULL, 10);
	assert_in_range(inside, outside - 2, outside + 1);
	destroy(&g);
	gw_buf_release(&g.said);
}

static void test_stop_is_quick(void **arg)
{
	struct guest g = { .said = GW_BUF_INIT };
	uint64_t total = 0, worst = 0;

	if (!can_run())
		skip();
	boot(&g, false);
	say(&g, "(while :; do :; done) & (while :; do :; done) &\n");
	for (int i = 0; i < 200; i++) {
		uint64_t begin, took;

		poll(NULL, 0, i % 7); /* different moments of the guest */
		begin = gw_now_ns();
		gw_vm_stop(g.vm);
		took = gw_now_ns() - begin;
		total += took;
		worst = GW_MAX(worst, took);
		gw_vm_run(g.vm);
	}
	print_message("stop: mean %llu us, worst %llu us\n", (unsigned long long)(total / 200000),
		      (unsigned long long)(worst / 1000));
	say(&g, "echo alive-$((6*7))\n");
	expect(&g, "alive-42", 60);
	destroy(&g);
	gw_buf_release(&g.said);
}

static void copy_pages(struct gw_ram *ram, const uint64_t *bitmap, uint8_t *shadow)
{
	for (uint64_t i = 0; i < gw_ram_pages(ram); i++) {
		if (!bitmap || (bitmap[i / 64] >> (i % 64) & 1))
			memcpy(shadow + i * GW_PAGE_SIZE, gw_ram_page(ram, i), GW_PAGE_SIZE);
	}
}

/* What pre-copy does: a copy that is kept up by the told pages alone must in the end be equal. */
static void check_dirty(bool bitmap, const char *name)
{
	struct gw_error err = GW_ERROR_INIT;
	struct guest g = { .said = GW_BUF_INIT };
	struct gw_dirty_source source;
	struct gw_ram *ram;
	uint64_t *dirty, *peeked;
	uint8_t *shadow;

	boot(&g, bitmap);
	say(&g, "(while :; do dd if=/dev/urandom of=/tmp/f bs=64k count=128 2>/dev/null; done) &\n");
	ram = gw_vm_ram(g.vm);
	source = gw_vm_dirty_source(g.vm);
	assert_string_equal(source.ops->name, name);
	dirty = calloc(gw_ram_bitmap_words(ram), sizeof(uint64_t));
	shadow = mmap(NULL, gw_ram_size(ram), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	peeked = calloc(gw_ram_bitmap_words(ram), sizeof(uint64_t));
	for (int session = 0; session < 3; session++) {
		uint64_t told = 0, seen = 0;

		check_ok(source.ops->start(source.self, &err), &err);
		copy_pages(ram, NULL, shadow);
		for (int round = 0; round < 6; round++) {
			memset(dirty, 0, gw_ram_bitmap_words(ram) * sizeof(uint64_t));
			if (round == 5)
				gw_vm_stop(g.vm);
			else
				poll(NULL, 0, 100); /* lets the guest write */
			memset(peeked, 0, gw_ram_bitmap_words(ram) * sizeof(uint64_t));
			/* Looking takes nothing away. */
			check_ok(source.ops->peek(source.self, peeked, &err), &err);
			check_ok(source.ops->sync(source.self, dirty, &err), &err);
			for (size_t i = 0; i < gw_ram_bitmap_words(ram); i++) {
				assert_int_equal(peeked[i] & ~dirty[i], 0);
				seen += (uint64_t)__builtin_popcountll(peeked[i]);
				told += (uint64_t)__builtin_popcountll(dirty[i]);
			}
			copy_pages(ram, dirty, shadow);
		}
		assert_true(told > 0 && seen > 0);
		for (uint64_t i = 0; i < gw_ram_pages(ram); i++) {
			if (memcmp(shadow + i * GW_PAGE_SIZE, gw_ram_page(ram, i), GW_PAGE_SIZE))
				fail_msg("%s: page %llu was written and not told", name, (unsigned long long)i);
		}
		print_message("%s: %llu pages told\n", name, (unsigned long long)told);
		source.ops->stop(source.self);
		gw_vm_run(g.vm);
	}
	say(&g, "echo alive-$((6*7))\n");
	expect(&g, "alive-42", 60);
	munmap(shadow, gw_ram_size(ram));
	free(dirty);
	free(peeked);
	destroy(&g);
	gw_buf_release(&g.said);
}

static void test_dirty_ring(void **arg)
{
	if (!can_run())
		skip();
	check_dirty(false, "kvm-ring");
}

static void test_dirty_bitmap(void **arg)
{
	if (!can_run())
		skip();
	check_dirty(true, "kvm-bitmap");
}

/* Pages that the guest's writer dirties in a second and a half. */
static uint64_t dirtied(struct guest *g, const struct gw_dirty_source *source)
{
	struct gw_error err = GW_ERROR_INIT;
	size_t words = gw_ram_bitmap_words(gw_vm_ram(g->vm));
	uint64_t *dirty = calloc(words, sizeof(uint64_t)), pages = 0;

	assert_non_null(dirty);
	for (int i = 0; i < 30; i++) {
		memset(dirty, 0, words * sizeof(uint64_t));
		poll(NULL, 0, 50);
		check_ok(source->ops->sync(source->self, dirty, &err), &err);
		for (size_t k = 0; k < words; k++)
			pages += (uint64_t)__builtin_popcountll(dirty[k]);
	}
	free(dirty);
	return pages;
}

/* A slowed guest writes less, can be stopped at any moment, travels, and is none the worse for it afterwards. */
static void check_slow(bool bitmap)
{
	struct gw_error err = GW_ERROR_INIT;
	struct guest g = { .said = GW_BUF_INIT };
	struct gw_dirty_source source;
	uint64_t free_pages, slow_pages;

	boot(&g, bitmap);
	say(&g, "(while :; do dd if=/dev/zero of=/tmp/f bs=64k count=128 2>/dev/null; done) &\n");
	source = gw_vm_dirty_source(g.vm);
	check_ok(source.ops->start(source.self, &err), &err);
	free_pages = dirtied(&g, &source);
	gw_vm_slow(g.vm, 90);
	slow_pages = dirtied(&g, &source);
	print_message("%s: %llu pages, slowed %llu\n", source.ops->name, (unsigned long long)free_pages, (unsigned long long)slow_pages);
	assert_true(slow_pages < free_pages / 2);
	for (int i = 0; i < 100; i++) {
		poll(NULL, 0, i % 23); /* different moments of the quota's period */
		gw_vm_stop(g.vm);
		gw_vm_run(g.vm);
	}
	gw_vm_slow(g.vm, 50);
	gw_vm_slow(g.vm, 0);
	source.ops->stop(source.self);
	say(&g, "kill $!; echo alive-$((6*7))\n");
	expect(&g, "alive-42", 60);
	gw_vm_slow(g.vm, 75);
	transplant(&g); /* frees the slowed one */
	say(&g, "echo alive-$((6*9))\n");
	expect(&g, "alive-54", 60);
	destroy(&g);
	gw_buf_release(&g.said);
}

static void test_slow(void **arg)
{
	if (!can_run())
		skip();
	check_slow(false);
	check_slow(true);
}

static void test_reset(void **arg)
{
	struct gw_error err = GW_ERROR_INIT;
	struct guest g = { .said = GW_BUF_INIT };
	enum gw_vm_event event;
	char reason[128];

	if (!can_run())
		skip();
	boot(&g, false);
	for (int i = 0; i < 2; i++) {
		say(&g, "reboot -f\n");
		assert_int_equal(gw_wait_fd(gw_vm_event_fd(g.vm), POLLIN, gw_now_ns() + 60 * GW_NS_PER_SEC), 0);
		assert_int_equal(gw_vm_next_event(g.vm, &event, reason), 0);
		assert_int_equal(event, GW_VM_RESET);
		gw_vm_stop(g.vm);
		check_ok(gw_vm_reset(g.vm, &err), &err);
		gw_vm_run(g.vm);
		expect(&g, "GUEST-READY", 120);
	}
	say(&g, "poweroff -f\n");
	assert_int_equal(gw_wait_fd(gw_vm_event_fd(g.vm), POLLIN, gw_now_ns() + 60 * GW_NS_PER_SEC), 0);
	assert_int_equal(gw_vm_next_event(g.vm, &event, reason), 0);
	assert_int_equal(event, GW_VM_POWEROFF);
	destroy(&g);
	gw_buf_release(&g.said);
}

/* A damaged state is refused with words, and never brings the process down. */
static void test_hostile_state(void **arg)
{
	struct gw_error err = GW_ERROR_INIT;
	struct guest g = { .said = GW_BUF_INIT };
	gw_autobuf state = GW_BUF_INIT;
	unsigned refused = 0;

	if (!can_run())
		skip();
	boot(&g, false);
	gw_vm_stop(g.vm);
	check_ok(gw_vm_save(g.vm, &state, &err), &err);
	destroy(&g);
	build(&g, true, false);
	for (size_t i = 0; i < DAMAGES; i++) {
		gw_autobuf bad = GW_BUF_INIT;

		assert_int_equal(gw_buf_append(&bad, state.data, state.len), 0);
		bad.data[(i * 7919) % bad.len] ^= (uint8_t)(1u << (i % 8));
		err = (struct gw_error)GW_ERROR_INIT;
		if (gw_vm_load(g.vm, bad.data, bad.len - (i % 3 ? 0 : i), &err) < 0) {
			assert_true(err.code && err.msg[0]);
			refused++;
		}
	}
	print_message("%u of %u damaged states refused\n", refused, DAMAGES);
	assert_true(refused > 0);
	check_ok(gw_vm_load(g.vm, state.data, state.len, &err), &err);
	destroy(&g);
	gw_buf_release(&g.said);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_wall_clock),
		cmocka_unit_test(test_stop_is_quick),
		cmocka_unit_test(test_dirty_ring),
		cmocka_unit_test(test_dirty_bitmap),
		cmocka_unit_test(test_slow),
		cmocka_unit_test(test_prefault),
		cmocka_unit_test(test_reset),
		cmocka_unit_test(test_hostile_state),
	};

	/* One test alone: by a pattern of its name. */
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
