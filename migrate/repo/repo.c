// SPDX-License-Identifier: Apache-2.0
/* A repository's configuration and keys: making and opening it. See repo.h. */
#include "migrate/repo/repo.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/clock.h"
#include "lib/util.h"
#include "migrate/repo/config.h"
#include "migrate/repo/object.h"

#define MAX_KEYS 64 /* that are tried: each costs scrypt's time */

struct gw_repo {
	struct gw_bucket *bucket;
	struct gw_repo_config config;
	struct gw_repo_keys keys;
	uint8_t key[GW_REPO_KEY_LEN];
};

/* ---- keys ---- */

struct key_list {
	struct gw_bucket *bucket;
	struct gw_repo_key *keys;
	size_t count;
};

static int collect_key(void *self, const struct gw_bucket_entry *e)
{
	struct key_list *l = self;
	struct gw_repo_key *more;
	uint8_t id[16];

	if (gw_object_parse_name(e->name, "keys", id) < 0 || l->count == MAX_KEYS)
		return 0;
	more = realloc(l->keys, (l->count + 1) * sizeof(*more));
	if (!more)
		return -ENOMEM;
	l->keys = more;
	memset(&more[l->count], 0, sizeof(*more));
	snprintf(more[l->count].name, sizeof(more->name), "%s", e->name);
	l->count++;
	return 0;
}

static int list_key_names(struct gw_bucket *bucket, struct key_list *l, struct gw_error *err)
{
	int r = gw_bucket_list(bucket, "keys/", collect_key, l, err);

	return r == -ENOMEM ? gw_error_set(err, ENOMEM, "out of memory") : r;
}

int gw_repo_list_keys(struct gw_repo *repo, struct gw_repo_key **ret, size_t *count, struct gw_error *err)
{
	struct key_list l = { .bucket = repo->bucket };
	size_t good = 0;
	int r = list_key_names(repo->bucket, &l, err);

	for (size_t i = 0; i < l.count && r == 0; i++) {
		gw_autobuf buf = GW_BUF_INIT;
		struct gw_repo_key k = l.keys[i];

		r = gw_bucket_read(repo->bucket, k.name, GW_KEY_MAX_OBJECT, &buf, err);
		if (r == 0 && gw_key_parse(k.name, buf.data, buf.len, &k.info, NULL) == 0)
			l.keys[good++] = k;
		if (r == -ENOENT || r == -EFBIG)
			r = 0;
	}
	if (r < 0) {
		free(l.keys);
		return r;
	}
	*ret = l.keys;
	*count = good;
	return 0;
}

static int wrap_key(const uint8_t key[GW_REPO_KEY_LEN], const struct gw_repo_secret *secret, const struct gw_key_info *info, const char *name,
		    struct gw_buf *out, struct gw_error *err)
{
	if (secret->passphrase)
		return gw_key_wrap_passphrase(key, info, name, (struct gw_span){ secret->passphrase, strlen(secret->passphrase) }, out, err);
	if (secret->host)
		return gw_key_wrap_host(key, info, name, secret->host, out, err);
	return gw_error_set(err, EINVAL, "a passphrase or a host's key is needed");
}

static int put_key(struct gw_bucket *bucket, const uint8_t key[GW_REPO_KEY_LEN], const uint8_t repository[GW_REPO_ID_LEN],
		   const struct gw_repo_secret *secret, const struct gw_repo_params *params, char name[GW_OBJECT_NAME], struct gw_error *err)
{
	struct gw_key_info info = { .created_s = gw_realtime_ns() / GW_NS_PER_SEC, .scrypt = GW_SCRYPT_DEFAULT };
	gw_autobuf buf = GW_BUF_INIT;
	uint8_t id[16];
	int r;

	memcpy(info.repository, repository, GW_REPO_ID_LEN);
	snprintf(info.label, sizeof(info.label), "%s", params && params->label ? params->label : "first");
	if (params && params->scrypt.n)
		info.scrypt = params->scrypt;
	if (RAND_bytes(id, sizeof(id)) != 1)
		return gw_error_set(err, EIO, "no random numbers");
	gw_object_name(name, "keys", id);
	r = wrap_key(key, secret, &info, name, &buf, err);
	return r < 0 ? r : gw_object_put(bucket, name, buf.data, buf.len, err);
}

int gw_repo_add_key(struct gw_repo *repo, const struct gw_repo_secret *secret, const struct gw_repo_params *params, char name[48],
		    struct gw_error *err)
{
	char own[GW_OBJECT_NAME];
	int r = put_key(repo->bucket, repo->key, repo->config.id, secret, params, own, err);

	if (r == 0 && name)
		snprintf(name, 48, "%.47s", own);
	return r;
}

int gw_repo_remove_key(struct gw_repo *repo, const char *name, struct gw_error *err)
{
	struct key_list l = { .bucket = repo->bucket };
	bool found = false;
	int r = list_key_names(repo->bucket, &l, err);

	for (size_t i = 0; i < l.count; i++)
		found |= strcmp(l.keys[i].name, name) == 0;
	free(l.keys);
	if (r < 0)
		return r;
	if (!found)
		return gw_error_set(err, ENOENT, "there is no %s", name);
	if (l.count == 1)
		return gw_error_set(err, EBUSY, "%s is the last key: without it nobody could open the repository", name);
	return gw_bucket_remove(repo->bucket, name, err);
}

static int try_key(struct gw_repo *repo, const char *name, const struct gw_repo_secret *secret, struct gw_error *err)
{
	gw_autobuf buf = GW_BUF_INIT;
	struct gw_key_info info = { 0 };
	int r = gw_bucket_read(repo->bucket, name, GW_KEY_MAX_OBJECT, &buf, err);

	if (r == 0)
		r = gw_key_parse(name, buf.data, buf.len, &info, err);
	if (r == 0 && memcmp(info.repository, repo->config.id, GW_REPO_ID_LEN))
		r = gw_error_set(err, EBADMSG, "%s and config are of different repositories", name);
	if (r == 0 && info.type != (secret->passphrase ? GW_KEY_PASSPHRASE : GW_KEY_HOST))
		r = gw_error_set(err, EKEYREJECTED, "%s is of another type", name);
	if (r < 0)
		return r;
	if (secret->passphrase)
		return gw_key_unwrap_passphrase(name, buf.data, buf.len, (struct gw_span){ secret->passphrase, strlen(secret->passphrase) },
						repo->key, err);
	return gw_key_unwrap_host(name, buf.data, buf.len, secret->host, repo->key, err);
}

/* Tries one key object after the other. One that is damaged is told only when no other opens. */
static int find_key(struct gw_repo *repo, const struct gw_repo_secret *secret, struct gw_error *err)
{
	struct key_list l = { .bucket = repo->bucket };
	struct gw_error damage = GW_ERROR_INIT;
	int r = list_key_names(repo->bucket, &l, err);
	bool opened = false, rejected = false;

	for (size_t i = 0; i < l.count && r == 0 && !opened; i++) {
		struct gw_error one = GW_ERROR_INIT;
		int s = try_key(repo, l.keys[i].name, secret, &one);

		opened = s == 0;
		rejected |= s == -EKEYREJECTED;
		if (s == -EBADMSG || s == -EPROTONOSUPPORT || s == -EFBIG)
			damage = one;
		else if (s < 0 && s != -EKEYREJECTED && s != -ENOENT)
			r = gw_error_set(err, s, "%s", one.msg);
	}
	free(l.keys);
	if (r < 0 || opened)
		return r;
	if (l.count == 0)
		return gw_error_set(err, ENOENT, "%s has no key objects (keys/)", gw_bucket_url(repo->bucket));
	if (damage.code && !rejected)
		return gw_error_set(err, damage.code, "%s", damage.msg);
	if (damage.code)
		return gw_error_set(err, EKEYREJECTED, "%s: %s opens none of %zu keys; and %s", gw_bucket_url(repo->bucket),
				    secret->passphrase ? "this passphrase" : "this host's key", l.count, damage.msg);
	return gw_error_set(err, EKEYREJECTED, "%s: %s", gw_bucket_url(repo->bucket),
			    secret->passphrase ? "wrong passphrase" : "it has no key for this host");
}

/* ---- making and opening ---- */

static int put_config(struct gw_bucket *bucket, const uint8_t key[GW_REPO_KEY_LEN], const struct gw_repo_config *config, struct gw_error *err)
{
	uint8_t object[GW_CONFIG_LEN];
	struct gw_repo_keys keys;
	int r = gw_repo_keys_derive(key, config->id, &keys);

	if (r == 0)
		r = gw_config_encode(config, &keys, object);
	OPENSSL_cleanse(&keys, sizeof(keys));
	if (r < 0)
		return gw_error_errno(err, r, "no keys can be made");
	/* Of two who make it at the same time one fails: each has an id of his own. */
	return gw_object_put(bucket, "config", object, sizeof(object), err);
}

static int init(struct gw_bucket *bucket, const struct gw_repo_secret *secret, const struct gw_repo_params *params, struct gw_error *err)
{
	struct gw_repo_config config = { .created_s = gw_realtime_ns() / GW_NS_PER_SEC, .grace_s = GW_REPO_DEFAULT_GRACE_S };
	gw_autobuf old = GW_BUF_INIT;
	uint8_t key[GW_REPO_KEY_LEN];
	char name[GW_OBJECT_NAME];
	int r;

	if (params && params->grace_s)
		config.grace_s = params->grace_s;
	if (config.grace_s < GW_REPO_MIN_GRACE_S || config.grace_s > GW_REPO_MAX_GRACE_S)
		return gw_error_set(err, EINVAL, "a grace period of %u seconds is out of range", config.grace_s);
	r = gw_bucket_read(bucket, "config", GW_CONFIG_LEN * 2, &old, err);
	if (r == 0 || r == -EFBIG)
		return gw_error_set(err, EEXIST, "%s is a repository already", gw_bucket_url(bucket));
	if (r != -ENOENT)
		return r;
	if (RAND_bytes(config.id, sizeof(config.id)) != 1 || RAND_bytes(key, sizeof(key)) != 1)
		return gw_error_set(err, EIO, "no random numbers");
	/* The configuration is last: a repository that has one can be opened. A key of an attempt that failed is ignored (another id). */
	r = put_key(bucket, key, config.id, secret, params, name, err);
	if (r == 0) {
		r = put_config(bucket, key, &config, err);
		if (r < 0)
			gw_bucket_remove(bucket, name, NULL);
	}
	OPENSSL_cleanse(key, sizeof(key));
	return r == -EEXIST ? gw_error_set(err, EEXIST, "%s is a repository already", gw_bucket_url(bucket)) : r;
}

int gw_repo_init(const char *url, const struct gw_repo_secret *secret, const struct gw_repo_params *params, struct gw_error *err)
{
	struct gw_bucket *bucket;
	int r = gw_bucket_open_with(url, secret->ticket, true, &bucket, err);

	if (r < 0)
		return r;
	r = init(bucket, secret, params, err);
	gw_bucket_free(bucket);
	return r;
}

static int open_repo(struct gw_repo *repo, const struct gw_repo_secret *secret, struct gw_error *err)
{
	gw_autobuf buf = GW_BUF_INIT;
	int r;

	if (!secret->passphrase && !secret->host && !secret->key)
		return gw_error_set(err, EINVAL, "a passphrase or a host's key is needed");
	r = gw_bucket_read(repo->bucket, "config", GW_CONFIG_LEN * 2, &buf, err);
	if (r == -ENOENT)
		return gw_error_set(err, ENOENT, "%s is no repository: it has no config", gw_bucket_url(repo->bucket));
	if (r == -EFBIG)
		return gw_object_damaged("config", err);
	if (r == 0)
		r = gw_config_decode(buf.data, buf.len, &repo->config, err);
	if (r == 0 && secret->key)
		memcpy(repo->key, secret->key, GW_REPO_KEY_LEN);
	else if (r == 0)
		r = find_key(repo, secret, err);
	if (r < 0)
		return r;
	if (gw_repo_keys_derive(repo->key, repo->config.id, &repo->keys) < 0)
		return gw_error_set(err, EIO, "no keys can be made");
	r = gw_config_verify(buf.data, &repo->keys, err);
	if (r < 0)
		return r;
	if (secret->fingerprint && CRYPTO_memcmp(secret->fingerprint, repo->keys.fingerprint, GW_REPO_ID_LEN))
		return gw_error_set(err, EKEYREJECTED, "%s is not the repository that is expected there", gw_bucket_url(repo->bucket));
	return 0;
}

int gw_repo_open(const char *url, const struct gw_repo_secret *secret, struct gw_repo **ret, struct gw_error *err)
{
	struct gw_repo *repo = calloc(1, sizeof(*repo));
	int r;

	if (!repo)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_bucket_open_with(url, secret->ticket, false, &repo->bucket, err);
	if (r == 0)
		r = open_repo(repo, secret, err);
	if (r < 0) {
		gw_repo_free(repo);
		return r;
	}
	*ret = repo;
	return 0;
}

void gw_repo_free(struct gw_repo *repo)
{
	if (!repo)
		return;
	gw_bucket_free(repo->bucket);
	OPENSSL_cleanse(repo, sizeof(*repo));
	free(repo);
}

void gw_repo_cancel(struct gw_repo *repo)
{
	gw_bucket_cancel(repo->bucket);
}

const char *gw_repo_url(const struct gw_repo *repo)
{
	return gw_bucket_url(repo->bucket);
}

const uint8_t *gw_repo_id(const struct gw_repo *repo)
{
	return repo->config.id;
}

const uint8_t *gw_repo_fingerprint(const struct gw_repo *repo)
{
	return repo->keys.fingerprint;
}

const uint8_t *gw_repo_key(const struct gw_repo *repo)
{
	return repo->key;
}

uint32_t gw_repo_grace_s(const struct gw_repo *repo)
{
	return repo->config.grace_s;
}

struct gw_bucket *gw_repo_bucket(struct gw_repo *repo)
{
	return repo->bucket;
}

const struct gw_repo_keys *gw_repo_keys(const struct gw_repo *repo)
{
	return &repo->keys;
}
