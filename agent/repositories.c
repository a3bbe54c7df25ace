// SPDX-License-Identifier: Apache-2.0
/* The repositories that this host keeps for others; see repositories.h. */
#include "agent/repositories.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "agent/keyfile.h"
#include "lib/io.h"
#include "lib/log.h"
#include "lib/parse.h"
#include "lib/util.h"

/* A connection takes about 1.5 MiB while it is busy. */
#define CONNECTIONS 256
#define PER_TICKET 16 /* a client has up to 8, and there is one a ticket */

static_assert(GW_KEYFILE_LEN == GW_TICKET_KEY_LEN, "one is the other");

struct gw_repositories {
	struct gw_serve_config serve;
	uint8_t key[GW_KEYFILE_LEN];
	pthread_mutex_t lock;
	const struct gw_serving *serving[CONNECTIONS]; /* under lock; NULL: a free place */
};

int gw_repositories_new(struct gw_agent *a, struct gw_repositories **ret, struct gw_error *err)
{
	const struct gw_conf *conf = a->conf;
	struct gw_repositories *r = calloc(1, sizeof(*r));
	int e;

	if (!r)
		return gw_error_set(err, ENOMEM, "out of memory");
	e = gw_mkdir_p(conf->repositories, 0700);
	e = e < 0 ? gw_error_errno(err, e, "cannot make %s", conf->repositories) : gw_keyfile(conf->state, "keys", "tickets", r->key, err);
	if (e < 0) {
		free(r);
		return e;
	}
	pthread_mutex_init(&r->lock, NULL);
	r->serve = (struct gw_serve_config){ .host = conf->name, .directory = conf->repositories, .key = r->key,
					     .keep_free = conf->repositories_keep_free, .wake_fd = a->stop_fd };
	*ret = r;
	return 0;
}

void gw_repositories_free(struct gw_repositories *r)
{
	if (!r)
		return;
	pthread_mutex_destroy(&r->lock);
	explicit_bzero(r->key, sizeof(r->key));
	free(r);
}

int gw_repositories_ticket(struct gw_repositories *r, const char *host, const char *name, bool create, struct gw_ticket *ret, struct gw_error *err)
{
	struct gw_ticket t;
	int e;

	if (!r)
		return gw_error_set(err, EOPNOTSUPP, "host %s keeps no repositories for others: its configuration has no [repositories]", host);
	e = gw_parse_name(name, "the name of a repository", err);
	if (e == 0)
		e = create ? gw_serve_create(&r->serve, name, err) : gw_serve_find(&r->serve, name, err);
	if (e == 0 && gw_ticket_make(r->key, name, &t) < 0)
		e = gw_error_set(err, EIO, "no random numbers");
	if (e < 0)
		return e;
	snprintf(t.host, sizeof(t.host), "%s", host);
	*ret = t;
	return 0;
}

/* False: there are too many already. */
static bool enter(struct gw_repositories *r, const struct gw_serving *s)
{
	const uint8_t *id = gw_serving_ticket(s)->id;
	const struct gw_serving **place = NULL;
	unsigned same = 0;

	pthread_mutex_lock(&r->lock);
	for (unsigned i = 0; i < CONNECTIONS; i++) {
		if (!r->serving[i])
			place = &r->serving[i];
		else
			same += !memcmp(gw_serving_ticket(r->serving[i])->id, id, GW_TICKET_ID_LEN);
	}
	if (same >= PER_TICKET)
		place = NULL;
	if (place)
		*place = s;
	pthread_mutex_unlock(&r->lock);
	return place != NULL;
}

static void leave(struct gw_repositories *r, const struct gw_serving *s)
{
	pthread_mutex_lock(&r->lock);
	for (unsigned i = 0; i < CONNECTIONS; i++) {
		if (r->serving[i] == s)
			r->serving[i] = NULL;
	}
	pthread_mutex_unlock(&r->lock);
}

struct gw_serving *gw_repositories_accept(struct gw_repositories *r, int sock, const uint8_t *begin, size_t len, uint64_t deadline_ns)
{
	static struct gw_ratelimit limit;
	uint8_t preamble[GW_TICKET_PREAMBLE];
	struct gw_error err = GW_ERROR_INIT;
	struct gw_serving *s = NULL;
	gw_autofd fd = sock;
	int e = r ? 0 : gw_error_set(&err, EOPNOTSUPP, "this host keeps none");

	memcpy(preamble, begin, len);
	if (e == 0) {
		e = gw_read_full(fd, preamble + len, sizeof(preamble) - len, deadline_ns);
		e = e < 0 ? gw_error_errno(&err, e, "no ticket") : gw_serve_accept(&r->serve, gw_steal_fd(&fd), preamble, deadline_ns, &s, &err);
	}
	if (e == 0 && !enter(r, s)) {
		gw_serving_free(gw_steal_ptr(&s));
		e = gw_error_set(&err, EBUSY, "there are too many");
	}
	if (e < 0)
		gw_warn_limited(&limit, "a connection to a repository is dropped: %s", gw_error_text(&err));
	return s;
}

void gw_repositories_run(struct gw_repositories *r, struct gw_serving *s)
{
	static struct gw_ratelimit limit;

	if (gw_serving_run(s) < 0)
		gw_warn_limited(&limit, "a client of repository %s sends what is not Godwit's protocol", gw_serving_ticket(s)->name);
	leave(r, s);
	gw_serving_free(s);
}
