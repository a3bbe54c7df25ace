// SPDX-License-Identifier: Apache-2.0
/* Consoles at the serial line; see tty.h. */
#include "vmm/tty.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "lib/clock.h"
#include "lib/util.h"
#include "lib/thread.h"

#define MAX_CLIENTS 16
/* A pipe or terminal that polls as writable takes this much without blocking. */
#define CHUNK 4096u
/* Output is gathered for this long: otherwise every byte of the guest costs a wake-up and a write. */
#define GATHER_MS 1
#define LINGER_MS 500
#define NO_LINGER UINT64_MAX

struct client {
	struct gw_tty_client c;
	uint64_t at; /* how much of all output ever it has seen */
	bool gone;
};

struct gw_tty {
	const struct gw_tty_ops *ops;
	void *arg;
	pthread_t thread;
	int wake;                   /* eventfd */
	bool awake;                 /* atomic: the thread was woken and has not looked yet */
	pthread_mutex_t lock;       /* all below */
	bool quit;
	uint64_t total;             /* bytes of output ever */
	struct client clients[MAX_CLIENTS];
	unsigned count;
	uint8_t ring[GW_TTY_RING];
};

static void wake(struct gw_tty *tty)
{
	const uint64_t one = 1;

	if (!__atomic_exchange_n(&tty->awake, true, __ATOMIC_SEQ_CST)) {
		ssize_t n = write(tty->wake, &one, sizeof(one));

		(void)n; /* a full counter wakes as well */
	}
}

void gw_tty_kick(struct gw_tty *tty)
{
	wake(tty);
}

void gw_tty_put(struct gw_tty *tty, uint8_t byte)
{
	pthread_mutex_lock(&tty->lock);
	tty->ring[tty->total++ % GW_TTY_RING] = byte;
	pthread_mutex_unlock(&tty->lock);
	wake(tty);
}

static void close_client(const struct gw_tty_client *c)
{
	if (!c->owned)
		return;
	if (c->in >= 0)
		close(c->in);
	if (c->out >= 0 && c->out != c->in)
		close(c->out);
}

int gw_tty_attach(struct gw_tty *tty, const struct gw_tty_client *client, struct gw_error *err)
{
	bool full;

	pthread_mutex_lock(&tty->lock);
	full = tty->count == MAX_CLIENTS;
	if (!full) {
		struct client *c = &tty->clients[tty->count++];

		c->c = *client;
		c->gone = false;
		c->at = client->replay ? tty->total - GW_MIN(tty->total, (uint64_t)GW_TTY_RING) : tty->total;
	}
	pthread_mutex_unlock(&tty->lock);
	if (full) {
		close_client(client);
		return gw_error_set(err, ENOSPC, "%d consoles are attached already", MAX_CLIENTS);
	}
	wake(tty);
	return 0;
}

/* Copies what the client has not seen, at most `size` bytes in one piece of the ring; under the lock. */
static size_t peek(const struct gw_tty *tty, struct client *c, uint8_t *out, size_t size)
{
	size_t len;

	if (tty->total - c->at > GW_TTY_RING)
		c->at = tty->total - GW_TTY_RING;
	len = (size_t)GW_MIN(tty->total - c->at, (uint64_t)size);
	for (size_t i = 0; i < len; i++)
		out[i] = tty->ring[(c->at + i) % GW_TTY_RING];
	return len;
}

static bool would_block(void)
{
	return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
}

/* Only the console thread removes clients, so `c` stays valid while the lock is open. */
static void write_client(struct gw_tty *tty, struct client *c)
{
	uint8_t chunk[CHUNK];
	size_t len;
	ssize_t n;

	pthread_mutex_lock(&tty->lock);
	len = peek(tty, c, chunk, sizeof(chunk));
	pthread_mutex_unlock(&tty->lock);
	if (!len)
		return;
	if (c->c.socket)
		n = send(c->c.out, chunk, len, MSG_DONTWAIT | MSG_NOSIGNAL);
	else
		n = write(c->c.out, chunk, len);
	if (n < 0 && would_block())
		return;
	pthread_mutex_lock(&tty->lock);
	if (n > 0)
		c->at += (uint64_t)n;
	else if (c->c.socket)
		c->gone = true;
	else
		c->c.out = -1; /* a full disk or closed terminal: its input may go on */
	pthread_mutex_unlock(&tty->lock);
}

static void read_client(struct gw_tty *tty, struct client *c)
{
	uint8_t chunk[CHUNK];
	size_t room = GW_MIN(tty->ops->room(tty->arg), sizeof(chunk)), len;
	ssize_t n;

	if (!room)
		return;
	n = c->c.socket ? recv(c->c.in, chunk, room, MSG_DONTWAIT) : read(c->c.in, chunk, room);
	if (n < 0 && would_block())
		return;
	if (n <= 0) {
		pthread_mutex_lock(&tty->lock);
		if (c->c.socket)
			c->gone = true;
		else
			c->c.in = -1;
		pthread_mutex_unlock(&tty->lock);
		return;
	}
	len = (size_t)n;
	if (c->c.filter)
		len = c->c.filter(c->c.arg, chunk, len);
	if (len)
		tty->ops->input(tty->arg, chunk, len);
}

/* Under the lock. */
static void remove_gone(struct gw_tty *tty)
{
	for (unsigned i = 0; i < tty->count;) {
		if (!tty->clients[i].gone) {
			i++;
			continue;
		}
		close_client(&tty->clients[i].c);
		tty->clients[i] = tty->clients[--tty->count];
	}
}

struct watch {
	struct pollfd fds[1 + 2 * MAX_CLIENTS];
	unsigned count; /* clients that are watched */
	bool idle;      /* nobody has output to get */
	bool quit;
};

static void fill_watch(struct gw_tty *tty, struct watch *w)
{
	bool room = tty->ops->room(tty->arg) > 0;

	pthread_mutex_lock(&tty->lock);
	remove_gone(tty);
	w->fds[0] = (struct pollfd){ .fd = tty->wake, .events = POLLIN };
	w->count = tty->count;
	w->idle = true;
	w->quit = tty->quit;
	for (unsigned i = 0; i < tty->count; i++) {
		struct client *c = &tty->clients[i];
		bool behind = c->c.out >= 0 && c->at != tty->total;

		/* poll() ignores negative descriptors. A socket is watched for its end even when there is no room. */
		w->fds[1 + 2 * i] = (struct pollfd){ .fd = room || c->c.socket ? c->c.in : -1, .events = room ? POLLIN : 0 };
		w->fds[2 + 2 * i] = (struct pollfd){ .fd = behind ? c->c.out : -1, .events = POLLOUT };
		w->idle = w->idle && !behind;
	}
	pthread_mutex_unlock(&tty->lock);
}

static void serve(struct gw_tty *tty, const struct watch *w)
{
	for (unsigned i = 0; i < w->count; i++) {
		struct client *c = &tty->clients[i];
		short in = w->fds[1 + 2 * i].revents, out = w->fds[2 + 2 * i].revents;

		if (out)
			write_client(tty, c);
		if (in & POLLIN) {
			read_client(tty, c);
		} else if (in) {
			pthread_mutex_lock(&tty->lock);
			if (c->c.socket)
				c->gone = true;
			else
				c->c.in = -1;
			pthread_mutex_unlock(&tty->lock);
		}
	}
}

static void *tty_thread(void *arg)
{
	struct gw_tty *tty = arg;
	uint64_t deadline = NO_LINGER;
	struct watch w;

	pthread_setname_np(pthread_self(), "console");
	for (;;) {
		int timeout = -1;

		fill_watch(tty, &w);
		if (w.quit) {
			if (deadline == NO_LINGER)
				deadline = gw_now_ns() + LINGER_MS * GW_NS_PER_MS;
			timeout = gw_ms_until(deadline);
			if (w.idle || timeout == 0)
				return NULL;
		}
		if (poll(w.fds, 1 + 2 * w.count, timeout) < 0)
			continue;
		serve(tty, &w);
		if (w.fds[0].revents) {
			uint64_t n;

			if (!w.quit)
				poll(NULL, 0, GATHER_MS);
			if (read(tty->wake, &n, sizeof(n)) < 0)
				continue;
			/* After the read, so that no wake-up is swallowed; before the next look at the state. */
			__atomic_store_n(&tty->awake, false, __ATOMIC_SEQ_CST);
		}
	}
}

int gw_tty_new(const struct gw_tty_ops *ops, void *arg, struct gw_tty **ret, struct gw_error *err)
{
	struct gw_tty *tty = calloc(1, sizeof(*tty));
	int r;

	if (!tty)
		return gw_error_set(err, ENOMEM, "out of memory");
	tty->ops = ops;
	tty->arg = arg;
	tty->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (tty->wake < 0) {
		r = gw_error_errno(err, errno, "cannot make an eventfd");
		free(tty);
		return r;
	}
	pthread_mutex_init(&tty->lock, NULL);
	r = gw_thread_create(&tty->thread, tty_thread, tty);
	if (r < 0) {
		close(tty->wake);
		free(tty);
		return gw_error_errno(err, r, "cannot start the console thread");
	}
	*ret = tty;
	return 0;
}

void gw_tty_free(struct gw_tty *tty)
{
	if (!tty)
		return;
	pthread_mutex_lock(&tty->lock);
	tty->quit = true;
	pthread_mutex_unlock(&tty->lock);
	wake(tty);
	pthread_join(tty->thread, NULL);
	for (unsigned i = 0; i < tty->count; i++)
		close_client(&tty->clients[i].c);
	pthread_mutex_destroy(&tty->lock);
	close(tty->wake);
	free(tty);
}
