// SPDX-License-Identifier: Apache-2.0
/* Little-endian loads and stores at any alignment. x86-64 only, like the rest of Godwit. */
#ifndef GW_LIB_BYTES_H
#define GW_LIB_BYTES_H

#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "a little-endian machine is needed"
#endif

#define GW_DEFINE_LE(bits) \
	static inline uint##bits##_t gw_get_le##bits(const void *p) \
	{ \
		uint##bits##_t v; \
		memcpy(&v, p, sizeof(v)); \
		return v; \
	} \
	static inline void gw_put_le##bits(void *p, uint##bits##_t v) \
	{ \
		memcpy(p, &v, sizeof(v)); \
	}
GW_DEFINE_LE(16)
GW_DEFINE_LE(32)
GW_DEFINE_LE(64)
#undef GW_DEFINE_LE

#endif
