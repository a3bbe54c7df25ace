// SPDX-License-Identifier: Apache-2.0
/* Holding the vCPUs that write memory, in turns; see quota.h. */
#include "vmm/quota.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "lib/clock.h"
#include "lib/util.h"
#include "vmm/kvm-dirty.h"
#include "lib/thread.h"
#include "vmm/vcpu.h"

/* Short enough for a guest's answers to come in time, long against the cost of a hold: a signal and two switches a vCPU. */
#define PERIOD_NS (20 * GW_NS_PER_MS)

struct gw_quota {
	struct gw_vcpus *vcpus;
	struct gw_dirty_ring *ring; /* NULL: unknown who writes */
	pthread_t thread;
	bool started;
	pthread_mutex_t lock;
	pthread_cond_t change;
	unsigned percent; /* under lock */
	bool quit;        /* under lock */
};

/* With the lock held: until the time is up, or the setting has changed. */
static void pass(struct gw_quota *q, uint64_t ns)
{
	uint64_t until = gw_now_ns() + ns;
	struct timespec ts = { .tv_sec = (time_t)(until / GW_NS_PER_SEC), .tv_nsec = (long)(until % GW_NS_PER_SEC) };
	unsigned percent = q->percent;
	int r = 0;

	while (r == 0 && !q->quit && q->percent == percent)
		r = pthread_cond_clockwait(&q->change, &q->lock, CLOCK_MONOTONIC, &ts);
}

static void *quota_thread(void *arg)
{
	struct gw_quota *q = arg;

	pthread_setname_np(pthread_self(), "quota");
	pthread_mutex_lock(&q->lock);
	while (!q->quit) {
		uint64_t held = PERIOD_NS / 100 * q->percent;

		if (q->percent == 0) {
			pthread_cond_wait(&q->change, &q->lock);
			continue;
		}
		gw_vcpus_hold(q->vcpus, q->ring ? gw_dirty_ring_writers(q->ring) : UINT32_MAX);
		pass(q, held);
		gw_vcpus_hold(q->vcpus, 0);
		if (q->percent)
			pass(q, PERIOD_NS - held);
	}
	pthread_mutex_unlock(&q->lock);
	return NULL;
}

int gw_quota_new(struct gw_vcpus *vcpus, struct gw_dirty_ring *ring, struct gw_quota **ret, struct gw_error *err)
{
	struct gw_quota *q = calloc(1, sizeof(*q));
	int r;

	if (!q)
		return gw_error_set(err, ENOMEM, "out of memory");
	q->vcpus = vcpus;
	q->ring = ring;
	pthread_mutex_init(&q->lock, NULL);
	pthread_cond_init(&q->change, NULL);
	r = gw_thread_create(&q->thread, quota_thread, q);
	q->started = r == 0;
	if (r < 0) {
		gw_quota_free(q);
		return gw_error_errno(err, r, "cannot start the dirty quota's thread");
	}
	*ret = q;
	return 0;
}

void gw_quota_free(struct gw_quota *q)
{
	if (!q)
		return;
	pthread_mutex_lock(&q->lock);
	q->quit = true;
	pthread_cond_signal(&q->change);
	pthread_mutex_unlock(&q->lock);
	if (q->started)
		pthread_join(q->thread, NULL);
	pthread_cond_destroy(&q->change);
	pthread_mutex_destroy(&q->lock);
	free(q);
}

void gw_quota_set(struct gw_quota *q, unsigned percent)
{
	pthread_mutex_lock(&q->lock);
	q->percent = GW_MIN(percent, 99u);
	pthread_cond_signal(&q->change);
	pthread_mutex_unlock(&q->lock);
}
