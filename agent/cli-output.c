// SPDX-License-Identifier: Apache-2.0
/* What the command line prints; see cli-output.h. */
#include "agent/cli-output.h"

#include <stdarg.h>
#include <string.h>

#include "agent/json.h"
#include "lib/util.h"

void gw_table_cell(struct gw_table *t, const char *fmt, ...)
{
	char **grown = reallocarray(t->cells, (size_t)t->ncells + 1, sizeof(*grown));
	va_list ap;

	if (!grown) {
		t->failed = true;
		return;
	}
	t->cells = grown;
	va_start(ap, fmt);
	if (vasprintf(&grown[t->ncells], fmt, ap) < 0)
		t->failed = true;
	else
		t->ncells++;
	va_end(ap);
}

void gw_table_print(const struct gw_table *t)
{
	size_t width[GW_TABLE_COLUMNS] = { 0 };

	for (unsigned i = 0; i < t->ncells; i++)
		width[i % t->columns] = GW_MAX(width[i % t->columns], strlen(t->cells[i]));
	for (unsigned i = 0; i < t->ncells; i++) {
		bool last = i % t->columns == t->columns - 1;

		printf("%-*s%s", last ? 0 : (int)width[i % t->columns], t->cells[i], last ? "\n" : "  ");
	}
}

void gw_table_release(struct gw_table *t)
{
	for (unsigned i = 0; i < t->ncells; i++)
		free(t->cells[i]);
	free(t->cells);
	memset(t, 0, sizeof(*t));
}

void gw_format_size(uint64_t bytes, char *out, size_t size)
{
	static const char *const units[] = { "KiB", "MiB", "GiB", "TiB" };
	double v = (double)bytes / 1024;
	size_t u = 0;

	if (bytes < 1024) {
		snprintf(out, size, "%u B", (unsigned)bytes);
		return;
	}
	for (; v >= 1024 && u + 1 < ARRAY_SIZE(units); u++)
		v /= 1024;
	snprintf(out, size, "%.1f %s", v, units[u]);
}

void gw_format_ms(uint64_t ms, char *out, size_t size)
{
	if (ms < 60000)
		snprintf(out, size, "%.2f s", (double)ms / 1000);
	else
		snprintf(out, size, "%u min %u s", (unsigned)(ms / 60000), (unsigned)(ms / 1000 % 60));
}

void gw_format_time(uint64_t realtime_ns, char *out, size_t size)
{
	time_t t = (time_t)(realtime_ns / 1000000000u);
	struct tm tm;

	if (!localtime_r(&t, &tm) || strftime(out, size, "%F %T", &tm) == 0)
		snprintf(out, size, "?");
}

/* Bytes of the well-formed sequence at `s` and its code point; 0: it is none (RFC 3629). */
static unsigned decode_utf8(const unsigned char *s, uint32_t *code)
{
	static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
	unsigned len = s[0] < 0x80 ? 1 : s[0] >= 0xc2 && s[0] < 0xe0 ? 2 : (s[0] & 0xf0) == 0xe0 ? 3 : (s[0] & 0xf8) == 0xf0 ? 4 : 0;
	uint32_t c = len == 1 ? s[0] : s[0] & (0x7fu >> len);

	for (unsigned i = 1; i < len; i++) {
		if ((s[i] & 0xc0) != 0x80) /* also the end of the string */
			return 0;
		c = c << 6 | (s[i] & 0x3f);
	}
	if (len == 0 || c < least[len] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
		return 0;
	*code = c;
	return len;
}

static bool is_harmless(uint32_t c)
{
	if (c < 0x20 || (c >= 0x7f && c <= 0x9f))
		return false;
	/* Separators of lines; marks, embeddings, overrides and isolates of direction; the byte order mark. */
	return !(c == 0x200e || c == 0x200f || (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069) || c == 0xfeff);
}

const char *gw_clean_text(const char *in, char *out, size_t size)
{
	size_t n = 0;

	while (*in && n + 1 < size) {
		uint32_t code = 0;
		unsigned len = decode_utf8((const unsigned char *)in, &code);

		if (len == 0 || !is_harmless(code)) {
			out[n++] = '?';
			in += len ?: 1;
			continue;
		}
		if (n + len >= size)
			break;
		memmove(out + n, in, len);
		n += len;
		in += len;
	}
	out[n] = '\0';
	return out;
}

void gw_format_utc(uint64_t realtime_ns, char *out, size_t size)
{
	time_t t = (time_t)(realtime_ns / 1000000000u);
	struct tm tm;

	if (!gmtime_r(&t, &tm) || strftime(out, size, "%FT%TZ", &tm) == 0)
		snprintf(out, size, "?");
}

void gw_print_json(json_t *value, bool one_line)
{
	if (!value || json_dumpf(value, stdout, JSON_REAL_PRECISION(15) | (one_line ? JSON_COMPACT : JSON_INDENT(2))) < 0)
		fputs("null", stdout);
	putchar('\n');
	if (one_line)
		fflush(stdout);
	json_decref(value);
}

void gw_print_json_message(const ProtobufCMessage *msg)
{
	gw_print_json(gw_json_message(msg), false);
}
