// SPDX-License-Identifier: Apache-2.0
/* The event journal; see events.h. */
#include "agent/events.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/json.h"
#include "agent/vmconfig.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/log.h"
#include "lib/util.h"

struct gw_events {
	const char *host;
	char *path;
	pthread_mutex_t lock; /* all below; held over the write of a line, so that lines and numbers agree */
	pthread_cond_t more;
	bool stopped;
	int fd;
	uint64_t next;        /* number of the next event */
	Godwit__AgentEvent *ring[GW_EVENTS_RING]; /* event n is at n % GW_EVENTS_RING; NULL: lost */
};

static void put_in_ring(struct gw_events *e, Godwit__AgentEvent *ev)
{
	Godwit__AgentEvent **slot = &e->ring[ev->seq % GW_EVENTS_RING];

	if (*slot)
		godwit__agent_event__free_unpacked(*slot, NULL);
	*slot = ev;
	if (ev->seq >= e->next)
		e->next = ev->seq + 1;
}

static Godwit__AgentEvent *new_event(uint64_t time_ns, uint64_t seq, const char *host, const char *kind, const char *vm,
				     const char *message)
{
	Godwit__AgentEvent *ev = malloc(sizeof(*ev));

	if (!ev)
		return NULL;
	godwit__agent_event__init(ev);
	ev->time_ns = time_ns;
	ev->seq = seq;
	if (gw_pb_set_string(&ev->host, host) < 0 || gw_pb_set_string(&ev->kind, kind) < 0 ||
	    gw_pb_set_string(&ev->vm, vm) < 0 || gw_pb_set_string(&ev->message, message) < 0) {
		godwit__agent_event__free_unpacked(ev, NULL);
		return NULL;
	}
	return ev;
}

/* One line of the journal; lines that are none (the last one may be torn by a crash) are passed over. */
static void load_line(struct gw_events *e, const char *line, size_t len)
{
	json_t *o = json_loadb(line, len, 0, NULL);
	json_int_t time_ns, seq;
	const char *host, *kind, *vm, *message;
	Godwit__AgentEvent *ev;

	if (o && json_unpack(o, "{s:I,s:I,s:s,s:s,s:s,s:s}", "time_ns", &time_ns, "seq", &seq, "host", &host, "kind", &kind, "vm",
			     &vm, "message", &message) == 0 && seq > 0) {
		ev = new_event((uint64_t)time_ns, (uint64_t)seq, host, kind, vm, message);
		if (ev)
			put_in_ring(e, ev);
	}
	json_decref(o);
}

static void load_file(struct gw_events *e, const char *path)
{
	gw_autofree char *text = NULL;
	size_t len;

	if (gw_read_file(path, 2 * GW_EVENTS_FILE_MAX, &text, &len, NULL) < 0)
		return;
	for (char *p = text, *end; p < text + len; p = end + 1) {
		end = memchr(p, '\n', (size_t)(text + len - p));
		if (!end)
			break;
		load_line(e, p, (size_t)(end - p));
	}
}

static int open_file(struct gw_events *e, struct gw_error *err)
{
	e->fd = open(e->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
	return e->fd < 0 ? gw_error_errno(err, errno, "cannot open %s", e->path) : 0;
}

int gw_events_open(const char *dir, const char *host, struct gw_events **ret, struct gw_error *err)
{
	struct gw_events *e = calloc(1, sizeof(*e));
	pthread_condattr_t attr;
	gw_autofree char *older = NULL;
	int r;

	if (!e)
		return gw_error_set(err, ENOMEM, "out of memory");
	e->fd = -1;
	e->host = host;
	e->next = 1;
	pthread_mutex_init(&e->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&e->more, &attr);
	pthread_condattr_destroy(&attr);
	if (asprintf(&e->path, "%s/events.log", dir) < 0 || asprintf(&older, "%s.1", e->path) < 0) {
		gw_events_close(e);
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	load_file(e, older);
	load_file(e, e->path);
	r = open_file(e, err);
	if (r < 0) {
		gw_events_close(e);
		return r;
	}
	/* A torn last line must not swallow the next one. */
	if (lseek(e->fd, 0, SEEK_END) > 0)
		gw_write_full(e->fd, "\n", 1, GW_NO_DEADLINE);
	*ret = e;
	return 0;
}

void gw_events_close(struct gw_events *e)
{
	if (!e)
		return;
	for (size_t i = 0; i < GW_EVENTS_RING; i++) {
		if (e->ring[i])
			godwit__agent_event__free_unpacked(e->ring[i], NULL);
	}
	gw_closep(&e->fd);
	pthread_cond_destroy(&e->more);
	pthread_mutex_destroy(&e->lock);
	free(e->path);
	free(e);
}

static void rotate(struct gw_events *e)
{
	gw_autofree char *older = NULL;
	struct stat st;

	if (fstat(e->fd, &st) < 0 || st.st_size < GW_EVENTS_FILE_MAX || asprintf(&older, "%s.1", e->path) < 0)
		return;
	if (rename(e->path, older) < 0)
		return;
	close(e->fd);
	open_file(e, NULL);
}

static void write_line(struct gw_events *e, const Godwit__AgentEvent *ev)
{
	json_t *o = json_pack("{s:I,s:I,s:s,s:s,s:s,s:s}", "time_ns", (json_int_t)ev->time_ns, "seq", (json_int_t)ev->seq, "host",
			      ev->host, "kind", ev->kind, "vm", ev->vm, "message", ev->message);
	char *line = o ? json_dumps(o, JSON_COMPACT) : NULL;
	size_t len = line ? strlen(line) : 0;

	json_decref(o);
	if (!line)
		return;
	line[len] = '\n'; /* in place of the NUL */
	if (gw_write_full(e->fd, line, len + 1, GW_NO_DEADLINE) < 0)
		gw_warn("cannot write to %s", e->path);
	free(line);
	rotate(e);
}

void gw_events_emit(struct gw_events *e, const char *kind, const char *vm, const char *fmt, ...)
{
	Godwit__AgentEvent *ev;
	char message[GW_ERROR_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(message, sizeof(message), fmt, ap);
	va_end(ap);
	gw_make_printable(message);
	gw_info("%s%s%s%s%s", vm ?: "", vm ? ": " : "", kind, *message ? ": " : "", message);
	pthread_mutex_lock(&e->lock);
	ev = new_event(gw_realtime_ns(), e->next, e->host, kind, vm ?: "", message);
	if (ev) {
		write_line(e, ev);
		put_in_ring(e, ev);
		pthread_cond_broadcast(&e->more);
	}
	pthread_mutex_unlock(&e->lock);
}

int gw_events_next(struct gw_events *e, uint64_t seq, int wait_ms, Godwit__AgentEvent **ret)
{
	uint64_t until = gw_now_ns() + (uint64_t)wait_ms * GW_NS_PER_MS;
	struct timespec ts = { (time_t)(until / GW_NS_PER_SEC), (long)(until % GW_NS_PER_SEC) };
	int r = -ETIMEDOUT;

	pthread_mutex_lock(&e->lock);
	while (seq >= e->next && !e->stopped) {
		if (pthread_cond_timedwait(&e->more, &e->lock, &ts) == ETIMEDOUT)
			break;
	}
	if (e->stopped)
		r = -ESHUTDOWN;
	if (e->next > GW_EVENTS_RING && seq < e->next - GW_EVENTS_RING)
		seq = e->next - GW_EVENTS_RING;
	for (; r == -ETIMEDOUT && seq < e->next; seq++) {
		const Godwit__AgentEvent *ev = e->ring[seq % GW_EVENTS_RING];

		if (!ev || ev->seq != seq)
			continue;
		*ret = (Godwit__AgentEvent *)gw_pb_copy(&ev->base);
		r = *ret ? 0 : -ENOMEM;
	}
	pthread_mutex_unlock(&e->lock);
	return r;
}

uint64_t gw_events_seq(struct gw_events *e, uint32_t back)
{
	uint64_t next;

	pthread_mutex_lock(&e->lock);
	next = e->next;
	pthread_mutex_unlock(&e->lock);
	back = GW_MIN(back, (uint32_t)GW_EVENTS_RING);
	return next > back ? next - back : 1;
}

void gw_events_stop(struct gw_events *e)
{
	pthread_mutex_lock(&e->lock);
	e->stopped = true;
	pthread_cond_broadcast(&e->more);
	pthread_mutex_unlock(&e->lock);
}
