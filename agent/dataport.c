// SPDX-License-Identifier: Apache-2.0
/* Channels of moves that arrive; see dataport.h. */
#include "agent/dataport.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "agent/repositories.h"
#include "lib/bytes.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/log.h"
#include "lib/util.h"

static const uint8_t magic[8] = { 'G', 'W', 'D', 'M', 'O', 'V', 'E', '1' };

struct gw_arrival {
	struct gw_agent *agent;
	struct gw_arrival *next; /* under agent->arrivals_lock, like fds and have */
	uint8_t move_id[GW_ID_LEN];
	unsigned count;
	unsigned have;
	int fds[GW_MAX_MOVE_CHANNELS];
	pthread_cond_t more;
};

void gw_preamble_encode(const struct gw_preamble *p, uint8_t raw[GW_PREAMBLE_LEN])
{
	memcpy(raw, magic, sizeof(magic));
	memcpy(raw + 8, p->move_id, GW_ID_LEN);
	gw_put_le32(raw + 24, p->number);
	gw_put_le32(raw + 28, p->count);
}

int gw_preamble_decode(const uint8_t raw[GW_PREAMBLE_LEN], struct gw_preamble *ret)
{
	struct gw_preamble p;

	if (memcmp(raw, magic, sizeof(magic)) != 0)
		return -EPROTO;
	memcpy(p.move_id, raw + 8, GW_ID_LEN);
	p.number = gw_get_le32(raw + 24);
	p.count = gw_get_le32(raw + 28);
	if (p.count < 2 || p.count > GW_MAX_MOVE_CHANNELS || p.number >= p.count)
		return -EPROTO;
	*ret = p;
	return 0;
}

/* With arrivals_lock held. */
static struct gw_arrival *find(struct gw_agent *a, const uint8_t move_id[GW_ID_LEN])
{
	struct gw_arrival *w = a->arrivals;

	while (w && memcmp(w->move_id, move_id, GW_ID_LEN) != 0)
		w = w->next;
	return w;
}

int gw_arrival_expect(struct gw_agent *a, const uint8_t move_id[GW_ID_LEN], unsigned count, struct gw_arrival **ret,
		      struct gw_error *err)
{
	struct gw_arrival *w = calloc(1, sizeof(*w));
	pthread_condattr_t attr;
	bool taken;

	if (!w)
		return gw_error_set(err, ENOMEM, "out of memory");
	w->agent = a;
	w->count = count;
	memcpy(w->move_id, move_id, GW_ID_LEN);
	for (unsigned i = 0; i < GW_MAX_MOVE_CHANNELS; i++)
		w->fds[i] = -1;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&w->more, &attr);
	pthread_condattr_destroy(&attr);
	pthread_mutex_lock(&a->arrivals_lock);
	taken = find(a, move_id) != NULL;
	if (!taken) {
		w->next = a->arrivals;
		a->arrivals = w;
	}
	pthread_mutex_unlock(&a->arrivals_lock);
	if (taken) {
		pthread_cond_destroy(&w->more);
		free(w);
		return gw_error_set(err, EEXIST, "this move is expected already");
	}
	*ret = w;
	return 0;
}

int gw_arrival_wait(struct gw_arrival *w, uint64_t deadline_ns, int fds[GW_MAX_MOVE_CHANNELS], struct gw_error *err)
{
	struct timespec ts = { (time_t)(deadline_ns / GW_NS_PER_SEC), (long)(deadline_ns % GW_NS_PER_SEC) };
	struct gw_agent *a = w->agent;
	unsigned have;
	int r = 0;

	pthread_mutex_lock(&a->arrivals_lock);
	while (w->have < w->count && r == 0)
		r = pthread_cond_timedwait(&w->more, &a->arrivals_lock, &ts);
	have = w->have;
	for (unsigned i = 0; have == w->count && i < w->count; i++)
		fds[i] = gw_steal_fd(&w->fds[i]);
	pthread_mutex_unlock(&a->arrivals_lock);
	if (have < w->count)
		return gw_error_set(err, ETIMEDOUT, "only %u of %u channels have arrived at port %u", have, w->count, a->data_port);
	return 0;
}

void gw_arrival_free(struct gw_arrival *w)
{
	struct gw_agent *a;

	if (!w)
		return;
	a = w->agent;
	pthread_mutex_lock(&a->arrivals_lock);
	for (struct gw_arrival **p = &a->arrivals; *p; p = &(*p)->next) {
		if (*p == w) {
			*p = w->next;
			break;
		}
	}
	pthread_mutex_unlock(&a->arrivals_lock);
	for (unsigned i = 0; i < GW_MAX_MOVE_CHANNELS; i++)
		gw_closep(&w->fds[i]);
	pthread_cond_destroy(&w->more);
	free(w);
}

struct gw_serving *gw_dataport_serve(struct gw_agent *a, int sock, uint64_t deadline_ns)
{
	static struct gw_ratelimit limit;
	uint8_t raw[GW_PREAMBLE_LEN];
	struct gw_preamble p;
	struct gw_arrival *w;
	gw_autofd fd = sock;
	bool placed = false;

	if (gw_read_full(fd, raw, sizeof(raw), deadline_ns) < 0) {
		gw_warn_limited(&limit, "data port: a connection that says nothing is dropped");
		return NULL;
	}
	if (gw_ticket_is_preamble(raw))
		return gw_repositories_accept(a->repositories, gw_steal_fd(&fd), raw, sizeof(raw), deadline_ns);
	if (gw_preamble_decode(raw, &p) < 0) {
		gw_warn_limited(&limit, "data port: a connection that does not begin as a move's channel is dropped");
		return NULL;
	}
	/* The VMM expects a descriptor that blocks. */
	fcntl(fd, F_SETFL, 0);
	pthread_mutex_lock(&a->arrivals_lock);
	w = find(a, p.move_id);
	if (w && p.count == w->count && w->fds[p.number] < 0 && w->have < w->count) {
		w->fds[p.number] = gw_steal_fd(&fd);
		w->have++;
		placed = true;
		pthread_cond_signal(&w->more);
	}
	pthread_mutex_unlock(&a->arrivals_lock);
	if (!placed)
		gw_warn_limited(&limit, "data port: a channel of a move that nobody waits for is dropped");
	return NULL;
}
