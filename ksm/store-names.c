// SPDX-License-Identifier: Apache-2.0
/*
 * Pages by name: what a client has loaded is offered whole, a sealed file and a name for each of its pages, and found by others that load the same.
 * Names only come with a file, one a page, and go with its chunk: so they are bounded by what bounds chunks, and take 24 bytes there and 18 to 20 in
 * the index. The one that came first has a name.
 */
#include <errno.h>
#include <string.h>

#include "ksm/store-internal.h"

static uint64_t name_key(const struct gw_store *s, uint64_t name)
{
	return gw_index_key(&s->names, name);
}

int gw_store_find(struct gw_store_client *c, uint32_t cookie, const struct gw_share_find *e, unsigned n)
{
	struct gw_store *s = c->store;
	struct gw_share_found found[GW_SHARE_MAX_FIND];
	unsigned count = 0;

	for (unsigned i = 0; i < n; i++)
		gw_index_prefetch(&s->names, name_key(s, e[i].name));
	for (unsigned i = 0; i < n; i++) {
		const uint64_t *where = gw_index_find(&s->names, name_key(s, e[i].name));
		struct gw_chunk *k = where ? gw_store_chunk(s, where_chunk(*where)) : NULL;

		/* Two names may have one key, in theory. */
		if (!k || k->name[where_slot(*where)].name != e[i].name || !gw_store_hold(c, k, true))
			continue;
		/* Compaction is to know that it may be mapped. */
		gw_store_may_map(gw_store_told(k, c->ref, false), where_slot(*where));
		found[count] = (struct gw_share_found){ .index = i, .chunk = k->number, .slot = where_slot(*where) };
		memcpy(found[count++].proof, k->name[where_slot(*where)].proof, GW_SHARE_PROOF_LEN);
	}
	gw_outbox_put(&c->out, GW_SHARE_FOUND, cookie, found, count, sizeof(found[0]), NULL);
	gw_store_touch(c);
	return 0;
}

/* Without memory for an entry the page is not found by that name. */
static void enter_names(struct gw_store *s, struct gw_chunk *k, const struct gw_share_named *e)
{
	k->name = malloc(k->slots * sizeof(*k->name));
	if (!k->name)
		return;
	memcpy(k->name, e, k->slots * sizeof(*k->name));
	for (unsigned i = 0; i < k->slots; i++) {
		if (!gw_index_find(&s->names, name_key(s, e[i].name)))
			(void)gw_index_put(&s->names, name_key(s, e[i].name), where_stored(k->number, i));
	}
}

int gw_store_offer(struct gw_store_client *c, uint32_t cookie, const struct gw_share_named *e, unsigned n, int fd)
{
	gw_autofd file = fd;
	struct gw_chunk *k = NULL;
	unsigned known = 0;

	if (cookie >= 1u << 31)
		return -EPROTO;
	for (unsigned i = 0; i < n; i++)
		known += gw_index_find(&c->store->names, name_key(c->store, e[i].name)) != NULL;
	if (known * 2 < n)
		k = gw_store_bring(c, &file);
	/* One that was brought for nothing is closed at the end of this step. */
	if (k && k->slots != n)
		k = NULL;
	if (gw_store_adopted(c, cookie, k) && !k->name)
		enter_names(c->store, k, e);
	return 0;
}

void gw_store_unname(struct gw_store *s, const struct gw_chunk *k)
{
	for (unsigned i = 0; k->name && i < k->slots; i++) {
		const uint64_t *where = gw_index_find(&s->names, name_key(s, k->name[i].name));

		if (where && *where == where_stored(k->number, i))
			gw_index_remove(&s->names, name_key(s, k->name[i].name));
	}
}
