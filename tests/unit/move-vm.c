// SPDX-License-Identifier: Apache-2.0
/* A VM without KVM; see move-vm.h. */
#include "move-vm.h"

#include <errno.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/clock.h"
#include "lib/util.h"
#include "uffd-source.h"

static uint64_t next_random(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

/*
 * What a guest does: it writes while the engine reads. That race is the dirty source's to settle, so the thread sanitizer is
 * not to see it.
 */
__attribute__((no_sanitize("thread"), noinline)) static void guest_store(volatile uint64_t *at, uint64_t value)
{
	*at = value;
}

static void write_some(struct move_vm *vm, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		uint64_t page = next_random(&vm->rng) % vm->hot_pages;
		uint64_t offset = next_random(&vm->rng) % 512;
		uint64_t *at = (uint64_t *)gw_ram_page(vm->ram, page) + offset;

		/* One write in sixteen empties its page, as a guest that frees memory does; half of these by a balloon, where the log tells of it. */
		if (next_random(&vm->rng) % 16 == 0) {
			if (!vm->uffd && !vm->keeps && next_random(&vm->rng) % 2 == 0) {
				(void)gw_ram_discard(vm->ram, gw_ram_gpa(vm->ram, page), 4096);
				continue;
			}
			for (unsigned k = 0; k < 512; k++)
				guest_store((uint64_t *)gw_ram_page(vm->ram, page) + k, 0);
		} else {
			guest_store(at, ++vm->writes);
		}
		if (!vm->uffd)
			gw_ram_mark_dirty(vm->ram, gw_ram_gpa(vm->ram, page), 4096);
	}
}

/* What is due since *from_ns, so that the rate holds on a machine that wakes us late; not more than a tenth of a second's at a time. */
static void write_due(struct move_vm *vm, uint64_t *from_ns)
{
	uint64_t rate = vm->write_rate * (100 - __atomic_load_n(&vm->slowed, __ATOMIC_RELAXED)) / 100;
	uint64_t now = gw_now_ns();
	uint64_t due = GW_MIN(now - *from_ns, 100 * GW_NS_PER_MS) * rate / GW_NS_PER_SEC;

	if (due == 0)
		return;
	write_some(vm, (unsigned)due);
	*from_ns = now;
}

static void *writer_main(void *arg)
{
	struct move_vm *vm = arg;
	uint64_t from_ns = 0;

	pthread_mutex_lock(&vm->lock);
	while (!vm->quit) {
		if (!vm->run) {
			/* Up to the very last moment: these are in nobody's log until the sync after the stop. */
			if (!vm->parked && vm->write_rate)
				write_some(vm, 8);
			vm->parked = true;
			pthread_cond_broadcast(&vm->change);
			pthread_cond_wait(&vm->change, &vm->lock);
			from_ns = gw_now_ns();
			continue;
		}
		vm->parked = false;
		pthread_mutex_unlock(&vm->lock);
		if (vm->write_rate)
			write_due(vm, &from_ns);
		usleep(vm->write_rate ? 1000 : 200);
		pthread_mutex_lock(&vm->lock);
	}
	pthread_mutex_unlock(&vm->lock);
	return NULL;
}

void move_vm_init(struct move_vm *vm, uint64_t size, uint64_t hole)
{
	struct gw_error err = GW_ERROR_INIT;

	memset(vm, 0, sizeof(*vm));
	if (gw_ram_new(size, hole ? hole : size, hole ? hole * 2 : size, &vm->ram, &err) < 0) {
		fprintf(stderr, "%s\n", gw_error_text(&err));
		exit(1);
	}
	vm->hot_pages = gw_ram_pages(vm->ram);
	vm->rng = 88172645463325252ull;
	vm->cpus = 1;
	vm->parked = true;
	pthread_mutex_init(&vm->lock, NULL);
	pthread_cond_init(&vm->change, NULL);
	if (pthread_create(&vm->thread, NULL, writer_main, vm))
		exit(1);
	vm->threaded = true;
}

bool move_vm_use_uffd(struct move_vm *vm)
{
	int r = gw_uffd_source_new(vm->ram, &vm->uffd);

	if (r < 0)
		fprintf(stderr, "SKIP: no userfaultfd with WP_ASYNC here (error %d)\n", -r);
	return r == 0;
}

void move_vm_release(struct move_vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	vm->quit = true;
	pthread_cond_broadcast(&vm->change);
	pthread_mutex_unlock(&vm->lock);
	pthread_join(vm->thread, NULL);
	gw_uffd_source_free(vm->uffd);
	gw_ram_free(vm->ram);
	pthread_mutex_destroy(&vm->lock);
	pthread_cond_destroy(&vm->change);
}

void move_vm_fill(struct move_vm *vm, uint64_t seed, unsigned zero_every)
{
	uint64_t rng = seed * 2 + 1;

	for (uint64_t i = 0; i < gw_ram_pages(vm->ram); i++) {
		uint64_t *p = gw_ram_page(vm->ram, i);

		if (zero_every && i % zero_every == 0)
			continue;
		for (unsigned k = 0; k < 512; k++)
			p[k] = next_random(&rng);
	}
}

void move_vm_run(struct move_vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	if (!vm->run) {
		vm->run = true;
		vm->runs++;
		pthread_cond_broadcast(&vm->change);
	}
	pthread_mutex_unlock(&vm->lock);
}

void move_vm_stop(struct move_vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	if (vm->run) {
		vm->stops++;
		vm->run = false;
		vm->parked = false;
	}
	while (!vm->parked)
		pthread_cond_wait(&vm->change, &vm->lock);
	pthread_mutex_unlock(&vm->lock);
}

bool move_vm_running(struct move_vm *vm)
{
	bool run;

	pthread_mutex_lock(&vm->lock);
	run = vm->run;
	pthread_mutex_unlock(&vm->lock);
	return run;
}

bool move_vm_catch_up(struct move_vm *vm, const struct move_vm *other)
{
	for (uint64_t i = 0; i < 50000000 && vm->rng != other->rng; i++)
		write_some(vm, 1);
	return vm->rng == other->rng;
}

bool move_vm_equal(const struct move_vm *a, const struct move_vm *b)
{
	unsigned n, m;
	const struct gw_ram_region *x = gw_ram_regions(a->ram, &n), *y = gw_ram_regions(b->ram, &m);

	for (unsigned i = 0; i < n && n == m; i++) {
		if (x[i].size != y[i].size || memcmp(x[i].hva, y[i].hva, x[i].size))
			return false;
	}
	return n == m && a->writes == b->writes && a->rng == b->rng;
}

bool move_vm_remembers(const struct move_vm *vm, uint64_t seed, unsigned zero_every)
{
	struct move_vm again;
	bool same;

	move_vm_init(&again, gw_ram_size(vm->ram), 0);
	again.hot_pages = vm->hot_pages;
	again.keeps = vm->keeps;
	move_vm_fill(&again, seed, zero_every);
	same = move_vm_catch_up(&again, vm) && move_vm_equal(&again, vm);
	move_vm_release(&again);
	return same;
}

static void op_slow(void *self, unsigned percent)
{
	struct move_vm *vm = self;

	__atomic_store_n(&vm->slowed, percent, __ATOMIC_RELAXED);
	vm->slowest = GW_MAX(vm->slowest, percent);
}

static void op_stop(void *self)
{
	move_vm_stop(self);
}

static void op_awaited(void *self, struct gw_move_talk *ret)
{
	struct move_vm *vm = self;

	ret->since_ns = vm->unanswered_ms ? gw_now_ns() - vm->unanswered_ms * GW_NS_PER_MS : 0;
	ret->longest_ns = vm->silent_ms * GW_NS_PER_MS;
	ret->answered[0] = vm->answered;
	ret->nanswered = 1;
}

static void op_run(void *self)
{
	struct move_vm *vm = self;

	for (unsigned i = 0; vm->touches_to_run && i < 4; i++)
		(void)*(volatile uint8_t *)gw_ram_page(vm->ram, i);
	move_vm_run(vm);
}

static int op_working_set_begin(void *self)
{
	struct move_vm *vm = self;

	vm->watched += vm->working_set != NULL;
	return vm->working_set ? 0 : -ENOTSUP;
}

static void op_working_set_end(void *self, uint64_t *bitmap)
{
	struct move_vm *vm = self;

	vm->watched--;
	for (size_t i = 0; i < gw_ram_bitmap_words(vm->ram) && bitmap; i++)
		bitmap[i] |= vm->working_set[i];
}

static void op_map(void *self, uint64_t first, uint64_t count)
{
	struct move_vm *vm = self;

	vm->mapped += count;
	vm->mapped_right = !move_vm_running(vm) && vm->runs == 0;
}

static void op_released(void *self)
{
	((struct move_vm *)self)->released = true;
}

static void op_drain(void *self, gw_move_packet_fn *fn, void *arg)
{
	struct move_vm *vm = self;

	for (unsigned i = 0; vm->packet_calls > 0 && i < vm->packets; i++)
		fn(arg, 7, &(uint8_t){ ++vm->ngot }, 1);
	vm->packet_calls -= vm->packet_calls > 0;
}

static void op_deliver(void *self, unsigned device, const void *data, size_t len)
{
	struct move_vm *vm = self;

	if (device == 7 && len == 1 && vm->ngot < sizeof(vm->got) && vm->released)
		vm->got[vm->ngot++] = *(const uint8_t *)data;
}

/* One that is to get packets answers the last of them. */
static bool op_resumed(void *self, uint64_t from_ns, uint64_t *answered_ns, uint64_t *longest_ns)
{
	struct move_vm *vm = self;
	uint64_t now = gw_now_ns();

	*answered_ns = vm->answers_after_ms ? now : 0;
	*longest_ns = vm->silent_ms * GW_NS_PER_MS;
	return vm->packets ? vm->ngot == vm->packets : now >= from_ns + vm->answers_after_ms * GW_NS_PER_MS;
}

static bool op_running(void *self)
{
	return move_vm_running(self);
}

static void keep_ram(struct move_vm *vm)
{
	unsigned count;
	const struct gw_ram_region *r = gw_ram_regions(vm->ram, &count);
	uint8_t *to = vm->saved_ram;

	for (unsigned i = 0; i < count && to; to += r[i++].size)
		memcpy(to, r[i].hva, r[i].size);
}

/* State: the guest's counter and random numbers, then padding. */
static int op_save(void *self, struct gw_buf *out, struct gw_error *err)
{
	struct move_vm *vm = self;
	uint8_t *p;

	if (vm->fail_save)
		return gw_error_set(err, EIO, "the test wants no state");
	p = gw_buf_reserve(out, 16 + vm->save_size);
	if (!p)
		return gw_error_set(err, ENOMEM, "out of memory");
	memset(p, 0x5a, 16 + vm->save_size);
	gw_put_le64(p, vm->writes);
	gw_put_le64(p + 8, vm->rng);
	out->len += 16 + vm->save_size;
	keep_ram(vm);
	return 0;
}

static int op_load(void *self, const void *data, size_t len, struct gw_error *err)
{
	struct move_vm *vm = self;

	if (vm->fail_load || len != 16 + vm->save_size)
		return gw_error_set(err, EPROTO, "the state does not fit the test's VM");
	vm->writes = gw_get_le64(data);
	vm->rng = gw_get_le64((const uint8_t *)data + 8);
	return 0;
}

static int op_renew(void *self, struct gw_error *err)
{
	((struct move_vm *)self)->renewed++;
	return 0;
}

static int op_describe(void *self, Godwit__StreamMachine **ret, struct gw_error *err)
{
	Godwit__StreamMachine *m = malloc(sizeof(*m));

	if (!m)
		return gw_error_set(err, ENOMEM, "out of memory");
	godwit__stream_machine__init(m);
	m->cpus = ((struct move_vm *)self)->cpus;
	*ret = m;
	return 0;
}

static int op_accept(void *self, const Godwit__StreamMachine *theirs, struct gw_error *err)
{
	if (theirs->cpus != ((struct move_vm *)self)->cpus)
		return gw_error_set(err, ENOTSUP, "the VM has %u CPUs at the source", theirs->cpus);
	return 0;
}

static void op_owned(void *self, uint64_t epoch, const uint64_t *answered, size_t nanswered)
{
	struct move_vm *vm = self;

	vm->owned_epoch = epoch;
	vm->answered = nanswered == 1 ? answered[0] : 0;
}

static void op_announce(void *self)
{
	((struct move_vm *)self)->announced = true;
}

static int log_start(void *self, struct gw_error *err)
{
	gw_ram_log_start(self);
	return 0;
}

static int log_sync(void *self, uint64_t *bitmap, struct gw_error *err)
{
	gw_ram_log_take(self, bitmap);
	return 0;
}

static int log_peek(void *self, uint64_t *bitmap, struct gw_error *err)
{
	gw_ram_log_peek(self, bitmap);
	return 0;
}

static void log_stop(void *self)
{
	gw_ram_log_stop(self);
}

struct gw_move_vm move_vm_handle(struct move_vm *vm)
{
	static const struct gw_move_vm_ops ops = {
		.slow = op_slow,
		.stop = op_stop,
		.awaited = op_awaited,
		.run = op_run,
		.running = op_running,
		.save = op_save,
		.load = op_load,
		.renew = op_renew,
		.describe = op_describe,
		.accept = op_accept,
		.owned = op_owned,
		.working_set_begin = op_working_set_begin,
	.working_set_end = op_working_set_end,
	.map = op_map,
	.released = op_released,
		.drain = op_drain,
	.deliver = op_deliver,
	.resumed = op_resumed,
		.announce = op_announce,
	};
	static const struct gw_dirty_ops log_ops = {
		.name = "log",
		.start = log_start,
		.sync = log_sync,
		.peek = log_peek,
		.stop = log_stop,
	};

	return (struct gw_move_vm){
		.ops = &ops,
		.self = vm,
		.ram = vm->ram,
		.dirty = vm->uffd ? gw_uffd_source(vm->uffd) : (struct gw_dirty_source){ &log_ops, vm->ram },
	};
}
