// SPDX-License-Identifier: Apache-2.0
/* A dirty source without KVM; see uffd-source.h. */
#include "uffd-source.h"

#include <errno.h>

#include "lib/ram/pagemap.h"
#include "lib/ram/uffd.h"
#include "lib/util.h"

struct gw_uffd_source {
	struct gw_ram *ram;
	int uffd;
	struct gw_pagemap *pagemap;
	bool registered;
};

int gw_uffd_source_new(struct gw_ram *ram, struct gw_uffd_source **ret)
{
	struct gw_uffd_source *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	s->ram = ram;
	s->uffd = gw_uffd_open(GW_UFFD_WP_ASYNC | GW_UFFD_WP_UNPOPULATED);
	r = s->uffd < 0 ? s->uffd : gw_pagemap_new(&s->pagemap);
	if (r < 0) {
		gw_uffd_source_free(s);
		return r;
	}
	*ret = s;
	return 0;
}

static void unregister(struct gw_uffd_source *s)
{
	const struct gw_ram_region *regions;
	unsigned count;

	regions = gw_ram_regions(s->ram, &count);
	for (unsigned i = 0; i < count && s->registered; i++)
		gw_uffd_unregister(s->uffd, (uintptr_t)regions[i].hva, regions[i].size);
	s->registered = false;
}

void gw_uffd_source_free(struct gw_uffd_source *s)
{
	if (!s)
		return;
	unregister(s);
	gw_closep(&s->uffd);
	gw_pagemap_free(s->pagemap);
	free(s);
}

/* Collects and protects again in one walk. */
static int scan(struct gw_uffd_source *s, const struct gw_ram_region *r, uint64_t *bitmap)
{
	static const struct gw_page_query written = { .all = GW_PAGE_WRITTEN, .rearm = true };
	gw_autofree uint64_t *unwanted = bitmap ? NULL : calloc(gw_ram_bitmap_words(s->ram), sizeof(uint64_t));

	if (!bitmap && !unwanted)
		return -ENOMEM;
	return gw_pagemap_scan(s->pagemap, (uintptr_t)r->hva, (uintptr_t)r->hva + r->size, &written, bitmap ? bitmap : unwanted, r->first_page);
}

static int scan_all(struct gw_uffd_source *s, uint64_t *bitmap, struct gw_error *err)
{
	const struct gw_ram_region *regions;
	unsigned count;

	regions = gw_ram_regions(s->ram, &count);
	for (unsigned i = 0; i < count; i++) {
		int r = scan(s, &regions[i], bitmap);

		if (r < 0)
			return gw_error_errno(err, r, "PAGEMAP_SCAN");
	}
	return 0;
}

static int source_start(void *self, struct gw_error *err)
{
	struct gw_uffd_source *s = self;
	const struct gw_ram_region *regions;
	unsigned count;

	regions = gw_ram_regions(s->ram, &count);
	for (unsigned i = 0; i < count; i++) {
		int r = gw_uffd_register(s->uffd, (uintptr_t)regions[i].hva, regions[i].size);

		if (r < 0)
			return gw_error_errno(err, r, "UFFDIO_REGISTER");
	}
	s->registered = true;
	gw_ram_log_start(s->ram);
	return scan_all(s, NULL, err);
}

static int source_sync(void *self, uint64_t *bitmap, struct gw_error *err)
{
	struct gw_uffd_source *s = self;

	gw_ram_log_take(s->ram, bitmap);
	return scan_all(s, bitmap, err);
}

static void source_stop(void *self)
{
	struct gw_uffd_source *s = self;

	unregister(s);
	gw_ram_log_stop(s->ram);
}

struct gw_dirty_source gw_uffd_source(struct gw_uffd_source *s)
{
	static const struct gw_dirty_ops ops = {
		.name = "uffd-wp",
		.start = source_start,
		.sync = source_sync,
		.stop = source_stop,
	};

	return (struct gw_dirty_source){ &ops, s };
}
