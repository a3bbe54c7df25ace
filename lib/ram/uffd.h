// SPDX-License-Identifier: Apache-2.0
/*
 * Thin names for userfaultfd: write protection, and pages that are missing (Linux, Documentation/admin-guide/mm/userfaultfd.rst). A range of memory belongs to at
 * most one userfaultfd at a time.
 */
#ifndef GW_LIB_RAM_UFFD_H
#define GW_LIB_RAM_UFFD_H

#include <stdint.h>

/* Newer than Debian 12's headers. */
#define GW_UFFD_WP_SHMEM (1ull << 12) /* UFFD_FEATURE_WP_HUGETLBFS_SHMEM, Linux 5.19 */
#define GW_UFFD_WP_UNPOPULATED (1ull << 13)
#define GW_UFFD_WP_ASYNC (1ull << 15)

/*
 * Opens one that holds faults of the kernel too (system calls, KVM), from /dev/userfaultfd or the system call, with `features`.
 * The descriptor or -errno: -EPERM when neither is allowed, -EINVAL when the kernel lacks a feature.
 */
int gw_uffd_open(uint64_t features);
/* Write-protect mode. Registering changes no page. All: 0 or -errno. */
int gw_uffd_register(int fd, uintptr_t start, uint64_t len);
int gw_uffd_unregister(int fd, uintptr_t start, uint64_t len);
int gw_uffd_protect(int fd, uintptr_t start, uint64_t len);
int gw_uffd_wake(int fd, uintptr_t start, uint64_t len);

/* Missing mode: who touches a page that is not there waits until it is placed. */
int gw_uffd_register_missing(int fd, uintptr_t start, uint64_t len);
/*
 * Place the pages of a registered range that are missing, each at once and whole, and wake who waits for them; one that is there, or was
 * mapped by others meanwhile, stays as it is.
 */
int gw_uffd_copy(int fd, uintptr_t to, const void *from, uint64_t len);
int gw_uffd_zero(int fd, uintptr_t start, uint64_t len);

/*
 * Moves private anonymous memory into a registered range where nothing is, and wakes who waits for it: `from` is empty then. Both aligned to 2 MiB and `from` a huge page
 * it comes whole, as one; else page by page. *moved is how many bytes were, also when it fails: -EEXIST: something is there; -EAGAIN, -EBUSY, -ENOMEM:
 * not now; -EINVAL: the memory is of different kinds, or the kernel is older than 6.8.
 */
int gw_uffd_move(int fd, uintptr_t to, void *from, uint64_t len, uint64_t *moved);

#endif
