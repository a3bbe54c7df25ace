// SPDX-License-Identifier: Apache-2.0
/* An encoder of AML; see aml.h. Section numbers are those of ACPI 6.4. */
#include "vmm/aml.h"

#include <ctype.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/util.h"

enum {
	OP_ZERO = 0x00,
	OP_ONE = 0x01,
	OP_NAME = 0x08,
	OP_BYTE = 0x0a,
	OP_WORD = 0x0b,
	OP_DWORD = 0x0c,
	OP_STRING = 0x0d,
	OP_QWORD = 0x0e,
	OP_SCOPE = 0x10,
	OP_BUFFER = 0x11,
	OP_PACKAGE = 0x12,
	OP_METHOD = 0x14,
	OP_DUAL_NAME = 0x2e,
	OP_EXT = 0x5b,
	OP_EXT_DEVICE = 0x82,
	OP_NOTIFY = 0x86,
};

/* A length takes this many bytes while its package is open: enough for 1 MiB (§20.2.4), shortened when it is closed. */
#define LENGTH_BYTES 3

bool gw_aml_failed(const struct gw_aml *aml)
{
	return aml->failed;
}

static void put(struct gw_aml *aml, const void *data, size_t len)
{
	if (!aml->failed && gw_buf_append(aml->out, data, len) < 0)
		aml->failed = true;
}

static void put_byte(struct gw_aml *aml, uint8_t byte)
{
	put(aml, &byte, 1);
}

/* One segment, padded with underscores (§20.2.2). */
static void put_segment(struct gw_aml *aml, const char *name, size_t len)
{
	char segment[4] = { '_', '_', '_', '_' };

	memcpy(segment, name, GW_MIN(len, sizeof(segment)));
	put(aml, segment, sizeof(segment));
}

static void put_path(struct gw_aml *aml, const char *path)
{
	const char *dot;

	if (*path == '\\')
		put_byte(aml, (uint8_t)*path++);
	dot = strchr(path, '.');
	if (!dot) {
		put_segment(aml, path, strlen(path));
		return;
	}
	put_byte(aml, OP_DUAL_NAME);
	put_segment(aml, path, (size_t)(dot - path));
	put_segment(aml, dot + 1, strlen(dot + 1));
}

static struct gw_aml_mark open_package(struct gw_aml *aml)
{
	struct gw_aml_mark mark = { aml->out->len };
	const uint8_t room[LENGTH_BYTES] = { 0 };

	put(aml, room, sizeof(room));
	return mark;
}

struct gw_aml_mark gw_aml_scope(struct gw_aml *aml, const char *path)
{
	struct gw_aml_mark mark;

	put_byte(aml, OP_SCOPE);
	mark = open_package(aml);
	put_path(aml, path);
	return mark;
}

struct gw_aml_mark gw_aml_device(struct gw_aml *aml, const char *name)
{
	struct gw_aml_mark mark;

	put_byte(aml, OP_EXT);
	put_byte(aml, OP_EXT_DEVICE);
	mark = open_package(aml);
	put_path(aml, name);
	return mark;
}

struct gw_aml_mark gw_aml_method(struct gw_aml *aml, const char *name)
{
	struct gw_aml_mark mark;

	put_byte(aml, OP_METHOD);
	mark = open_package(aml);
	put_path(aml, name);
	/* Flags (§20.2.5.2): no arguments, not serialized. */
	put_byte(aml, 0);
	return mark;
}

void gw_aml_end(struct gw_aml *aml, struct gw_aml_mark mark)
{
	uint8_t *at;
	size_t len;

	if (aml->failed)
		return;
	at = aml->out->data + mark.at;
	/* The length counts itself (§20.2.4). Three bytes: 4 low bits and the count of further bytes, then 16 bits. */
	len = aml->out->len - mark.at;
	at[0] = (uint8_t)((LENGTH_BYTES - 1) << 6 | (len & 0xf));
	at[1] = (uint8_t)(len >> 4);
	at[2] = (uint8_t)(len >> 12);
}

static void put_int(struct gw_aml *aml, uint64_t value)
{
	uint8_t raw[9];
	size_t len;

	if (value <= 1) {
		put_byte(aml, value ? OP_ONE : OP_ZERO);
		return;
	}
	gw_put_le64(raw + 1, value);
	if (value <= UINT8_MAX) {
		raw[0] = OP_BYTE;
		len = 2;
	} else if (value <= UINT16_MAX) {
		raw[0] = OP_WORD;
		len = 3;
	} else if (value <= UINT32_MAX) {
		raw[0] = OP_DWORD;
		len = 5;
	} else {
		raw[0] = OP_QWORD;
		len = 9;
	}
	put(aml, raw, len);
}

void gw_aml_notify(struct gw_aml *aml, const char *path, uint8_t value)
{
	put_byte(aml, OP_NOTIFY);
	put_path(aml, path);
	put_int(aml, value);
}

static void put_name(struct gw_aml *aml, const char *name)
{
	put_byte(aml, OP_NAME);
	put_path(aml, name);
}

void gw_aml_name_int(struct gw_aml *aml, const char *name, uint64_t value)
{
	put_name(aml, name);
	put_int(aml, value);
}

void gw_aml_name_string(struct gw_aml *aml, const char *name, const char *text)
{
	put_name(aml, name);
	put_byte(aml, OP_STRING);
	put(aml, text, strlen(text) + 1);
}

void gw_aml_name_eisaid(struct gw_aml *aml, const char *name, const char *id)
{
	uint32_t value = 0;

	/* Three letters of five bits, four hexadecimal digits; the whole is big-endian. */
	for (int i = 0; i < 3; i++)
		value = value << 5 | (uint32_t)(id[i] - '@');
	for (int i = 3; i < 7; i++) {
		uint32_t digit = isdigit((unsigned char)id[i]) ? (uint32_t)(id[i] - '0') : (uint32_t)(id[i] - 'A' + 10);

		value = value << 4 | digit;
	}
	put_name(aml, name);
	put_byte(aml, OP_DWORD);
	value = __builtin_bswap32(value);
	put(aml, &value, sizeof(value));
}

void gw_aml_name_package(struct gw_aml *aml, const char *name, const uint64_t *values, unsigned count)
{
	struct gw_aml_mark mark;

	put_name(aml, name);
	put_byte(aml, OP_PACKAGE);
	mark = open_package(aml);
	put_byte(aml, (uint8_t)count);
	for (unsigned i = 0; i < count; i++)
		put_int(aml, values[i]);
	gw_aml_end(aml, mark);
}

static void add(struct gw_aml *aml, struct gw_aml_crs *crs, const void *data, size_t len)
{
	if (gw_buf_append(&crs->items, data, len) < 0)
		aml->failed = true;
}

void gw_aml_crs_io(struct gw_aml *aml, struct gw_aml_crs *crs, uint16_t base, uint8_t len)
{
	/* §6.4.2.5: 16-bit decode, minimum and maximum, alignment, length. */
	uint8_t d[8] = { 0x47, 1, 0, 0, 0, 0, 1, len };

	gw_put_le16(d + 2, base);
	gw_put_le16(d + 4, base);
	add(aml, crs, d, sizeof(d));
}

void gw_aml_crs_irq(struct gw_aml *aml, struct gw_aml_crs *crs, unsigned line)
{
	/* §6.4.2.1 without flags: edge-triggered, high, exclusive. */
	uint8_t d[3] = { 0x22, 0, 0 };

	gw_put_le16(d + 1, (uint16_t)(1u << line));
	add(aml, crs, d, sizeof(d));
}

void gw_aml_crs_memory32_fixed(struct gw_aml *aml, struct gw_aml_crs *crs, uint32_t base, uint32_t len)
{
	/* §6.4.3.4 */
	uint8_t d[12] = { 0x86, 9, 0, 1 };

	gw_put_le32(d + 4, base);
	gw_put_le32(d + 8, len);
	add(aml, crs, d, sizeof(d));
}

/* Address space descriptors, §6.4.3.5: resource types and their flags. */
enum { SPACE_MEMORY = 0, SPACE_IO = 1, SPACE_BUS = 2 };
#define FLAG_FIXED_MIN_MAX 0x0c /* bits 2 and 3: neither end may move */
#define MEMORY_READ_WRITE 0x01
#define MEMORY_CACHEABLE 0x02
#define IO_ENTIRE_RANGE 0x03

static void add_word_window(struct gw_aml *aml, struct gw_aml_crs *crs, uint8_t space, uint8_t type_flags, uint16_t first,
			    uint16_t last)
{
	uint8_t d[16] = { 0x88, 13, 0, space, FLAG_FIXED_MIN_MAX, type_flags };

	gw_put_le16(d + 8, first);
	gw_put_le16(d + 10, last);
	gw_put_le16(d + 14, (uint16_t)(last - first + 1));
	add(aml, crs, d, sizeof(d));
}

void gw_aml_crs_bus(struct gw_aml *aml, struct gw_aml_crs *crs, uint16_t first, uint16_t last)
{
	add_word_window(aml, crs, SPACE_BUS, 0, first, last);
}

void gw_aml_crs_io_window(struct gw_aml *aml, struct gw_aml_crs *crs, uint16_t first, uint16_t last)
{
	add_word_window(aml, crs, SPACE_IO, IO_ENTIRE_RANGE, first, last);
}

void gw_aml_crs_memory32_window(struct gw_aml *aml, struct gw_aml_crs *crs, uint32_t base, uint32_t len)
{
	uint8_t d[26] = { 0x87, 23, 0, SPACE_MEMORY, FLAG_FIXED_MIN_MAX, MEMORY_READ_WRITE };

	gw_put_le32(d + 10, base);
	gw_put_le32(d + 14, base + (len - 1));
	gw_put_le32(d + 22, len);
	add(aml, crs, d, sizeof(d));
}

void gw_aml_crs_memory64_window(struct gw_aml *aml, struct gw_aml_crs *crs, uint64_t base, uint64_t len)
{
	uint8_t d[46] = { 0x8a, 43, 0, SPACE_MEMORY, FLAG_FIXED_MIN_MAX, MEMORY_READ_WRITE | MEMORY_CACHEABLE };

	gw_put_le64(d + 14, base);
	gw_put_le64(d + 22, base + (len - 1));
	gw_put_le64(d + 38, len);
	add(aml, crs, d, sizeof(d));
}

void gw_aml_name_crs(struct gw_aml *aml, struct gw_aml_crs *crs)
{
	/* §6.4.2.9: end tag; a checksum of zero means that none is given. */
	static const uint8_t end[2] = { 0x79, 0 };
	struct gw_aml_mark mark;

	add(aml, crs, end, sizeof(end));
	put_name(aml, "_CRS");
	put_byte(aml, OP_BUFFER);
	mark = open_package(aml);
	put_int(aml, crs->items.len);
	put(aml, crs->items.data, crs->items.len);
	gw_aml_end(aml, mark);
	gw_buf_release(&crs->items);
	crs->items = (struct gw_buf)GW_BUF_INIT;
}
