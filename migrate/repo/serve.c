// SPDX-License-Identifier: Apache-2.0
/* Serving repositories to other hosts; see serve.h. */
#include "migrate/repo/serve.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "lib/clock.h"
#include "lib/io.h"
#include "lib/log.h"
#include "lib/util.h"
#include "migrate/repo/bucket-file.h"
#include "migrate/repo/remote.h"

#define IDLE (60 * GW_NS_PER_SEC)    /* between requests: clients connect again */
#define REQUEST (30 * GW_NS_PER_SEC) /* one that has begun is there whole by then */

struct gw_serving {
	const struct gw_serve_config *conf;
	struct gw_ticket ticket;
	struct gw_channel *ch;
	struct gw_bucket *bucket; /* NULL before the client has said hello */
	uint8_t *piece;           /* GW_REMOTE_PIECE bytes */
};

typedef Godwit__RepositoryRequest Req;
typedef Godwit__RepositoryReply Rep;

/* ---- folders ---- */

static int folder_of(const struct gw_serve_config *c, const char *name, char **ret, struct gw_error *err)
{
	return asprintf(ret, "%s/%s", c->directory, name) < 0 ? gw_error_set(err, ENOMEM, "out of memory") : 0;
}

int gw_serve_create(const struct gw_serve_config *c, const char *name, struct gw_error *err)
{
	gw_autofree char *path = NULL;
	int r = folder_of(c, name, &path, err);

	if (r < 0)
		return r;
	r = gw_mkdir_p(path, 0700);
	return r < 0 ? gw_error_errno(err, r, "host %s cannot make the repository %s", c->host, name) : 0;
}

int gw_serve_find(const struct gw_serve_config *c, const char *name, struct gw_error *err)
{
	gw_autofree char *path = NULL;
	struct stat st;
	int r = folder_of(c, name, &path, err);

	if (r < 0 || (stat(path, &st) == 0 && S_ISDIR(st.st_mode)))
		return r;
	return gw_error_set(err, ENOENT, "host %s keeps no repository %s: 'godwit repo init godwit://%s/%s' makes it", c->host, name, c->host, name);
}

/* ---- replies ---- */

/* What requests do returns 0 or the negative errno of a connection that is to be closed; what failed is told. */
static int answer(struct gw_serving *s, int r, const struct gw_error *err, Rep *rep)
{
	Rep none = GODWIT__REPOSITORY_REPLY__INIT;

	rep = rep ?: &none;
	rep->error = -r;
	if (r < 0)
		rep->message = (char *)gw_error_text(err);
	return gw_remote_send(s->ch, GW_FRAME_REPO_REPLY, &rep->base) ?: gw_channel_flush(s->ch);
}

static int check_name(const char *name, struct gw_error *err)
{
	return gw_bucket_name_ok(name) ? 0 : gw_error_set(err, EINVAL, "'%.40s' cannot be the name of an object", name);
}

static int do_hello(struct gw_serving *s, const Godwit__RepositoryHello *theirs)
{
	Godwit__RepositoryHello ours = GODWIT__REPOSITORY_HELLO__INIT;
	Rep rep = GODWIT__REPOSITORY_REPLY__INIT;
	struct gw_error err = GW_ERROR_INIT;
	gw_autofree char *url = NULL;
	int r = 0;

	if (s->bucket)
		return -EPROTO;
	if (theirs->version < GW_REMOTE_MIN_VERSION)
		r = gw_error_set(&err, EPROTONOSUPPORT, "host %s serves repositories in version %u and later, this client knows %u", s->conf->host,
				 GW_REMOTE_MIN_VERSION, theirs->version);
	else if (s->ticket.expires_s < gw_realtime_ns() / GW_NS_PER_SEC)
		r = gw_error_set(&err, EACCES, "the ticket for repository %s of host %s has expired", s->ticket.name, s->conf->host);
	r = r ?: gw_serve_find(s->conf, s->ticket.name, &err);
	if (r == 0 && asprintf(&url, "%s%s/%s", gw_bucket_file.scheme, s->conf->directory, s->ticket.name) < 0)
		r = gw_error_set(&err, ENOMEM, "out of memory");
	r = r ?: gw_bucket_open(url, false, &s->bucket, &err);
	ours.version = GW_MIN(theirs->version, GW_REMOTE_VERSION);
	rep.hello = &ours;
	return answer(s, r, &err, &rep) ?: r;
}

/* ---- put ---- */

static int check_room(const struct gw_serving *s, uint64_t length, struct gw_error *err)
{
	struct statvfs fs;
	uint64_t room;

	if (statvfs(s->conf->directory, &fs) < 0)
		return gw_error_errno(err, errno, "cannot tell how much is free on host %s", s->conf->host);
	room = (uint64_t)fs.f_bavail * fs.f_frsize;
	/* One without blocks (ramfs) does not know. */
	if (!fs.f_blocks || (room >= length && room - length >= s->conf->keep_free))
		return 0;
	return gw_error_set(err, ENOSPC, "host %s has no room for %llu bytes more: %llu are free there, and %llu must stay so", s->conf->host,
			    (unsigned long long)length, (unsigned long long)room, (unsigned long long)s->conf->keep_free);
}

static int begin_put(struct gw_serving *s, const Godwit__RepositoryPut *put, struct gw_file_writing **w, struct gw_error *err)
{
	int r = check_name(put->name, err) ?: check_room(s, put->length, err);

	return r ?: gw_file_begin(s->bucket, put->name, put->if_absent ? GW_BUCKET_IF_ABSENT : GW_BUCKET_REPLACE, w, err);
}

/* The next bytes of an object that has `left` more. */
static int take_piece(struct gw_serving *s, uint64_t left, uint64_t deadline, uint32_t *len)
{
	struct gw_frame_header h;
	int r = gw_remote_receive(s->ch, &h, deadline);

	if (r < 0)
		return r;
	if (h.type != GW_FRAME_REPO_DATA || h.len > left)
		return -EPROTO;
	*len = h.len;
	return gw_channel_read(s->ch, s->piece, h.len, deadline);
}

/* After a failure the rest is read all the same: the client finds its answer behind that. */
static int do_put(struct gw_serving *s, const Godwit__RepositoryPut *put)
{
	uint64_t deadline = gw_remote_deadline(put->length), left = put->length;
	struct gw_file_writing *w = NULL;
	struct gw_error err = GW_ERROR_INIT;
	int broken = 0, r;

	if (put->length > GW_BUCKET_MAX_OBJECT)
		return -EPROTO;
	r = begin_put(s, put, &w, &err);
	while (left && broken == 0) {
		uint32_t len = 0;

		broken = take_piece(s, left, deadline, &len);
		if (broken == 0 && r == 0)
			r = gw_file_write(w, s->piece, len, &err);
		left -= broken ? 0 : len;
	}
	if (broken == 0 && r == 0)
		r = gw_file_commit(w, &err);
	gw_file_end(w);
	return broken ?: answer(s, r, &err, NULL);
}

/* ---- get ---- */

static int read_piece(int fd, uint8_t *data, uint32_t len, uint64_t offset)
{
	while (len) {
		ssize_t n = pread(fd, data, len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		data += n;
		offset += (uint64_t)n;
		len -= (uint32_t)n;
	}
	return 0;
}

static int send_range(struct gw_serving *s, const char *name, int fd, uint64_t offset, uint64_t length)
{
	uint64_t deadline = gw_remote_deadline(length);
	Rep rep = GODWIT__REPOSITORY_REPLY__INIT;
	int r;

	rep.length = length;
	r = gw_remote_send(s->ch, GW_FRAME_REPO_REPLY, &rep.base);
	while (r == 0 && length) {
		uint32_t n = (uint32_t)GW_MIN(length, (uint64_t)GW_REMOTE_PIECE);
		int bad = read_piece(fd, s->piece, n, offset);
		struct gw_error err = GW_ERROR_INIT;

		if (bad < 0)
			return answer(s, gw_file_failed(&err, "cannot read", name, bad), &err, NULL);
		if (gw_now_ns() > deadline)
			return -ETIMEDOUT;
		r = gw_remote_send_data(s->ch, s->piece, n);
		offset += n;
		length -= n;
	}
	return r ?: gw_channel_flush(s->ch);
}

static int do_get(struct gw_serving *s, const Godwit__RepositoryGet *get, bool whole)
{
	struct gw_error err = GW_ERROR_INIT;
	uint64_t size = 0, end;
	gw_autofd fd = -1;
	int r = check_name(get->name, &err);

	if (__builtin_add_overflow(get->offset, get->length, &end))
		return -EPROTO;
	r = r ?: gw_file_open(s->bucket, get->name, &fd, &size, &err);
	if (r == 0 && whole && size > get->length)
		r = gw_error_set(&err, EFBIG, "%s is larger than it can be", get->name);
	else if (r == 0 && !whole && size < end)
		r = gw_error_set(&err, EPROTO, "%s is shorter than it must be", get->name);
	if (r < 0)
		return answer(s, r, &err, NULL);
	return whole ? send_range(s, get->name, fd, 0, size) : send_range(s, get->name, fd, get->offset, get->length);
}

static int do_remove(struct gw_serving *s, const Godwit__RepositoryName *req)
{
	struct gw_error err = GW_ERROR_INIT;
	int r = check_name(req->name, &err) ?: gw_bucket_remove(s->bucket, req->name, &err);

	return answer(s, r, &err, NULL);
}

/* ---- list ---- */

struct page {
	const char *after;
	Godwit__RepositoryEntry *entries[GW_REMOTE_PAGE];
	unsigned count;
};

#define FULL 1

static int add_entry(void *self, const struct gw_bucket_entry *e)
{
	struct page *p = self;
	Godwit__RepositoryEntry *copy;

	if (strcmp(e->name, p->after) <= 0)
		return 0;
	if (p->count == GW_REMOTE_PAGE)
		return FULL;
	copy = malloc(sizeof(*copy));
	if (!copy)
		return -ENOMEM;
	godwit__repository_entry__init(copy);
	copy->name = strdup(e->name);
	copy->size = e->size;
	copy->modified_s = e->modified_s;
	p->entries[p->count++] = copy;
	return copy->name ? 0 : -ENOMEM;
}

static int do_list(struct gw_serving *s, const Godwit__RepositoryList *list)
{
	gw_autofree struct page *p = calloc(1, sizeof(*p));
	Rep rep = GODWIT__REPOSITORY_REPLY__INIT;
	struct gw_error err = GW_ERROR_INIT;
	int r;

	if (!p)
		return -ENOMEM;
	p->after = list->after;
	r = gw_bucket_list(s->bucket, list->prefix, add_entry, p, &err);
	if (r == -ENOMEM)
		gw_error_set(&err, ENOMEM, "out of memory");
	rep.more = r == FULL;
	rep.n_entries = p->count;
	rep.entries = p->entries;
	r = answer(s, GW_MIN(r, 0), &err, &rep);
	for (unsigned i = 0; i < p->count; i++) {
		free(p->entries[i]->name);
		free(p->entries[i]);
	}
	return r;
}

/* ---- the connection ---- */

static int handle(struct gw_serving *s, const Req *req)
{
	if (!s->bucket && req->op_case != GODWIT__REPOSITORY_REQUEST__OP_HELLO)
		return -EPROTO;
	switch (req->op_case) {
	case GODWIT__REPOSITORY_REQUEST__OP_HELLO:
		return do_hello(s, req->hello);
	case GODWIT__REPOSITORY_REQUEST__OP_PUT:
		return do_put(s, req->put);
	case GODWIT__REPOSITORY_REQUEST__OP_GET:
		return do_get(s, req->get, false);
	case GODWIT__REPOSITORY_REQUEST__OP_READ:
		return do_get(s, req->read, true);
	case GODWIT__REPOSITORY_REQUEST__OP_REMOVE:
		return do_remove(s, req->remove);
	case GODWIT__REPOSITORY_REQUEST__OP_LIST:
		return do_list(s, req->list);
	default:
		return -EPROTO;
	}
}

static int serve_one(struct gw_serving *s)
{
	uint64_t deadline;
	struct gw_frame_header h;
	ProtobufCMessage *msg = NULL;
	int r = gw_channel_wait(s->ch, gw_now_ns() + IDLE);

	if (r < 0)
		return r;
	deadline = gw_now_ns() + REQUEST;
	r = gw_remote_receive(s->ch, &h, deadline);
	if (r == 0 && h.type != GW_FRAME_REPO_REQUEST)
		r = -EPROTO;
	r = r ?: gw_remote_message(s->ch, &h, &godwit__repository_request__descriptor, &msg, deadline);
	if (r < 0)
		return r;
	r = handle(s, (Req *)msg);
	protobuf_c_message_free_unpacked(msg, NULL);
	return r;
}

int gw_serving_run(struct gw_serving *s)
{
	int r;

	do {
		r = serve_one(s);
	} while (r == 0);
	return r == -EPROTO || r == -EBADMSG ? r : 0;
}

int gw_serve_accept(const struct gw_serve_config *c, int fd, const uint8_t preamble[GW_TICKET_PREAMBLE], uint64_t deadline_ns,
		    struct gw_serving **ret, struct gw_error *err)
{
	struct gw_serving *s = calloc(1, sizeof(*s));
	uint8_t *piece = malloc(GW_REMOTE_PIECE);
	int r = 0;

	if (!s || !piece)
		r = gw_error_set(err, ENOMEM, "out of memory");
	else if (gw_ticket_decode(preamble, &s->ticket) < 0)
		r = gw_error_set(err, EPROTO, "a connection begins with what is no ticket");
	else if (gw_ticket_secret(c->key, &s->ticket) < 0)
		r = gw_error_set(err, EIO, "OpenSSL cannot hash");
	if (r < 0) {
		close(fd);
		free(piece);
		free(s);
		return r;
	}
	s->conf = c;
	s->piece = piece;
	const struct gw_channel_config config = { .fd = fd, .wake_fd = c->wake_fd, .what = "repository", .secret = s->ticket.secret,
						  .move_id = s->ticket.id, .deadline_ns = deadline_ns };
	r = gw_channel_new(&config, &s->ch, err);
	if (r < 0) {
		gw_serving_free(s);
		return r;
	}
	gw_channel_set_stall(s->ch, GW_REMOTE_STALL);
	*ret = s;
	return 0;
}

const struct gw_ticket *gw_serving_ticket(const struct gw_serving *s)
{
	return &s->ticket;
}

void gw_serving_free(struct gw_serving *s)
{
	if (!s)
		return;
	gw_bucket_free(s->bucket);
	gw_channel_free(s->ch);
	free(s->piece);
	explicit_bzero(&s->ticket, sizeof(s->ticket));
	free(s);
}
