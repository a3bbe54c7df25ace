// SPDX-License-Identifier: Apache-2.0
/* A dirty source without KVM; see uffd-source.h. */
#include "uffd-source.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "lib/util.h"

/* Newer than Debian 12's headers. */
#define FEATURE_WP_UNPOPULATED (1ull << 13)
#define FEATURE_WP_ASYNC (1ull << 15)
struct scan_range {
	uint64_t start, end, categories;
};
struct scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN _IOWR('f', 16, struct scan_arg)
#define SCAN_WP_MATCHING (1ull << 0)
#define SCAN_CHECK_WPASYNC (1ull << 1)
#define PAGE_WRITTEN (1ull << 1)

struct gw_uffd_source {
	struct gw_ram *ram;
	int uffd;
	int pagemap;
	bool registered;
};

int gw_uffd_source_new(struct gw_ram *ram, struct gw_uffd_source **ret)
{
	struct uffdio_api api = { .api = UFFD_API, .features = FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED };
	struct gw_uffd_source *s = calloc(1, sizeof(*s));
	int r = 0;

	if (!s)
		return -ENOMEM;
	s->ram = ram;
	s->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	s->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (s->uffd < 0 || s->pagemap < 0 || ioctl(s->uffd, UFFDIO_API, &api) < 0)
		r = -errno;
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
	for (unsigned i = 0; i < count && s->registered; i++) {
		struct uffdio_range range = { (uintptr_t)regions[i].hva, regions[i].size };

		ioctl(s->uffd, UFFDIO_UNREGISTER, &range);
	}
	s->registered = false;
}

void gw_uffd_source_free(struct gw_uffd_source *s)
{
	if (!s)
		return;
	unregister(s);
	gw_closep(&s->uffd);
	gw_closep(&s->pagemap);
	free(s);
}

/* Collects and protects again in one walk. */
static int scan(struct gw_uffd_source *s, const struct gw_ram_region *r, uint64_t *bitmap)
{
	struct scan_range found[128];
	struct scan_arg arg = {
		.size = sizeof(arg),
		.flags = SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC,
		.start = (uintptr_t)r->hva,
		.end = (uintptr_t)r->hva + r->size,
		.vec = (uintptr_t)found,
		.vec_len = ARRAY_SIZE(found),
		.category_mask = PAGE_WRITTEN,
		.return_mask = PAGE_WRITTEN,
	};

	while (arg.start < arg.end) {
		int n = ioctl(s->pagemap, SCAN, &arg);

		if (n < 0)
			return -errno;
		for (int i = 0; i < n && bitmap; i++) {
			uint64_t first = r->first_page + ((found[i].start - (uintptr_t)r->hva) >> GW_PAGE_SHIFT);
			uint64_t count = (found[i].end - found[i].start) >> GW_PAGE_SHIFT;

			for (uint64_t k = first; k < first + count; k++)
				bitmap[k / 64] |= 1ull << (k % 64);
		}
		arg.start = arg.walk_end;
	}
	return 0;
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
		struct uffdio_register reg = { .range = { (uintptr_t)regions[i].hva, regions[i].size },
					       .mode = UFFDIO_REGISTER_MODE_WP };

		if (ioctl(s->uffd, UFFDIO_REGISTER, &reg) < 0)
			return gw_error_errno(err, errno, "UFFDIO_REGISTER");
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
