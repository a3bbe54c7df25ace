// SPDX-License-Identifier: Apache-2.0
/* A dirty source without KVM: userfaultfd write protection resolved by the kernel (WP_ASYNC, Linux 6.7) and PAGEMAP_SCAN. */
#ifndef GW_TESTS_UFFD_SOURCE_H
#define GW_TESTS_UFFD_SOURCE_H

#include "lib/ram/dirty.h"
#include "lib/ram/ram.h"

struct gw_uffd_source;

/* -ENOSYS or another negative errno where the kernel lacks it or refuses. Borrows ram. */
int gw_uffd_source_new(struct gw_ram *ram, struct gw_uffd_source **ret);
void gw_uffd_source_free(struct gw_uffd_source *s);
struct gw_dirty_source gw_uffd_source(struct gw_uffd_source *s);

#endif
