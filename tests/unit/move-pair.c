// SPDX-License-Identifier: Apache-2.0
/* Both ends of a move in one process; see move-pair.h. */
#include "move-pair.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "lib/clock.h"
#include "lib/util.h"

static void die(const char *what)
{
	fprintf(stderr, "move-pair: %s (errno %d)\n", what, errno);
	abort();
}

void move_end_init(struct move_end *e)
{
	pthread_condattr_t attr;

	memset(e, 0, sizeof(*e));
	pthread_mutex_init(&e->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&e->change, &attr);
	pthread_condattr_destroy(&attr);
}

void move_end_progress(void *arg, const struct gw_move_progress *p)
{
	struct move_end *e = arg;

	pthread_mutex_lock(&e->lock);
	if (e->ended)
		die("progress after the end");
	e->latest = *p;
	e->reports++;
	if (p->phase == GW_MOVE_DONE || p->phase == GW_MOVE_FAILED || p->phase == GW_MOVE_CANCELLED)
		e->ended = true;
	if (p->phase == GW_MOVE_DOUBT)
		e->doubted = true;
	pthread_cond_broadcast(&e->change);
	pthread_mutex_unlock(&e->lock);
}

enum gw_move_phase move_end_phase(struct move_end *e)
{
	enum gw_move_phase phase;

	pthread_mutex_lock(&e->lock);
	phase = e->latest.phase;
	pthread_mutex_unlock(&e->lock);
	return phase;
}

static void wait_change(struct move_end *e, uint64_t deadline)
{
	struct timespec ts = { (time_t)(deadline / GW_NS_PER_SEC), (long)(deadline % GW_NS_PER_SEC) };

	if (pthread_cond_timedwait(&e->change, &e->lock, &ts) == ETIMEDOUT) {
		fprintf(stderr, "move-pair: after %u reports the last was: %s, round %u, %llu bytes left, '%s'\n", e->reports,
			gw_move_phase_name(e->latest.phase), e->latest.round, (unsigned long long)e->latest.bytes_left,
			e->latest.message);
		die("an end of the move hangs");
	}
}

static void wait_end(struct move_end *e, bool doubt_counts)
{
	uint64_t deadline = gw_now_ns() + 60 * GW_NS_PER_SEC;

	pthread_mutex_lock(&e->lock);
	while (!e->ended && !(doubt_counts && e->latest.phase == GW_MOVE_DOUBT))
		wait_change(e, deadline);
	pthread_mutex_unlock(&e->lock);
}

void move_end_wait(struct move_end *e)
{
	wait_end(e, false);
}

void move_end_wait_phase(struct move_end *e, enum gw_move_phase phase)
{
	uint64_t deadline = gw_now_ns() + 60 * GW_NS_PER_SEC;

	pthread_mutex_lock(&e->lock);
	while (e->latest.phase < phase)
		wait_change(e, deadline);
	pthread_mutex_unlock(&e->lock);
}

void move_end_wait_slowed(struct move_end *e, unsigned percent)
{
	uint64_t deadline = gw_now_ns() + 60 * GW_NS_PER_SEC;

	pthread_mutex_lock(&e->lock);
	while (e->latest.slowed < percent)
		wait_change(e, deadline);
	pthread_mutex_unlock(&e->lock);
}

static void connect_pair(struct move_pair *p)
{
	for (unsigned i = 0; i < ARRAY_SIZE(p->ps.fds); i++) {
		int sv[2] = { -1, -1 };

		if (i <= p->ps.channels && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
			die("socketpair");
		p->ps.fds[i] = sv[0];
		p->pd.fds[i] = sv[1];
	}
}

static struct gw_journal *open_journal(const char *dir, const char *name)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_journal *j;
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	if (gw_journal_open(path, &j, &err) < 0)
		die(gw_error_text(&err));
	return j;
}

void move_pair_init(struct move_pair *p, uint64_t size, uint64_t hole, unsigned channels)
{
	struct gw_journal_entry own = { .state = GW_JOURNAL_OWNER, .epoch = 1 };
	struct gw_error err = GW_ERROR_INIT;

	memset(p, 0, sizeof(*p));
	/* Where fdatasync costs nothing, if there is such a place: hundreds of moves are made. */
	snprintf(p->dir, sizeof(p->dir), "%s/gw-test-move-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
	if (!mkdtemp(p->dir))
		die("mkdtemp");
	p->js = open_journal(p->dir, "source");
	p->jd = open_journal(p->dir, "destination");
	if (gw_journal_write(p->js, &own, &err) < 0)
		die(gw_error_text(&err));
	move_vm_init(&p->s, size, hole);
	move_vm_init(&p->d, size, hole);
	move_vm_fill(&p->s, 7, 3);
	move_end_init(&p->es);
	move_end_init(&p->ed);
	p->ps.channels = channels;
	p->ps.epoch = 2;
	p->ps.own_epoch = 1;
	/* Where the machine is too slow for a short blackout a long one does. */
	p->ps.timeout_ms = 10000;
	p->ps.timeout_stops = true;
	memset(p->ps.move_id, 0x11, sizeof(p->ps.move_id));
	memset(p->ps.secret, 0x22, sizeof(p->ps.secret));
	snprintf(p->ps.peer, sizeof(p->ps.peer), "other");
	p->pd = p->ps;
	connect_pair(p);
}

void move_pair_start(struct move_pair *p)
{
	struct gw_move_vm s = move_vm_handle(&p->s), d = move_vm_handle(&p->d);
	struct gw_error err = GW_ERROR_INIT;

	if (!p->paused)
		move_vm_run(&p->s);
	if (gw_move_destination_start(&p->pd, &d, p->jd, move_end_progress, &p->ed, &p->md, &err) < 0 ||
	    gw_move_source_start(&p->ps, &s, p->js, move_end_progress, &p->es, &p->ms, &err) < 0)
		die(gw_error_text(&err));
}

void move_pair_wait(struct move_pair *p)
{
	wait_end(&p->es, true);
	wait_end(&p->ed, false);
}

void move_pair_finish(struct move_pair *p)
{
	gw_move_free(gw_steal_ptr(&p->ms));
	gw_move_free(gw_steal_ptr(&p->md));
}

void move_pair_again(struct move_pair *p)
{
	uint64_t size = gw_ram_size(p->s.ram);
	const struct gw_ram_region *regions;
	unsigned count;

	regions = gw_ram_regions(p->s.ram, &count);
	move_pair_finish(p);
	move_vm_release(&p->d);
	move_vm_init(&p->d, size, count > 1 ? regions[0].size : 0);
	move_end_init(&p->es);
	move_end_init(&p->ed);
	connect_pair(p);
}

void move_pair_release(struct move_pair *p)
{
	char path[128];

	move_pair_finish(p);
	move_vm_release(&p->s);
	move_vm_release(&p->d);
	gw_journal_close(p->js);
	gw_journal_close(p->jd);
	snprintf(path, sizeof(path), "%s/source", p->dir);
	unlink(path);
	snprintf(path, sizeof(path), "%s/destination", p->dir);
	unlink(path);
	rmdir(p->dir);
}

bool move_pair_equal(struct move_pair *p)
{
	return move_vm_equal(&p->s, &p->d);
}

int move_pair_running(struct move_pair *p)
{
	return move_vm_running(&p->s) + move_vm_running(&p->d);
}
