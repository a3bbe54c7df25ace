// SPDX-License-Identifier: Apache-2.0
/*
 * A bucket that another host's agent keeps: godwit://HOST/NAME (ticket.h). Requests run on a few connections, one at a time on each; they are made as they are
 * needed and kept. What fails for want of a connection is tried again on a new one, with pauses that grow, until `retry` seconds after the first failure.
 */
#include <errno.h>
#include <openssl/crypto.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>

#include "lib/clock.h"
#include "lib/io.h"
#include "lib/log.h"
#include "lib/tcp.h"
#include "lib/util.h"
#include "migrate/repo/bucket-internal.h"
#include "migrate/repo/remote.h"
#include "migrate/repo/retry.h"
#include "migrate/repo/ticket.h"

#define CONNECTIONS 8u /* below what a server lets one ticket have (agent/repositories.c): it may not know yet of those that were lost */
#define CONNECT (5 * GW_NS_PER_SEC)
#define OPEN_RETRY_S 10u /* a wrong address is told of soon */
#define MAX_LISTED (1ull << 24)
#define COMPARE (1u << 20)

struct remote {
	struct gw_bucket base;
	struct gw_ticket ticket;
	unsigned retry_s;
	int wake_fd; /* readable once it is cancelled */
	pthread_mutex_t lock;
	pthread_cond_t freed;
	/* Under lock. */
	struct gw_channel *idle[CONNECTIONS];
	unsigned nidle, open;
	bool cancelled;
};

typedef Godwit__RepositoryRequest Req;
typedef Godwit__RepositoryReply Rep;

static struct remote *to_remote(const struct gw_bucket *b)
{
	return gw_container_of(b, struct remote, base);
}

/* ---- one exchange ---- */

struct exchange {
	Req req;
	const struct gw_bucket_piece *pieces; /* a body, */
	unsigned count;
	uint64_t body;         /* of so many bytes */
	void *to;              /* get: where the answer goes, */
	uint64_t len;          /* which has so many bytes */
	struct gw_buf *out;    /* read: what it is appended to, */
	uint64_t limit;        /* at most so many bytes */
	Rep *reply;            /* owned */
	bool told;             /* the server has said what is wrong, in good order */
	unsigned tries;        /* that may have been carried out */
};

static void exchange_release(struct exchange *x)
{
	if (x->reply)
		godwit__repository_reply__free_unpacked(x->reply, NULL);
	x->reply = NULL;
}
#define autoexchange gw_cleanup(exchange_release) struct exchange

static int known(int code)
{
	switch (code) {
	case ENOENT:
	case EEXIST:
	case ENOSPC:
	case EACCES:
	case EFBIG:
	case EPROTO:
	case EINVAL:
	case EPROTONOSUPPORT:
		return code;
	default:
		return EIO;
	}
}

/* Reads a reply, of which *h is the header unless that is NULL. */
static int take_reply(struct gw_channel *ch, struct exchange *x, const struct gw_frame_header *h, uint64_t deadline, struct gw_error *err)
{
	struct gw_frame_header own;
	ProtobufCMessage *msg = NULL;
	int r = h ? 0 : gw_remote_receive(ch, &own, deadline);

	h = h ?: &own;
	if (r == 0 && h->type != GW_FRAME_REPO_REPLY)
		r = -EPROTO;
	r = r ?: gw_remote_message(ch, h, &godwit__repository_reply__descriptor, &msg, deadline);
	if (r < 0)
		return r;
	exchange_release(x);
	x->reply = (Rep *)msg;
	if (!x->reply->error)
		return 0;
	x->told = true;
	return gw_error_set(err, known(x->reply->error), "%s", *x->reply->message ? x->reply->message : "the request failed");
}

static int take_data(struct gw_channel *ch, struct exchange *x, uint8_t *to, uint64_t len, uint64_t deadline, struct gw_error *err)
{
	while (len) {
		struct gw_frame_header h;
		int r = gw_remote_receive(ch, &h, deadline);

		if (r == 0 && h.type == GW_FRAME_REPO_REPLY)
			return take_reply(ch, x, &h, deadline, err) ?: -EPROTO;
		if (r == 0 && (h.type != GW_FRAME_REPO_DATA || h.len > len))
			r = -EPROTO;
		r = r ?: gw_channel_read(ch, to, h.len, deadline);
		if (r < 0)
			return r;
		to += h.len;
		len -= h.len;
	}
	return 0;
}

static int take_answer(struct gw_channel *ch, struct exchange *x, struct gw_error *err)
{
	int r = take_reply(ch, x, NULL, gw_remote_deadline(x->body), err);
	uint8_t *to = x->to;
	uint64_t len;

	if (r < 0)
		return r;
	len = x->reply->length;
	if (len != x->len && (!x->out || len > x->limit))
		return -EPROTO;
	if (x->out && !(to = gw_buf_reserve(x->out, len + 1)))
		return -ENOMEM;
	r = take_data(ch, x, to, len, gw_remote_deadline(len), err);
	if (r == 0 && x->out)
		x->out->len += len;
	return r;
}

static int talk(struct gw_channel *ch, struct exchange *x, struct gw_error *err)
{
	int r = gw_remote_send(ch, GW_FRAME_REPO_REQUEST, &x->req.base);

	x->tries++;
	for (unsigned i = 0; i < x->count && r == 0; i++)
		r = gw_remote_send_data(ch, x->pieces[i].data, x->pieces[i].len);
	r = r ?: gw_channel_flush(ch);
	return r ?: take_answer(ch, x, err);
}

/* ---- connections ---- */

static int hello(struct gw_channel *ch, struct gw_error *err)
{
	Godwit__RepositoryHello ours = GODWIT__REPOSITORY_HELLO__INIT;
	autoexchange x = { .req = GODWIT__REPOSITORY_REQUEST__INIT };
	int r;

	ours.version = GW_REMOTE_VERSION;
	x.req.op_case = GODWIT__REPOSITORY_REQUEST__OP_HELLO;
	x.req.hello = &ours;
	r = talk(ch, &x, err);
	if (r < 0)
		return r;
	if (!x.reply->hello || x.reply->hello->version < GW_REMOTE_MIN_VERSION || x.reply->hello->version > GW_REMOTE_VERSION)
		return gw_error_set(err, EPROTONOSUPPORT, "it serves repositories in version %u, this client knows %u",
				    x.reply->hello ? x.reply->hello->version : 0, GW_REMOTE_VERSION);
	return 0;
}

static int connect_to(struct remote *m, struct gw_channel **ret, struct gw_error *err)
{
	uint64_t deadline = gw_now_ns() + CONNECT;
	uint8_t preamble[GW_TICKET_PREAMBLE];
	struct gw_channel *ch = NULL;
	char port[6];
	int fd = -1, r;

	snprintf(port, sizeof(port), "%u", m->ticket.port);
	r = gw_tcp_connect(m->ticket.address, port, deadline, &fd, err);
	if (r < 0) {
		err->code = EHOSTUNREACH;
		return -EHOSTUNREACH;
	}
	gw_ticket_encode(&m->ticket, preamble);
	r = gw_write_full(fd, preamble, sizeof(preamble), deadline);
	if (r < 0) {
		close(fd);
		return r;
	}
	const struct gw_channel_config config = { .fd = fd, .wake_fd = m->wake_fd, .client = true, .what = "repository",
						  .secret = m->ticket.secret, .move_id = m->ticket.id, .deadline_ns = deadline };
	r = gw_channel_new(&config, &ch, err);
	if (r < 0)
		return r;
	gw_channel_set_stall(ch, GW_REMOTE_STALL);
	r = hello(ch, err);
	if (r < 0)
		gw_channel_free(ch);
	else
		*ret = ch;
	return r;
}

/* An idle one, or *ret NULL and the right to make one. -ECANCELED. */
static int acquire(struct remote *m, struct gw_channel **ret)
{
	struct gw_channel *ch = NULL;
	int r = 0;

	pthread_mutex_lock(&m->lock);
	while (!m->cancelled && !m->nidle && m->open == CONNECTIONS)
		pthread_cond_wait(&m->freed, &m->lock);
	if (m->cancelled)
		r = -ECANCELED;
	else if (m->nidle)
		ch = m->idle[--m->nidle];
	else
		m->open++;
	pthread_mutex_unlock(&m->lock);
	/* The server says nothing that it was not asked: it has closed it. */
	if (ch && gw_channel_wait(ch, 0) != -ETIMEDOUT) {
		gw_channel_free(ch);
		ch = NULL;
	}
	if (r == 0)
		*ret = ch;
	return r;
}

/* ch NULL: it is gone. */
static void put_back(struct remote *m, struct gw_channel *ch)
{
	pthread_mutex_lock(&m->lock);
	if (ch)
		m->idle[m->nidle++] = ch;
	else
		m->open--;
	pthread_cond_signal(&m->freed);
	pthread_mutex_unlock(&m->lock);
}

/* ---- trying, and trying again ---- */

/* One try; x NULL: only for a connection. *may_pass: that it failed may pass. */
static int attempt(struct remote *m, struct exchange *x, bool *may_pass, struct gw_error *err)
{
	struct gw_channel *ch = NULL;
	int r = acquire(m, &ch);

	*may_pass = false;
	*err = (struct gw_error)GW_ERROR_INIT;
	if (r < 0)
		return gw_error_set(err, ECANCELED, "cancelled");
	r = ch ? 0 : connect_to(m, &ch, err);
	if (r == 0 && x) {
		x->told = false;
		r = talk(ch, x, err);
		if (r < 0 && !x->told) {
			gw_channel_free(ch);
			ch = NULL;
		}
	}
	put_back(m, ch);
	*may_pass = r == -EPIPE || r == -ECONNRESET || r == -ETIMEDOUT || r == -EBADMSG || r == -EHOSTUNREACH;
	if (r == -ECANCELED)
		return gw_error_set(err, ECANCELED, "cancelled");
	if (r == -EPROTO && !err->code)
		return gw_error_set(err, r, "it answers with what is not Godwit's protocol");
	return r < 0 && !err->code ? gw_error_errno(err, r, "the connection was lost") : r;
}

static int call_for(struct remote *m, struct exchange *x, unsigned retry_s, struct gw_error *err)
{
	uint64_t give_up_ns = 0;
	unsigned failures = 0;
	struct gw_error why;
	bool may_pass;
	int r;

	while ((r = attempt(m, x, &may_pass, &why)) < 0 && may_pass) {
		uint64_t until = gw_now_ns() + gw_retry_pause_ms(failures++) * GW_NS_PER_MS;

		give_up_ns = give_up_ns ?: gw_now_ns() + retry_s * GW_NS_PER_SEC;
		if (until >= give_up_ns) {
			r = gw_error_set(&why, EHOSTUNREACH, "given up after %u tries: %s", failures, strdupa(gw_error_text(&why)));
			break;
		}
		gw_debug("%s: %s; again soon", m->ticket.host, gw_error_text(&why));
		if (gw_wait_fd(m->wake_fd, POLLIN, until) == 0) {
			r = gw_error_set(&why, ECANCELED, "cancelled");
			break;
		}
	}
	if (r < 0 && r != -ECANCELED)
		gw_error_wrap(&why, "repository %s of host %s", m->ticket.name, m->ticket.host);
	if (r < 0 && err)
		*err = why;
	return r;
}

static int call(struct gw_bucket *b, struct exchange *x, struct gw_error *err)
{
	struct remote *m = to_remote(b);
	int r = call_for(m, x, m->retry_s, err);

	/* The repository itself is gone: nobody must take that for an object that is. */
	if (r == -ENOENT && !x->told) {
		r = -EIO;
		if (err)
			err->code = EIO;
	}
	return r;
}

/* ---- the calls of bucket.h ---- */

static void remote_free(struct gw_bucket *b)
{
	struct remote *m = to_remote(b);

	for (unsigned i = 0; i < m->nidle; i++)
		gw_channel_free(m->idle[i]);
	gw_closep(&m->wake_fd);
	pthread_cond_destroy(&m->freed);
	pthread_mutex_destroy(&m->lock);
	OPENSSL_cleanse(m, sizeof(*m));
	free(m);
}

static int remote_open(const char *url, const struct gw_ticket *ticket, bool create, struct gw_bucket **ret, struct gw_error *err)
{
	struct gw_ticket_url u;
	struct remote *m;
	int r = gw_ticket_parse_url(url, &u, err);

	if (r < 0)
		return r;
	if (!ticket || !ticket->host[0] || strcmp(ticket->name, u.name))
		return gw_error_set(err, EACCES, "there is no ticket for %s", url);
	m = calloc(1, sizeof(*m));
	if (!m)
		return gw_error_set(err, ENOMEM, "out of memory");
	pthread_mutex_init(&m->lock, NULL);
	pthread_cond_init(&m->freed, NULL);
	m->ticket = *ticket;
	m->retry_s = u.retry_s;
	m->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r = m->wake_fd < 0 ? gw_error_errno(err, errno, "cannot make an eventfd") : call_for(m, NULL, GW_MIN(OPEN_RETRY_S, u.retry_s), err);
	if (r < 0)
		remote_free(&m->base);
	else
		*ret = &m->base;
	return r;
}

static bool remote_exclusive(const struct gw_bucket *b)
{
	return true;
}

static int remote_get(struct gw_bucket *b, const char *name, uint64_t offset, uint64_t len, void *data, struct gw_error *err)
{
	Godwit__RepositoryGet get = GODWIT__REPOSITORY_GET__INIT;
	autoexchange x = { .req = GODWIT__REPOSITORY_REQUEST__INIT, .to = data, .len = len };

	get.name = (char *)name;
	get.offset = offset;
	get.length = len;
	x.req.op_case = GODWIT__REPOSITORY_REQUEST__OP_GET;
	x.req.get = &get;
	return call(b, &x, err);
}

/* Whether the object is exactly this. */
static bool same(struct gw_bucket *b, const char *name, const struct gw_bucket_piece *pieces, unsigned count)
{
	gw_autofree uint8_t *buf = malloc(COMPARE);
	uint64_t at = 0;

	for (unsigned i = 0; i < count && buf; i++) {
		for (uint64_t done = 0; done < pieces[i].len;) {
			uint64_t n = GW_MIN(pieces[i].len - done, (uint64_t)COMPARE);

			if (remote_get(b, name, at, n, buf, NULL) < 0 || memcmp(buf, (const uint8_t *)pieces[i].data + done, n))
				return false;
			at += n;
			done += n;
		}
	}
	return buf && remote_get(b, name, at, 1, buf, NULL) == -EPROTO;
}

/* When a try was carried out though its answer was lost, the next one finds the object there: its content tells whether it is ours. */
static int remote_put(struct gw_bucket *b, const char *name, const struct gw_bucket_piece *pieces, unsigned count, enum gw_bucket_put how,
		      struct gw_error *err)
{
	Godwit__RepositoryPut put = GODWIT__REPOSITORY_PUT__INIT;
	autoexchange x = { .req = GODWIT__REPOSITORY_REQUEST__INIT, .pieces = pieces, .count = count };
	int r;

	put.name = (char *)name;
	for (unsigned i = 0; i < count; i++)
		x.body += pieces[i].len;
	put.length = x.body;
	put.if_absent = how == GW_BUCKET_IF_ABSENT;
	x.req.op_case = GODWIT__REPOSITORY_REQUEST__OP_PUT;
	x.req.put = &put;
	r = call(b, &x, err);
	return r == -EEXIST && x.tries > 1 && same(b, name, pieces, count) ? 0 : r;
}

static int remote_read(struct gw_bucket *b, const char *name, uint64_t limit, struct gw_buf *out, struct gw_error *err)
{
	Godwit__RepositoryGet get = GODWIT__REPOSITORY_GET__INIT;
	autoexchange x = { .req = GODWIT__REPOSITORY_REQUEST__INIT, .out = out, .limit = limit };

	get.name = (char *)name;
	get.length = limit;
	x.req.op_case = GODWIT__REPOSITORY_REQUEST__OP_READ;
	x.req.read = &get;
	return call(b, &x, err);
}

static int remote_remove(struct gw_bucket *b, const char *name, struct gw_error *err)
{
	Godwit__RepositoryName what = GODWIT__REPOSITORY_NAME__INIT;
	autoexchange x = { .req = GODWIT__REPOSITORY_REQUEST__INIT };

	what.name = (char *)name;
	x.req.op_case = GODWIT__REPOSITORY_REQUEST__OP_REMOVE;
	x.req.remove = &what;
	return call(b, &x, err);
}

/* Names rise: so a server cannot go on for ever with the same ones, and the order is what bucket.h promises. */
static int check_page(const Rep *page, const char *prefix, const char *last, struct gw_error *err)
{
	if (page->n_entries > GW_REMOTE_PAGE || (page->more && !page->n_entries))
		return gw_error_set(err, EPROTO, "the server's listing does not end");
	for (size_t i = 0; i < page->n_entries; i++) {
		const char *name = page->entries[i]->name;

		if (!gw_bucket_name_ok(name) || strncmp(name, prefix, strlen(prefix)) || strcmp(name, last) <= 0)
			return gw_error_set(err, EPROTO, "the server lists what was not asked for");
		last = name;
	}
	return 0;
}

static int remote_list(struct gw_bucket *b, const char *prefix, gw_bucket_entry_fn *fn, void *self, struct gw_error *err)
{
	char last[GW_BUCKET_MAX_NAME + 1] = "";
	bool more = strlen(prefix) <= GW_BUCKET_MAX_NAME;
	uint64_t count = 0;
	int r = 0;

	while (more && r == 0) {
		Godwit__RepositoryList list = GODWIT__REPOSITORY_LIST__INIT;
		autoexchange x = { .req = GODWIT__REPOSITORY_REQUEST__INIT };

		list.prefix = (char *)prefix;
		list.after = last;
		x.req.op_case = GODWIT__REPOSITORY_REQUEST__OP_LIST;
		x.req.list = &list;
		r = call(b, &x, err) ?: check_page(x.reply, prefix, last, err);
		if (r < 0)
			return r;
		more = x.reply->more;
		count += x.reply->n_entries;
		if (count > MAX_LISTED)
			return gw_error_set(err, EPROTO, "the server's listing does not end");
		for (size_t i = 0; i < x.reply->n_entries && r == 0; i++) {
			const Godwit__RepositoryEntry *e = x.reply->entries[i];
			const struct gw_bucket_entry ours = { e->name, e->size, e->modified_s };

			snprintf(last, sizeof(last), "%s", e->name);
			r = fn(self, &ours);
		}
	}
	return r;
}

static void remote_cancel(struct gw_bucket *b)
{
	struct remote *m = to_remote(b);
	const uint64_t one = 1;
	ssize_t n;

	pthread_mutex_lock(&m->lock);
	m->cancelled = true;
	pthread_cond_broadcast(&m->freed);
	pthread_mutex_unlock(&m->lock);
	/* Only now: who is woken gives its connection back, and nobody may take that as the right to make another. It fails only when it is readable already. */
	n = write(m->wake_fd, &one, sizeof(one));
	(void)n;
}

const struct gw_bucket_ops gw_bucket_remote = {
	.scheme = "godwit://",
	.open = remote_open,
	.free = remote_free,
	.exclusive = remote_exclusive,
	.put = remote_put,
	.get = remote_get,
	.read = remote_read,
	.remove = remote_remove,
	.list = remote_list,
	.cancel = remote_cancel,
};
