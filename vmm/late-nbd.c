// SPDX-License-Identifier: Apache-2.0
/* libnbd's functions that are used, loaded when a VM has such a disk; see lib/late.h. */
#include "vmm/late-nbd.h"

#include "lib/late.h"

#define FUNCTIONS(F) \
	F(struct nbd_handle *, nbd_create, (void), ()) \
	F(void, nbd_close, (struct nbd_handle *nbd), (nbd)) \
	F(const char *, nbd_get_error, (void), ()) \
	F(int, nbd_get_errno, (void), ()) \
	F(int, nbd_set_pread_initialize, (struct nbd_handle *nbd, bool on), (nbd, on)) \
	F(int, nbd_aio_connect_uri, (struct nbd_handle *nbd, const char *uri), (nbd, uri)) \
	F(int, nbd_is_read_only, (struct nbd_handle *nbd), (nbd)) \
	F(int, nbd_can_trim, (struct nbd_handle *nbd), (nbd)) \
	F(int, nbd_can_zero, (struct nbd_handle *nbd), (nbd)) \
	F(int, nbd_can_multi_conn, (struct nbd_handle *nbd), (nbd)) \
	F(int, nbd_can_flush, (struct nbd_handle *nbd), (nbd)) \
	F(int, nbd_aio_get_fd, (struct nbd_handle *nbd), (nbd)) \
	F(int, nbd_aio_is_ready, (struct nbd_handle *nbd), (nbd)) \
	F(int, nbd_aio_is_dead, (struct nbd_handle *nbd), (nbd)) \
	F(int, nbd_aio_is_closed, (struct nbd_handle *nbd), (nbd)) \
	F(int, nbd_aio_notify_read, (struct nbd_handle *nbd), (nbd)) \
	F(int, nbd_aio_notify_write, (struct nbd_handle *nbd), (nbd)) \
	F(unsigned, nbd_aio_get_direction, (struct nbd_handle *nbd), (nbd)) \
	F(int64_t, nbd_get_size, (struct nbd_handle *nbd), (nbd)) \
	F(int64_t, nbd_get_block_size, (struct nbd_handle *nbd, int type), (nbd, type)) \
	F(int, nbd_poll, (struct nbd_handle *nbd, int ms), (nbd, ms)) \
	F(int64_t, nbd_aio_pread, (struct nbd_handle *nbd, void *data, size_t len, uint64_t at, nbd_completion_callback done, uint32_t flags), (nbd, data, len, at, done, flags)) \
	F(int64_t, nbd_aio_pwrite, (struct nbd_handle *nbd, const void *data, size_t len, uint64_t at, nbd_completion_callback done, uint32_t flags), (nbd, data, len, at, done, flags)) \
	F(int64_t, nbd_aio_flush, (struct nbd_handle *nbd, nbd_completion_callback done, uint32_t flags), (nbd, done, flags)) \
	F(int64_t, nbd_aio_trim, (struct nbd_handle *nbd, uint64_t len, uint64_t at, nbd_completion_callback done, uint32_t flags), (nbd, len, at, done, flags)) \
	F(int64_t, nbd_aio_zero, (struct nbd_handle *nbd, uint64_t len, uint64_t at, nbd_completion_callback done, uint32_t flags), (nbd, len, at, done, flags))

GW_LATE_LIBRARY(FUNCTIONS, FUNCTIONS, "libnbd.so.0")

int gw_late_nbd(struct gw_error *err)
{
	return load(err);
}
