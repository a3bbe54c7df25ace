// SPDX-License-Identifier: Apache-2.0
/* Names and envelopes of manifests; see manifest.h. Their contents are manifest-coding.c's. */
#include "migrate/repo/manifest.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "lib/parse.h"
#include "lib/util.h"

#define MAX_HEAD (64u << 10)
#define MAX_BODY (768u << 20)
#define FOLDER_LEN 43 /* "snapshots/", 32 digits, '/' */

void gw_manifest_release(struct gw_manifest *m)
{
	gw_places_release(&m->places);
	free(m->runs);
	for (unsigned i = 0; i < m->nparts; i++)
		free(m->parts[i].data);
	memset(m, 0, sizeof(*m));
}

int gw_manifest_set_part(struct gw_manifest *m, const char *name, const void *data, uint64_t len)
{
	struct gw_snap_part *part = NULL;
	void *copy;

	if (gw_parse_name(name, "part", NULL) < 0 || strlen(name) >= sizeof(part->name) || len > GW_SNAP_MAX_PART)
		return -EINVAL;
	for (unsigned i = 0; i < m->nparts; i++) {
		if (strcmp(m->parts[i].name, name) == 0)
			part = &m->parts[i];
	}
	if (!part && m->nparts == GW_SNAP_MAX_PARTS)
		return -EINVAL;
	copy = malloc(len + 1);
	if (!copy)
		return -ENOMEM;
	if (len)
		memcpy(copy, data, len);
	if (!part) {
		part = &m->parts[m->nparts++];
		part->data = NULL;
		snprintf(part->name, sizeof(part->name), "%s", name);
	}
	free(part->data);
	part->data = copy;
	part->len = len;
	return 0;
}

int gw_manifest_folder(struct gw_crypt *c, const char *snapshot, char out[GW_SNAP_OBJECT])
{
	const struct gw_span span = { snapshot, strlen(snapshot) };
	uint8_t mac[32];
	char hex[33];

	if (gw_crypt_mac(c, gw_crypt_keys(c)->names, &span, 1, mac) < 0)
		return -EIO;
	gw_format_hex(mac, 16, hex);
	snprintf(out, GW_SNAP_OBJECT, "snapshots/%s/", hex);
	return 0;
}

int gw_manifest_name(struct gw_crypt *c, const struct gw_snap_info *info, char out[GW_SNAP_OBJECT])
{
	char folder[GW_SNAP_OBJECT], hex[17];
	int r = gw_manifest_folder(c, info->name, folder);

	gw_format_hex(info->id, 8, hex);
	if (r == 0)
		snprintf(out, GW_SNAP_OBJECT, "%.*s%016" PRIx64 "-%s", FOLDER_LEN, folder, info->generation, hex);
	return r;
}

int gw_manifest_parse_name(const char *object, uint64_t *generation)
{
	uint8_t id[16], bytes[8];
	uint64_t v = 0;

	if (strlen(object) != FOLDER_LEN + 33 || strncmp(object, "snapshots/", 10) || object[FOLDER_LEN - 1] != '/' ||
	    object[FOLDER_LEN + 16] != '-')
		return -EINVAL;
	char part[33];
	snprintf(part, sizeof(part), "%.32s", object + 10);
	if (gw_parse_hex(part, id, 16, NULL) < 0)
		return -EINVAL;
	snprintf(part, sizeof(part), "%.16s", object + FOLDER_LEN + 17);
	if (gw_parse_hex(part, id, 8, NULL) < 0)
		return -EINVAL;
	snprintf(part, sizeof(part), "%.16s", object + FOLDER_LEN);
	if (gw_parse_hex(part, bytes, 8, NULL) < 0)
		return -EINVAL;
	for (unsigned i = 0; i < 8; i++)
		v = v << 8 | bytes[i];
	*generation = v;
	return 0;
}

int gw_manifest_seal(struct gw_crypt *c, const struct gw_manifest *m, const char *object, struct gw_buf *out, struct gw_error *err)
{
	gw_autobuf plain = GW_BUF_INIT;
	gw_autobuf body = GW_BUF_INIT;
	gw_autobuf head = GW_BUF_INIT;
	struct gw_body_bind bind;
	int r = gw_manifest_encode_body(m, &plain);

	if (r == 0 && plain.len > MAX_BODY)
		return gw_error_set(err, EFBIG, "the manifest of %s is too large", m->info.name);
	if (r == 0)
		r = gw_object_seal(c, GW_OBJECT_BODY, object, plain.data, plain.len, &body, err);
	if (r < 0)
		return r == -ENOMEM ? gw_error_set(err, ENOMEM, "out of memory") : r;
	memcpy(bind.tag, gw_object_tag(body.data), sizeof(bind.tag));
	r = gw_manifest_encode_head(&m->info, &bind, &head);
	if (r < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_object_seal(c, GW_OBJECT_HEAD, object, head.data, head.len, out, err);
	if (r == 0 && gw_buf_append(out, body.data, body.len) < 0)
		r = gw_error_set(err, ENOMEM, "out of memory");
	return r;
}

int gw_manifest_head_len(const char *object, const void *data, uint64_t len, uint32_t *ret, struct gw_error *err)
{
	uint8_t variant;
	int r = gw_object_check_prefix(data, len, GW_OBJECT_HEAD, &variant, object, err);

	if (r < 0)
		return r;
	if (gw_object_len(data) < GW_OBJECT_ENVELOPE || gw_object_len(data) > GW_OBJECT_ENVELOPE + MAX_HEAD)
		return gw_object_damaged(object, err);
	*ret = gw_object_len(data);
	return 0;
}

static int open_head(struct gw_crypt *c, const char *object, const void *data, uint64_t len, struct gw_snap_info *ret, struct gw_body_bind *bind,
		     uint32_t *head_len, struct gw_error *err)
{
	struct gw_snap_info info; /* some KiB */
	gw_autobuf plain = GW_BUF_INIT;
	char expected[GW_SNAP_OBJECT];
	int r = gw_manifest_head_len(object, data, len, head_len, err);

	if (r < 0)
		return r;
	if (*head_len > len)
		return gw_object_damaged(object, err);
	r = gw_object_open(c, GW_OBJECT_HEAD, object, data, *head_len, MAX_HEAD, &plain, err);
	if (r < 0)
		return r;
	/* The seal binds it to the object's name; here what it says of itself must agree with that. */
	if (gw_manifest_decode_head(plain.data, plain.len, &info, bind) < 0 || gw_manifest_name(c, &info, expected) < 0 ||
	    strcmp(expected, object))
		return gw_object_damaged(object, err);
	*ret = info;
	return 0;
}

int gw_manifest_open_head(struct gw_crypt *c, const char *object, const void *data, uint64_t len, struct gw_snap_info *ret, struct gw_error *err)
{
	struct gw_body_bind bind;
	uint32_t head_len;

	return open_head(c, object, data, len, ret, &bind, &head_len, err);
}

int gw_manifest_open(struct gw_crypt *c, const char *object, const void *data, uint64_t len, struct gw_manifest *ret, struct gw_error *err)
{
	gw_autofree struct gw_manifest *m = calloc(1, sizeof(*m));
	gw_autobuf plain = GW_BUF_INIT;
	struct gw_body_bind bind;
	const uint8_t *body;
	uint32_t head_len;
	int r;

	if (!m)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = open_head(c, object, data, len, &m->info, &bind, &head_len, err);
	if (r < 0)
		return r;
	body = (const uint8_t *)data + head_len;
	len -= head_len;
	if (len < GW_OBJECT_ENVELOPE || memcmp(gw_object_tag(body), bind.tag, sizeof(bind.tag)))
		return gw_object_damaged(object, err);
	r = gw_object_open(c, GW_OBJECT_BODY, object, body, len, MAX_BODY, &plain, err);
	if (r < 0)
		return r;
	r = gw_manifest_decode_body(plain.data, plain.len, m);
	if (r < 0) {
		gw_manifest_release(m);
		return r == -ENOMEM ? gw_error_set(err, ENOMEM, "out of memory") : gw_object_damaged(object, err);
	}
	*ret = *m;
	return 0;
}
