// SPDX-License-Identifier: Apache-2.0
/* Buckets by URL, and the checks that all back ends share; see bucket.h. */
#include "migrate/repo/bucket.h"

#include <errno.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/repo/bucket-internal.h"

static const struct gw_bucket_ops *const backends[] = {
	&gw_bucket_file,
	&gw_bucket_s3,
	&gw_bucket_remote,
};

static bool name_byte(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '-';
}

bool gw_bucket_name_ok(const char *name)
{
	size_t len = strnlen(name, GW_BUCKET_MAX_NAME + 1), word = 0;

	if (len == 0 || len > GW_BUCKET_MAX_NAME)
		return false;
	for (size_t i = 0; i <= len; i++) {
		if (i < len && name[i] != '/') {
			if (!name_byte(name[i]))
				return false;
			word++;
			continue;
		}
		if (word == 0 || (word == 1 && name[i - 1] == '.') || (word == 2 && name[i - 1] == '.' && name[i - 2] == '.'))
			return false;
		word = 0;
	}
	return true;
}

int gw_bucket_open_with(const char *url, const struct gw_ticket *ticket, bool create, struct gw_bucket **ret, struct gw_error *err)
{
	for (size_t i = 0; i < ARRAY_SIZE(backends); i++) {
		struct gw_bucket *b;
		int r;

		if (strncmp(url, backends[i]->scheme, strlen(backends[i]->scheme)))
			continue;
		r = backends[i]->open(url, ticket, create, &b, err);
		if (r < 0)
			return r;
		b->ops = backends[i];
		b->url = strdup(url);
		if (!b->url) {
			gw_bucket_free(b);
			return gw_error_set(err, ENOMEM, "out of memory");
		}
		*ret = b;
		return 0;
	}
	return gw_error_set(err, EINVAL, "'%s' is no repository URL (file:///DIRECTORY, s3://BUCKET/PREFIX or godwit://HOST/NAME)", url);
}

void gw_bucket_free(struct gw_bucket *b)
{
	if (!b)
		return;
	free(b->url);
	b->ops->free(b);
}

const char *gw_bucket_url(const struct gw_bucket *b)
{
	return b->url;
}

bool gw_bucket_exclusive(const struct gw_bucket *b)
{
	return b->ops->exclusive(b);
}

static int check_name(const char *name, struct gw_error *err)
{
	return gw_bucket_name_ok(name) ? 0 : gw_error_set(err, EINVAL, "'%.40s' cannot be the name of an object", name);
}

int gw_bucket_put(struct gw_bucket *b, const char *name, const struct gw_bucket_piece *pieces, unsigned count, enum gw_bucket_put how,
		  struct gw_error *err)
{
	uint64_t total = 0;
	int r = check_name(name, err);

	for (unsigned i = 0; i < count && r == 0; i++) {
		if (__builtin_add_overflow(total, pieces[i].len, &total) || total > GW_BUCKET_MAX_OBJECT)
			r = gw_error_set(err, EFBIG, "%s is too large to be stored", name);
	}
	return r < 0 ? r : b->ops->put(b, name, pieces, count, how, err);
}

int gw_bucket_get(struct gw_bucket *b, const char *name, uint64_t offset, uint64_t len, void *data, struct gw_error *err)
{
	uint64_t end;
	int r = check_name(name, err);

	if (r < 0)
		return r;
	if (__builtin_add_overflow(offset, len, &end) || end > GW_BUCKET_MAX_OBJECT)
		return gw_error_set(err, EPROTO, "%s cannot be as long", name);
	return b->ops->get(b, name, offset, len, data, err);
}

int gw_bucket_read(struct gw_bucket *b, const char *name, uint64_t limit, struct gw_buf *out, struct gw_error *err)
{
	int r = check_name(name, err);

	return r < 0 ? r : b->ops->read(b, name, GW_MIN(limit, GW_BUCKET_MAX_OBJECT), out, err);
}

int gw_bucket_remove(struct gw_bucket *b, const char *name, struct gw_error *err)
{
	int r = check_name(name, err);

	return r < 0 ? r : b->ops->remove(b, name, err);
}

int gw_bucket_list(struct gw_bucket *b, const char *prefix, gw_bucket_entry_fn *fn, void *self, struct gw_error *err)
{
	return b->ops->list(b, prefix, fn, self, err);
}

void gw_bucket_cancel(struct gw_bucket *b)
{
	b->ops->cancel(b);
}
