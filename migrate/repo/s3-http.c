// SPDX-License-Identifier: Apache-2.0
/* HTTP exchanges over libcurl; see s3-http.h. */
#include "migrate/repo/s3-http.h"

#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>

#include "lib/clock.h"
#include "lib/util.h"
#include "migrate/repo/late-curl.h"

#define MAX_IDLE 32              /* slots, that is connections, kept for later */
#define MAX_HEAD (64u << 10)     /* bytes of all headers of an answer */
#define MAX_COMPLAINT (64u << 10) /* bytes that are read of an error's body */
#define SOCKET_BUFFER (512l << 10)
#define MIN_RATE 1024l           /* bytes a second; slower is standing still */
#define CONNECT_S 10u

struct slot {
	CURLM *multi;
	CURL *easy;
	int socket; /* of its connection; -1: none */
	struct slot *next;
};

struct gw_s3_http {
	char ca[PATH_MAX];
	unsigned stall_s;
	atomic_bool cancelled;
	pthread_mutex_t lock; /* the lists */
	struct slot *idle;    /* the last one used first: its connection is the least likely to be closed */
	unsigned idle_count;
	struct slot *busy;
};

/* An exchange while it runs: this thread's alone. */
struct run {
	struct gw_s3_exchange *x;
	struct slot *slot;
	struct curl_slist *headers;
	unsigned piece;      /* the next byte to send is in this piece, */
	uint64_t piece_at;   /* so far into it */
	uint64_t left;       /* bytes to send */
	size_t head_bytes;
	bool body_begun;
	bool enough;         /* of an error's body: the answer counts all the same */
	int wrong;           /* negative errno: we ended it, and said why in err */
	struct gw_error *err;
	char curl_error[CURL_ERROR_SIZE];
};

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;
static CURLcode curl_state; /* set under curl_once */

static void start_curl(void)
{
	curl_state = curl_global_init(CURL_GLOBAL_DEFAULT);
}

int gw_s3_http_new(const char *ca, unsigned stall_s, struct gw_s3_http **ret, struct gw_error *err)
{
	struct gw_s3_http *h;

	if (gw_late_curl(err) < 0)
		return -ENOENT;
	pthread_once(&curl_once, start_curl);
	if (curl_state != CURLE_OK)
		return gw_error_set(err, EIO, "libcurl does not start: %s", curl_easy_strerror(curl_state));
	if (ca[0] && access(ca, R_OK) < 0)
		return gw_error_errno(err, errno, "the file of certificates %s", ca);
	h = calloc(1, sizeof(*h));
	if (!h)
		return gw_error_set(err, ENOMEM, "out of memory");
	snprintf(h->ca, sizeof(h->ca), "%s", ca);
	h->stall_s = stall_s;
	pthread_mutex_init(&h->lock, NULL);
	*ret = h;
	return 0;
}

static void free_slot(struct slot *s)
{
	if (!s)
		return;
	/* In this order: the connections are the multi handle's. */
	if (s->easy)
		curl_easy_cleanup(s->easy);
	if (s->multi)
		curl_multi_cleanup(s->multi);
	free(s);
}

void gw_s3_http_free(struct gw_s3_http *h)
{
	if (!h)
		return;
	while (h->idle) {
		struct slot *s = h->idle;

		h->idle = s->next;
		free_slot(s);
	}
	pthread_mutex_destroy(&h->lock);
	free(h);
}

void gw_s3_http_cancel(struct gw_s3_http *h)
{
	atomic_store(&h->cancelled, true);
	pthread_mutex_lock(&h->lock);
	/* A wake-up between a slot's look at `cancelled` and its poll is kept by curl. */
	for (struct slot *s = h->busy; s; s = s->next)
		curl_multi_wakeup(s->multi);
	pthread_mutex_unlock(&h->lock);
}

/* A slot, which is in the list of busy ones. NULL: out of memory. */
static struct slot *take_slot(struct gw_s3_http *h)
{
	struct slot *s;

	pthread_mutex_lock(&h->lock);
	s = h->idle;
	if (s) {
		h->idle = s->next;
		h->idle_count--;
	}
	pthread_mutex_unlock(&h->lock);
	if (!s) {
		s = calloc(1, sizeof(*s));
		if (!s)
			return NULL;
		s->socket = -1;
		s->multi = curl_multi_init();
		s->easy = curl_easy_init();
		if (!s->multi || !s->easy) {
			free_slot(s);
			return NULL;
		}
	}
	pthread_mutex_lock(&h->lock);
	s->next = h->busy;
	h->busy = s;
	pthread_mutex_unlock(&h->lock);
	return s;
}

static void give_slot_back(struct gw_s3_http *h, struct slot *s)
{
	pthread_mutex_lock(&h->lock);
	for (struct slot **p = &h->busy; *p; p = &(*p)->next) {
		if (*p == s) {
			*p = s->next;
			break;
		}
	}
	if (h->idle_count < MAX_IDLE) {
		s->next = h->idle;
		h->idle = s;
		h->idle_count++;
		s = NULL;
	}
	pthread_mutex_unlock(&h->lock);
	free_slot(s);
}

/* Ends the transfer from within a callback, which then returns 0: curl takes that for failure. */
static size_t refuse(struct run *r, int code, const char *why)
{
	r->wrong = gw_error_set(r->err, code, "the server's answer makes no sense: %s", why);
	return 0;
}

/*
 * A server that sends head and body one after the other, and does not set TCP_NODELAY (so Ceph's gateway by default), holds the end of the body back until
 * the head was acknowledged (RFC 896); the kernel would acknowledge 40 ms later, in the hope of something to send with it (RFC 1122, 4.2.3.2).
 */
static void acknowledge(const struct slot *s)
{
	const int one = 1;

	if (s->socket >= 0)
		setsockopt(s->socket, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof(one));
}

/* curl tells the socket of a connection that goes on only when it is made, and when it is closed. */
static int on_socket(void *self, curl_socket_t socket, curlsocktype purpose)
{
	((struct slot *)self)->socket = socket;
	return CURL_SOCKOPT_OK;
}

static int on_close(void *self, curl_socket_t socket)
{
	struct slot *s = self;

	if (s->socket == socket)
		s->socket = -1;
	return close(socket);
}

/* Called by curl with one line. */
static size_t on_header(char *data, size_t size, size_t n, void *self)
{
	struct run *r = self;

	if (r->head_bytes == 0)
		acknowledge(r->slot);
	r->head_bytes += n;
	if (r->head_bytes > MAX_HEAD)
		return refuse(r, EPROTO, "its headers are too long");
	gw_s3_head_line(&r->x->head, data, n);
	return n;
}

/* Whether what comes is what was asked for; before its first byte is taken. */
static bool check_head(struct run *r)
{
	struct gw_s3_exchange *x = r->x;
	struct gw_s3_head *head = &x->head;

	if (!x->to)
		return true;
	if (head->status == 206 && head->range_from == x->from && head->range_to - head->range_from < x->room)
		return true;
	/* A server may leave a range out of account that is the whole object. */
	if (head->status == 200 && x->from == 0 && head->length == x->room)
		return true;
	refuse(r, EPROTO, head->status == 200 ? "it leaves the range out of account" : "it is another range than the one that was asked for");
	return false;
}

static size_t on_body(char *data, size_t size, size_t n, void *self)
{
	struct run *r = self;
	struct gw_s3_exchange *x = r->x;
	bool good = x->head.status == 200 || x->head.status == 206;
	uint64_t limit = good ? x->limit : MAX_COMPLAINT;

	if (!r->body_begun && good && !check_head(r))
		return 0;
	r->body_begun = true;
	if (good && x->to) {
		if (n > x->room - x->got)
			return refuse(r, EPROTO, "it is longer than it said");
		memcpy(x->to + x->got, data, n);
		x->got += n;
		return n;
	}
	if (n > limit - x->body.len || (good && x->head.length != GW_S3_UNKNOWN && x->head.length > limit)) {
		if (good) {
			r->wrong = gw_error_set(r->err, EFBIG, "it is longer than %llu bytes", (unsigned long long)limit);
			return 0;
		}
		r->enough = true;
		return 0;
	}
	if (gw_buf_append(&x->body, data, n) < 0) {
		r->wrong = gw_error_set(r->err, ENOMEM, "out of memory");
		return 0;
	}
	return n;
}

static int on_seek(void *self, curl_off_t offset, int origin)
{
	struct run *r = self;
	uint64_t at = r->x->body_at + (uint64_t)offset;

	if (origin != SEEK_SET || offset < 0 || (uint64_t)offset > r->x->body_len)
		return CURL_SEEKFUNC_FAIL;
	r->left = r->x->body_len - (uint64_t)offset;
	r->piece = 0;
	while (r->piece < r->x->piece_count && at >= r->x->pieces[r->piece].len)
		at -= r->x->pieces[r->piece++].len;
	r->piece_at = at;
	return CURL_SEEKFUNC_OK;
}

static size_t on_read(char *to, size_t size, size_t n, void *self)
{
	struct run *r = self;
	size_t done = 0, room = size * n;

	while (done < room && r->left && r->piece < r->x->piece_count) {
		const struct gw_bucket_piece *p = &r->x->pieces[r->piece];
		uint64_t step = GW_MIN(p->len - r->piece_at, r->left);

		step = GW_MIN(step, (uint64_t)(room - done));
		if (step > 0) /* an empty piece may be NULL */
			memcpy(to + done, (const uint8_t *)p->data + r->piece_at, step);
		done += step;
		r->left -= step;
		r->piece_at += step;
		if (r->piece_at == p->len) {
			r->piece++;
			r->piece_at = 0;
		}
	}
	return done;
}

static bool set_headers(struct run *r)
{
	const struct gw_s3_exchange *x = r->x;

	for (unsigned i = 0; i <= x->header_count; i++) {
		/* The last one keeps curl from asking for leave to send, or asks for it. */
		const char *line = i < x->header_count ? x->headers[i] : x->careful ? "Expect: 100-continue" : "Expect:";
		struct curl_slist *more = curl_slist_append(r->headers, line);

		if (!more)
			return false;
		r->headers = more;
	}
	return true;
}

/* Sets all options anew; the connection stays. */
static bool prepare(struct gw_s3_http *h, struct run *r)
{
	const struct gw_s3_exchange *x = r->x;
	CURL *c = r->slot->easy;
	int left_ms = gw_ms_until(x->deadline_ns);
	bool ok;

	curl_easy_reset(c);
	if (!set_headers(r))
		return false;
	ok = curl_easy_setopt(c, CURLOPT_URL, x->url) == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_HTTPHEADER, r->headers) == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_ERRORBUFFER, r->curl_error) == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https") == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1) == CURLE_OK;
	/* The path is what was signed; where a server points to elsewhere, nothing is sent. */
	ok &= curl_easy_setopt(c, CURLOPT_PATH_AS_IS, 1l) == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 0l) == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1l) == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_USERAGENT, "godwit") == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1l) == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_TCP_KEEPALIVE, 1l) == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_BUFFERSIZE, SOCKET_BUFFER) == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_UPLOAD_BUFFERSIZE, SOCKET_BUFFER) == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_SSL_VERIFYPEER, 1l) == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_SSL_VERIFYHOST, 2l) == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2) == CURLE_OK;
	if (h->ca[0])
		ok &= curl_easy_setopt(c, CURLOPT_CAINFO, h->ca) == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, (long)GW_MIN(h->stall_s, CONNECT_S)) == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_TIMEOUT_MS, (long)GW_MAX(left_ms, 1)) == CURLE_OK;
	if (!x->patient) {
		ok &= curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, MIN_RATE) == CURLE_OK;
		ok &= curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, (long)h->stall_s) == CURLE_OK;
	}
	ok &= curl_easy_setopt(c, CURLOPT_SOCKOPTFUNCTION, on_socket) == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_SOCKOPTDATA, r->slot) == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_CLOSESOCKETFUNCTION, on_close) == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_CLOSESOCKETDATA, r->slot) == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_header) == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_HEADERDATA, r) == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_body) == CURLE_OK;
	ok &= curl_easy_setopt(c, CURLOPT_WRITEDATA, r) == CURLE_OK;
	if (x->has_body) {
		ok &= curl_easy_setopt(c, CURLOPT_UPLOAD, 1l) == CURLE_OK;
		ok &= curl_easy_setopt(c, CURLOPT_INFILESIZE_LARGE, (curl_off_t)x->body_len) == CURLE_OK;
		ok &= curl_easy_setopt(c, CURLOPT_READFUNCTION, on_read) == CURLE_OK;
		ok &= curl_easy_setopt(c, CURLOPT_READDATA, r) == CURLE_OK;
		ok &= curl_easy_setopt(c, CURLOPT_SEEKFUNCTION, on_seek) == CURLE_OK;
		ok &= curl_easy_setopt(c, CURLOPT_SEEKDATA, r) == CURLE_OK;
	}
	if (!strcmp(x->method, "HEAD"))
		ok &= curl_easy_setopt(c, CURLOPT_NOBODY, 1l) == CURLE_OK;
	else
		ok &= curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, x->method) == CURLE_OK;
	return ok;
}

static int errno_of(CURLcode code)
{
	switch (code) {
	case CURLE_COULDNT_RESOLVE_HOST:
	case CURLE_COULDNT_RESOLVE_PROXY:
	case CURLE_COULDNT_CONNECT:
		return EHOSTUNREACH;
	case CURLE_OPERATION_TIMEDOUT:
		return ETIMEDOUT;
	case CURLE_PEER_FAILED_VERIFICATION:
	case CURLE_SSL_CACERT_BADFILE:
	case CURLE_SSL_ISSUER_ERROR:
	case CURLE_SSL_INVALIDCERTSTATUS:
		return EACCES;
	case CURLE_URL_MALFORMAT:
		return EINVAL;
	case CURLE_UNSUPPORTED_PROTOCOL: /* no HTTP, whatever it is */
	case CURLE_OUT_OF_MEMORY:        /* also what curl says of a header line without end */
		return EPROTO;
	default:
		return EIO;
	}
}

/* Until the transfer ends; CURLE_ABORTED_BY_CALLBACK when cancelled. */
static CURLcode drive(struct gw_s3_http *h, struct run *r)
{
	CURLM *multi = r->slot->multi;
	CURLcode code = CURLE_FAILED_INIT;
	int running = 1, left;
	CURLMsg *msg;

	if (curl_multi_add_handle(multi, r->slot->easy) != CURLM_OK)
		return CURLE_FAILED_INIT;
	while (running) {
		if (!r->x->anyway && atomic_load(&h->cancelled)) {
			code = CURLE_ABORTED_BY_CALLBACK;
			break;
		}
		if (curl_multi_perform(multi, &running) != CURLM_OK)
			break;
		if (running && curl_multi_poll(multi, NULL, 0, 1000, NULL) != CURLM_OK)
			break;
	}
	while ((msg = curl_multi_info_read(multi, &left))) {
		if (msg->msg == CURLMSG_DONE)
			code = msg->data.result;
	}
	curl_multi_remove_handle(multi, r->slot->easy);
	return code;
}

static int judge(struct run *r, CURLcode code, struct gw_error *err)
{
	struct gw_s3_exchange *x = r->x;

	if (code == CURLE_ABORTED_BY_CALLBACK)
		return gw_error_set(err, ECANCELED, "cancelled");
	if (r->wrong)
		return r->wrong;
	if (code != CURLE_OK && !r->enough)
		return gw_error_set(err, errno_of(code), "%s", r->curl_error[0] ? r->curl_error : curl_easy_strerror(code));
	if (x->head.status < 200)
		return gw_error_set(err, EIO, "no answer");
	/* An answer without a body has not been looked at yet. */
	if ((x->head.status == 200 || x->head.status == 206) && x->to) {
		if (!r->body_begun && !check_head(r))
			return r->wrong;
		if (x->got != x->room)
			return gw_error_set(err, EPROTO, "the object ends too early");
	}
	return 0;
}

/* OpenSSL writes to sockets without MSG_NOSIGNAL: SIGPIPE is kept from this thread. Returns whether it was blocked before. */
static bool block_sigpipe(void)
{
	sigset_t set, before;

	sigemptyset(&set);
	sigaddset(&set, SIGPIPE);
	pthread_sigmask(SIG_BLOCK, &set, &before);
	return sigismember(&before, SIGPIPE) == 1;
}

static void unblock_sigpipe(void)
{
	const struct timespec now = { 0, 0 };
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGPIPE);
	sigtimedwait(&set, NULL, &now);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

int gw_s3_http_do(struct gw_s3_http *h, struct gw_s3_exchange *x, struct gw_error *err)
{
	struct run r = { .x = x, .left = x->body_len, .err = err };
	bool was_blocked;
	int ret;

	gw_s3_head_clear(&x->head);
	x->got = 0;
	x->body.len = 0;
	if (!x->anyway && atomic_load(&h->cancelled))
		return gw_error_set(err, ECANCELED, "cancelled");
	r.slot = take_slot(h);
	if (!r.slot)
		return gw_error_set(err, ENOMEM, "out of memory");
	was_blocked = block_sigpipe();
	if (on_seek(&r, 0, SEEK_SET) == CURL_SEEKFUNC_OK && prepare(h, &r))
		ret = judge(&r, drive(h, &r), err);
	else
		ret = gw_error_set(err, ENOMEM, "out of memory");
	curl_easy_reset(r.slot->easy); /* nothing of it points into `r` any more */
	give_slot_back(h, r.slot);
	if (!was_blocked)
		unblock_sigpipe();
	curl_slist_free_all(r.headers);
	return ret;
}
