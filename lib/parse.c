// SPDX-License-Identifier: Apache-2.0
/* Strict parsing of small values; see parse.h. */
#include "lib/parse.h"

#include <ctype.h>
#include <errno.h>
#include <net/if.h>
#include <string.h>
#include <strings.h>

#include "lib/util.h"

/* Digits only, so that signs, blanks and "0x" that strtoull() takes are refused. */
static int parse_digits(const char *text, const char **end, uint64_t *ret)
{
	uint64_t v = 0;
	const char *p;

	for (p = text; isdigit((unsigned char)*p); p++) {
		if (__builtin_mul_overflow(v, 10ull, &v) || __builtin_add_overflow(v, (uint64_t)(*p - '0'), &v))
			return -ERANGE;
	}
	if (p == text)
		return -EINVAL;
	*end = p;
	*ret = v;
	return 0;
}

int gw_parse_size(const char *text, uint64_t *ret, struct gw_error *err)
{
	static const char units[] = "KMGT";
	const char *p, *unit;
	uint64_t v;
	int shift = 0, r;

	r = parse_digits(text, &p, &v);
	if (r < 0)
		return gw_error_set(err, r, "'%.32s' is not a size (examples: 512M, 2G)", text);
	if (*p && (unit = strchr(units, toupper((unsigned char)*p)))) {
		shift = 10 * (int)(unit - units + 1);
		p++;
		if (*p == 'i')
			p++;
	}
	if (*p == 'B')
		p++;
	if (*p)
		return gw_error_set(err, EINVAL, "'%.32s' is not a size (examples: 512M, 2G)", text);
	if (shift && v > UINT64_MAX >> shift)
		return gw_error_set(err, ERANGE, "size '%.32s' is too large", text);
	*ret = v << shift;
	return 0;
}

int gw_parse_uint(const char *text, const char *what, uint64_t min, uint64_t max, uint64_t *ret, struct gw_error *err)
{
	const char *end;
	uint64_t v;

	if (parse_digits(text, &end, &v) < 0 || *end)
		return gw_error_set(err, EINVAL, "%s: '%.32s' is not a number", what, text);
	if (v < min || v > max)
		return gw_error_set(err, ERANGE, "%s: %llu is not within %llu to %llu", what, (unsigned long long)v,
				    (unsigned long long)min, (unsigned long long)max);
	*ret = v;
	return 0;
}

int gw_parse_bool(const char *text, const char *what, int *ret, struct gw_error *err)
{
	static const char *const words[] = { "no", "yes", "false", "true", "off", "on", "0", "1" };

	for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
		if (!strcasecmp(text, words[i])) {
			*ret = i & 1;
			return 0;
		}
	}
	return gw_error_set(err, EINVAL, "%s: '%.32s' is neither yes nor no", what, text);
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)tolower((unsigned char)c);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int gw_parse_mac(const char *text, uint8_t ret[6], struct gw_error *err)
{
	uint8_t mac[6];
	const char *p = text;

	for (int i = 0; i < 6; i++, p += 3) {
		int hi = hex_digit(p[0]);
		int lo = hi < 0 ? -1 : hex_digit(p[1]);

		if (lo < 0 || p[2] != (i < 5 ? ':' : '\0'))
			return gw_error_set(err, EINVAL, "'%.32s' is not a MAC address (example: 52:54:00:12:34:56)", text);
		mac[i] = (uint8_t)(hi << 4 | lo);
	}
	if (mac[0] & 1)
		return gw_error_set(err, EINVAL, "MAC address %s is a multicast address", text);
	memcpy(ret, mac, sizeof(mac));
	return 0;
}

int gw_parse_name(const char *text, const char *what, struct gw_error *err)
{
	size_t len = strnlen(text, 64);

	if (len == 0 || len > 63)
		return gw_error_set(err, EINVAL, "%s must have 1 to 63 characters", what);
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)text[i];

		if (!isalnum(c) && (i == 0 || !strchr("._-", c)))
			return gw_error_set(err, EINVAL,
					    "%s '%s' may hold letters, digits, '.', '_' and '-' only, and starts with a letter or digit",
					    what, text);
	}
	return 0;
}

int gw_parse_ifname(const char *text, struct gw_error *err)
{
	size_t len = strnlen(text, IFNAMSIZ);

	if (len == 0 || len >= IFNAMSIZ)
		return gw_error_set(err, EINVAL, "interface name '%.32s' must have 1 to %d characters", text, IFNAMSIZ - 1);
	if (!strcmp(text, ".") || !strcmp(text, ".."))
		return gw_error_set(err, EINVAL, "'%s' is no interface name", text);
	for (size_t i = 0; i < len; i++) {
		if (!isgraph((unsigned char)text[i]) || text[i] == '/' || text[i] == ':' || text[i] == '%')
			return gw_error_set(err, EINVAL, "interface name '%.15s' holds a character that Linux refuses", text);
	}
	return 0;
}

int gw_parse_hex(const char *text, uint8_t *ret, unsigned len, struct gw_error *err)
{
	if (strnlen(text, 2 * (size_t)len + 1) != 2 * (size_t)len)
		return gw_error_set(err, EINVAL, "%u hexadecimal digits expected", 2 * len);
	for (unsigned i = 0; i < len; i++) {
		if (hex_digit(text[2 * i]) < 0 || hex_digit(text[2 * i + 1]) < 0)
			return gw_error_set(err, EINVAL, "'%.2s' is not a hexadecimal byte", text + 2 * i);
	}
	for (unsigned i = 0; i < len; i++)
		ret[i] = (uint8_t)(hex_digit(text[2 * i]) << 4 | hex_digit(text[2 * i + 1]));
	return 0;
}

void gw_format_hex(const uint8_t *data, unsigned len, char *out)
{
	static const char digits[] = "0123456789abcdef";

	for (unsigned i = 0; i < len; i++) {
		out[2 * i] = digits[data[i] >> 4];
		out[2 * i + 1] = digits[data[i] & 15];
	}
	out[2 * len] = '\0';
}
