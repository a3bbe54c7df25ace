// SPDX-License-Identifier: Apache-2.0
/* Parsing of the small values that people write: sizes, counts, MAC addresses, names. All strict: no trailing text. */
#ifndef GW_LIB_PARSE_H
#define GW_LIB_PARSE_H

#include <stdint.h>

#include "lib/error.h"

/* "512M", "2G", "4096K", "1T" or plain bytes (binary multiples; an optional trailing "iB" or "B" after the unit). Bytes. */
int gw_parse_size(const char *text, uint64_t *ret, struct gw_error *err);
/* Decimal within [min, max]; `what` names the value in the error. */
int gw_parse_uint(const char *text, const char *what, uint64_t min, uint64_t max, uint64_t *ret, struct gw_error *err);
/* "yes/no", "true/false", "on/off", "1/0". */
int gw_parse_bool(const char *text, const char *what, int *ret, struct gw_error *err);
/* Unicast "52:54:00:12:34:56". */
int gw_parse_mac(const char *text, uint8_t ret[6], struct gw_error *err);
/* A VM, host or device name: 1 to 63 characters of [A-Za-z0-9._-], starting with a letter or digit. */
int gw_parse_name(const char *text, const char *what, struct gw_error *err);
/* A network interface name as Linux takes it: 1 to 15 bytes, no '/', ':' or white space, not "." or "..". */
int gw_parse_ifname(const char *text, struct gw_error *err);
/* 2 * len lower- or upper-case hexadecimal digits. */
int gw_parse_hex(const char *text, uint8_t *ret, unsigned len, struct gw_error *err);
/* Writes 2 * len digits and a NUL to `out`. */
void gw_format_hex(const uint8_t *data, unsigned len, char *out);

#endif
