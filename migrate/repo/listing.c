// SPDX-License-Identifier: Apache-2.0
/* Lists of objects; see listing.h. */
#include "migrate/repo/listing.h"

#include <errno.h>
#include <string.h>

#include "lib/util.h"

void gw_listing_release(struct gw_listing *l)
{
	free(l->all);
	memset(l, 0, sizeof(*l));
}

static int add_listed(void *self, const struct gw_bucket_entry *e)
{
	struct gw_listing *l = self;
	struct gw_listed *one;

	if (strlen(e->name) >= GW_LISTED_NAME)
		return 0;
	if (l->count == l->cap) {
		size_t cap = GW_MAX(l->cap * 2, (size_t)64);
		struct gw_listed *more = realloc(l->all, cap * sizeof(*more));

		if (!more)
			return -ENOMEM;
		l->all = more;
		l->cap = cap;
	}
	one = &l->all[l->count++];
	snprintf(one->name, sizeof(one->name), "%s", e->name);
	one->size = e->size;
	one->modified_s = e->modified_s;
	return 0;
}

int gw_listing_read(struct gw_bucket *bucket, const char *prefix, struct gw_listing *ret, struct gw_error *err)
{
	struct gw_listing l = { 0 };
	int r = gw_bucket_list(bucket, prefix, add_listed, &l, err);

	if (r < 0) {
		gw_listing_release(&l);
		return r == -ENOMEM ? gw_error_set(err, ENOMEM, "out of memory") : r;
	}
	*ret = l;
	return 0;
}

static int compare_listed(const void *name, const void *entry)
{
	return strcmp(name, ((const struct gw_listed *)entry)->name);
}

const struct gw_listed *gw_listing_find(const struct gw_listing *l, const char *name)
{
	return l->count ? bsearch(name, l->all, l->count, sizeof(*l->all), compare_listed) : NULL;
}
