// SPDX-License-Identifier: Apache-2.0
/* VMs that come from one snapshot and share its pages by the host's page store from the start: every byte is right, whatever the store says or does. */
#include "cmocka-all.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>

#include "ksm/lineage.h"
#include "ksm/sharer.h"
#include "ksmd-process.h"
#include "lib/clock.h"
#include "lib/util.h"
#include "migrate/repo/naming.h"
#include "share-peer.h"
#include "share-vm.h"
#include "suspend-help.h"

#define SIZE (64 * MIB)

/* A VM that loads. */
struct clone {
	struct move_vm vm;
	struct gw_sharer *sharer;
	struct gw_load *load;
	pthread_mutex_t lock;
	pthread_cond_t change;
	struct gw_load_progress told; /* under lock */
};

static int setup(void **state)
{
	int r = repo_setup(state);

	if (r == 0)
		ksmd_start(NULL);
	return r;
}

static int teardown(void **state)
{
	if (ksmd.pid >= 0)
		ksmd_stop();
	return repo_teardown(state);
}

static void on_load(void *arg, const struct gw_load_progress *p)
{
	struct clone *c = arg;

	pthread_mutex_lock(&c->lock);
	c->told = *p;
	pthread_cond_broadcast(&c->change);
	pthread_mutex_unlock(&c->lock);
}

static enum gw_load_phase wait_phase(struct clone *c, enum gw_load_phase phase)
{
	enum gw_load_phase got;
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	ts.tv_sec += 60;
	pthread_mutex_lock(&c->lock);
	while (c->told.phase != phase && c->told.phase < GW_LOAD_DONE) {
		if (pthread_cond_timedwait(&c->change, &c->lock, &ts) == ETIMEDOUT) {
			fprintf(stderr, "loading hangs at %s: %s\n", gw_load_phase_name(c->told.phase), c->told.message);
			abort();
		}
	}
	got = c->told.phase;
	pthread_mutex_unlock(&c->lock);
	return got;
}

static void await_attached(struct clone *c)
{
	struct gw_sharer_stats st;

	WAIT_FOR((gw_sharer_stats(c->sharer, &st), st.attached));
}

/* `sock`: its session with the page store; -1: none comes. */
static void clone_init(struct clone *c, int sock)
{
	struct gw_sharer_config config = share_vm_quick;
	struct gw_error err = GW_ERROR_INIT;
	int r;

	memset(c, 0, sizeof(*c));
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->change, NULL);
	move_vm_init(&c->vm, SIZE, SIZE / 2);
	if (!move_vm_use_uffd(&c->vm))
		skip();
	config.loading = true;
	r = gw_sharer_new(c->vm.ram, &config, &c->sharer, &err);
	if (r == -EPERM || r == -ENOSYS)
		skip();
	assert_int_equal(r, 0);
	if (sock >= 0) {
		gw_sharer_attach(c->sharer, sock);
		await_attached(c);
	}
}

static void clone_start(struct clone *c, struct suspend_test *t, uint64_t rate)
{
	struct gw_load_params p = { .url = t->repo->url, .name = "web", .epoch = 4, .paused = rate == 0, .lineage = gw_sharer_lineage(c->sharer) };
	struct gw_error err = GW_ERROR_INIT;
	struct gw_move_vm vm;

	c->vm.write_rate = rate;
	memcpy(p.key, t->params.key, sizeof(p.key));
	memcpy(p.id, t->saved.snapshot, sizeof(p.id));
	vm = move_vm_handle(&c->vm);
	if (gw_load_start(&p, &vm, NULL, on_load, c, &c->load, &err) < 0)
		fail_msg("%s", gw_error_text(&err));
}

/* As a VMM does it. */
static void clone_finish(struct clone *c)
{
	assert_int_equal(wait_phase(c, GW_LOAD_DONE), GW_LOAD_DONE);
	gw_load_free(gw_steal_ptr(&c->load));
}

static void clone_end(struct clone *c)
{
	gw_load_free(c->load);
	gw_sharer_free(c->sharer);
	move_vm_release(&c->vm);
	pthread_mutex_destroy(&c->lock);
	pthread_cond_destroy(&c->change);
}

/* It holds what was saved, and what it has done since a copy of that does as well. */
static void assert_holds(struct suspend_test *t, struct clone *c)
{
	struct move_vm copy;
	unsigned count;
	const struct gw_ram_region *from = gw_ram_regions(t->vm.ram, &count), *to;

	move_vm_stop(&c->vm);
	gw_sharer_pause(c->sharer);
	move_vm_init(&copy, SIZE, SIZE / 2);
	assert_true(move_vm_use_uffd(&copy));
	to = gw_ram_regions(copy.ram, &count);
	for (unsigned i = 0; i < count; i++)
		memcpy(to[i].hva, from[i].hva, from[i].size);
	copy.rng = t->vm.rng;
	copy.writes = t->vm.writes;
	assert_true(move_vm_catch_up(&copy, &c->vm));
	assert_true(move_vm_equal(&copy, &c->vm));
	move_vm_release(&copy);
	gw_sharer_resume(c->sharer);
}

static uint64_t lineage_pages(struct clone *c)
{
	struct gw_sharer_stats st;

	gw_sharer_stats(c->sharer, &st);
	return st.lineage_pages;
}

/* Bytes of its RAM that are its alone. */
static uint64_t private_bytes(const struct clone *c)
{
	gw_autofile *f = fopen("/proc/self/smaps", "re");
	unsigned count;
	const struct gw_ram_region *r = gw_ram_regions(c->vm.ram, &count);
	uint64_t from = 0, to, kib, sum = 0;
	char line[256];
	bool in = false;

	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &from, &to) == 2) {
			in = false;
			for (unsigned i = 0; i < count; i++)
				in |= from >= (uintptr_t)r[i].hva && to <= (uintptr_t)r[i].hva + r[i].size;
		} else if (in && sscanf(line, "Anonymous: %" SCNu64 " kB", &kib) == 1) {
			sum += kib << 10;
		}
	}
	return sum;
}

static void suspend(struct suspend_test *t, struct repo_test *repo)
{
	suspend_init(t, repo, SIZE, 0);
	/* Zeros part runs, but not as many as there. */
	move_vm_fill(&t->vm, 7, 100);
	t->vm.write_rate = 5000;
	move_vm_run(&t->vm);
	suspend_start(t);
	assert_int_equal(suspend_wait(t), GW_SAVE_DONE);
}

static void move_packs(struct repo_test *repo, const char *from, const char *to)
{
	char a[96], b[96];

	snprintf(a, sizeof(a), "%s/repo/%s", repo->dir, from);
	snprintf(b, sizeof(b), "%s/repo/%s", repo->dir, to);
	assert_int_equal(rename(a, b), 0);
}

static uint64_t stored_pages(void)
{
	Godwit__ShareReply *r = ksmd_figures();
	uint64_t n = 0;

	for (size_t i = 0; i < r->n_domains; i++)
		n += r->domains[i]->stored_pages;
	godwit__share_reply__free_unpacked(r, NULL);
	return n;
}

/* A guest writes without asking a sanitizer what others do with the page at the time. */
__attribute__((no_sanitize("thread"), noinline)) static void scribble(struct clone *c, uint64_t page, unsigned count)
{
	volatile uint64_t *words = gw_ram_page(c->vm.ram, page);

	for (unsigned i = 0; i < count * (GW_PAGE_SIZE / 8); i++)
		words[i] = 0x5a5a5a5a5a5a;
}

/* The second needs nothing of the repository but its manifest, and no memory of its own. */
static void a_second_vm_maps_what_the_first_has_brought(void **state)
{
	struct suspend_test t;
	struct clone a, b;
	uint64_t content;

	suspend(&t, *state);
	clone_init(&a, ksmd_attach("a", "one"));
	clone_start(&a, &t, 0);
	clone_finish(&a);
	content = a.told.bytes;
	assert_true(content > SIZE / 2);
	assert_holds(&t, &a);
	/* But for what loading its state has touched. */
	assert_in_range(lineage_pages(&a) << GW_PAGE_SHIFT, content - 2 * MIB, content);
	assert_in_range(private_bytes(&a), 0, 2 * MIB);

	move_packs(*state, "packs", "gone");
	clone_init(&b, ksmd_attach("b", "one"));
	clone_start(&b, &t, 0);
	clone_finish(&b);
	assert_holds(&t, &b);
	assert_int_equal(lineage_pages(&b) << GW_PAGE_SHIFT, content);
	assert_int_equal(private_bytes(&b), 0);
	assert_in_range(stored_pages() << GW_PAGE_SHIFT, 1, content + MIB);

	/* From here on they share as any others do; what was private of the first is exchanged. */
	gw_sharer_loaded(a.sharer);
	gw_sharer_loaded(b.sharer);
	{
		struct gw_sharer_stats x, y;

		WAIT_FOR((gw_sharer_stats(a.sharer, &x), gw_sharer_stats(b.sharer, &y),
			  x.passes > 1 && y.passes > 1 && x.shared_pages << GW_PAGE_SHIFT == content && y.shared_pages << GW_PAGE_SHIFT == content));
		assert_int_equal(y.lineage_pages << GW_PAGE_SHIFT, content);
		assert_int_equal(y.broken_pages, 0);
		assert_true(x.mappings < 2000 && y.mappings < 2000);
	}
	assert_holds(&t, &a);
	assert_holds(&t, &b);
	/* What the one writes only it sees. */
	scribble(&a, 3, 1000);
	assert_holds(&t, &b);
	move_packs(*state, "gone", "packs");
	clone_end(&a);
	clone_end(&b);
	suspend_release(&t);
}

/* A daemon that is restarted knows no names: what is fetched once more is shared by its content. */
static void names_are_lost_and_content_is_not(void **state)
{
	struct gw_sharer_stats x, y;
	struct suspend_test t;
	struct clone a, b;
	uint64_t content, stored;

	suspend(&t, *state);
	clone_init(&a, ksmd_attach("a", "one"));
	clone_start(&a, &t, 0);
	clone_finish(&a);
	gw_sharer_loaded(a.sharer);
	content = a.told.bytes >> GW_PAGE_SHIFT;
	WAIT_FOR((gw_sharer_stats(a.sharer, &x), x.passes > 2 && x.shared_pages == content));
	stored = stored_pages();
	ksmd_kill();
	ksmd_start(NULL);
	gw_sharer_attach(a.sharer, ksmd_attach("a", "one"));
	WAIT_FOR(stored_pages() >= stored);
	clone_init(&b, ksmd_attach("b", "one"));
	clone_start(&b, &t, 0);
	clone_finish(&b);
	assert_true(stored_pages() > stored * 3 / 2);
	gw_sharer_loaded(b.sharer);
	WAIT_FOR((gw_sharer_stats(b.sharer, &y), y.passes > 1 && y.shared_pages == content) && stored_pages() <= stored + 512);
	assert_holds(&t, &a);
	assert_holds(&t, &b);
	assert_in_range(private_bytes(&b), 0, MIB);
	clone_end(&a);
	clone_end(&b);
	suspend_release(&t);
}

/* Several at once, that write while they load. */
static void vms_that_run_load_at_once(void **state)
{
	struct clone c[4];
	struct suspend_test t;

	suspend(&t, *state);
	for (unsigned i = 0; i < 4; i++) {
		char name[8];

		snprintf(name, sizeof(name), "c%u", i);
		clone_init(&c[i], ksmd_attach(name, "one"));
	}
	for (unsigned i = 0; i < 4; i++)
		clone_start(&c[i], &t, 2000);
	/* Slowly, and no longer: what they have written to is not the snapshot's any more, and that must not be all. */
	for (unsigned i = 0; i < 4; i++)
		clone_finish(&c[i]);
	for (unsigned i = 0; i < 4; i++)
		move_vm_stop(&c[i].vm);
	for (unsigned i = 0; i < 4; i++)
		gw_sharer_loaded(c[i].sharer);
	for (unsigned i = 0; i < 4; i++) {
		struct gw_sharer_stats st;

		WAIT_FOR((gw_sharer_stats(c[i].sharer, &st), st.passes > 0));
		assert_true(st.lineage_pages > 0);
	}
	for (unsigned i = 0; i < 4; i++)
		assert_holds(&t, &c[i]);
	for (unsigned i = 0; i < 4; i++)
		clone_end(&c[i]);
	suspend_release(&t);
}

/* Offers chunks in which all names of the snapshot have other pages' bytes, with proofs that are right for them or nothing at all. */
static unsigned poison(struct suspend_test *t, struct share_peer *liar, bool proofs)
{
	static struct gw_share_named names[GW_SHARE_CHUNK_PAGES];
	struct gw_naming *naming;
	struct gw_snap *snap;
	const struct gw_snap_run *runs;
	uint64_t nruns, last = UINT64_MAX;
	unsigned n = 0, chunks = 0;
	struct gw_chunk *k = NULL;
	uint8_t page[GW_PAGE_SIZE];

	assert_int_equal(gw_snap_open(t->repo->repo, "web", 1, &snap, NULL), 0);
	assert_int_equal(gw_naming_new(snap, &naming), 0);
	runs = gw_snap_runs(snap, &nruns);
	for (uint64_t i = 0; i < nruns; i++) {
		for (uint64_t p = runs[i].page; p < runs[i].page + runs[i].count; p++) {
			const struct iovec iov = { page, sizeof(page) };

			if (!k)
				assert_int_equal(gw_chunk_new(&k), 0);
			share_content(p, page);
			names[n].name = gw_naming_name(naming, p);
			memset(names[n].proof, 0, sizeof(names[n].proof));
			/* The right bytes of another page, and their right proof. */
			if (proofs && last != UINT64_MAX) {
				assert_int_equal(gw_snap_read(snap, last, 1, page, NULL), 0);
				assert_int_equal(gw_naming_prove(naming, last, page, names[n].proof), 0);
			}
			last = p;
			assert_int_equal(gw_chunk_append(k, &iov, 1), 0);
			if (++n < GW_SHARE_CHUNK_PAGES)
				continue;
			assert_int_equal(gw_chunk_seal(k), 0);
			assert_int_equal(share_peer_say(liar, GW_SHARE_OFFER, chunks++, names, n, sizeof(names[0]), k->fd), 0);
			gw_chunk_unref(gw_steal_ptr(&k));
			n = 0;
			share_peers_run(&liar, 1, 100);
		}
		if (proofs && chunks == 4)
			break;
	}
	gw_chunk_unref(k);
	gw_naming_free(naming);
	gw_snap_free(snap);
	return chunks;
}

static void lie(struct suspend_test *t, bool proofs)
{
	struct share_peer liar;
	struct clone c;

	share_peer_connect(&liar, ksmd_attach("liar", "one"), SIZE >> GW_PAGE_SHIFT);
	poison(t, &liar, proofs);
	assert_true(liar.adopted > 0 && liar.adopted_as != GW_SHARE_NO_CHUNK);
	clone_init(&c, ksmd_attach("honest", "one"));
	clone_start(&c, t, 0);
	clone_finish(&c);
	assert_holds(t, &c);
	gw_sharer_loaded(c.sharer);
	clone_end(&c);
	share_peer_end(&liar);
}

static void wrong_bytes_are_refused_and_fetched(void **state)
{
	struct suspend_test t;

	suspend(&t, *state);
	lie(&t, false);
	lie(&t, true);
	suspend_release(&t);
}

/* Nothing is right in the store and nothing in the repository: who touches it waits, and nobody sees a wrong byte. */
static void the_daemon_dies_while_memory_comes(void **state)
{
	struct suspend_test t;
	struct clone a, b;

	suspend(&t, *state);
	clone_init(&a, ksmd_attach("a", "one"));
	move_packs(*state, "packs", "gone");
	clone_start(&a, &t, 100000);
	wait_phase(&a, GW_LOAD_STALL);
	ksmd_kill();
	move_packs(*state, "gone", "packs");
	clone_finish(&a);
	assert_holds(&t, &a);
	gw_sharer_loaded(a.sharer);
	/* One that never had a store, or gets a new one in between. */
	ksmd_start(NULL);
	clone_init(&b, -1);
	clone_start(&b, &t, 0);
	gw_sharer_attach(b.sharer, ksmd_attach("b", "one"));
	clone_finish(&b);
	move_vm_stop(&b.vm);
	gw_sharer_loaded(b.sharer);
	gw_sharer_attach(a.sharer, ksmd_attach("a", "one"));
	await_attached(&a);
	await_attached(&b);
	clone_end(&a);
	clone_end(&b);
	suspend_release(&t);
}

/* One that hangs costs half a second now and then. */
static void the_daemon_hangs_while_memory_comes(void **state)
{
	struct suspend_test t;
	uint64_t began;
	struct clone a;

	suspend(&t, *state);
	clone_init(&a, ksmd_attach("a", "one"));
	assert_int_equal(kill(ksmd.pid, SIGSTOP), 0);
	began = gw_now_ns();
	clone_start(&a, &t, 50000);
	clone_finish(&a);
	print_message("loaded in %.1f s while the daemon hung\n", (double)(gw_now_ns() - began) / 1e9);
	assert_int_equal(lineage_pages(&a), 0);
	assert_int_equal(kill(ksmd.pid, SIGCONT), 0);
	assert_holds(&t, &a);
	gw_sharer_loaded(a.sharer);
	{
		struct gw_sharer_stats st;

		WAIT_FOR((gw_sharer_stats(a.sharer, &st), st.passes > 0));
		assert_true(st.attached);
	}
	assert_holds(&t, &a);
	clone_end(&a);
	suspend_release(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_second_vm_maps_what_the_first_has_brought, setup, teardown),
		cmocka_unit_test_setup_teardown(names_are_lost_and_content_is_not, setup, teardown),
		cmocka_unit_test_setup_teardown(vms_that_run_load_at_once, setup, teardown),
		cmocka_unit_test_setup_teardown(wrong_bytes_are_refused_and_fetched, setup, teardown),
		cmocka_unit_test_setup_teardown(the_daemon_dies_while_memory_comes, setup, teardown),
		cmocka_unit_test_setup_teardown(the_daemon_hangs_while_memory_comes, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
