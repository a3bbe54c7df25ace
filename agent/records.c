// SPDX-License-Identifier: Apache-2.0
/* Durable records; see records.h. */
#include "agent/records.h"

#include <errno.h>
#include <string.h>

#include "agent/vmconfig.h"
#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/parse.h"
#include "lib/util.h"

#define MAGIC "godwit record 1\n"
#define MAGIC_LEN (sizeof(MAGIC) - 1)
#define RECORD_MAX (1u << 20)

int gw_record_save(const char *path, const ProtobufCMessage *msg, struct gw_error *err)
{
	size_t len = protobuf_c_message_get_packed_size(msg);
	gw_autobuf b = GW_BUF_INIT;
	uint8_t *p;

	if (gw_buf_append(&b, MAGIC, MAGIC_LEN) < 0 || !(p = gw_buf_reserve(&b, len)))
		return gw_error_set(err, ENOMEM, "out of memory");
	protobuf_c_message_pack(msg, p);
	b.len += len;
	return gw_write_file_atomic(path, b.data, b.len, 0600, err);
}

int gw_record_decode(const void *data, size_t len, const ProtobufCMessageDescriptor *desc, ProtobufCMessage **ret,
		     struct gw_error *err)
{
	ProtobufCMessage *m;

	if (len < MAGIC_LEN || memcmp(data, MAGIC, MAGIC_LEN) != 0)
		return gw_error_set(err, EPROTO, "it is not a record of this version of Godwit");
	m = protobuf_c_message_unpack(desc, NULL, len - MAGIC_LEN, (const uint8_t *)data + MAGIC_LEN);
	if (!m)
		return gw_error_set(err, EPROTO, "the record is damaged");
	*ret = m;
	return 0;
}

int gw_record_load(const char *path, const ProtobufCMessageDescriptor *desc, ProtobufCMessage **ret, struct gw_error *err)
{
	gw_autofree char *data = NULL;
	size_t len;
	int r = gw_read_file(path, RECORD_MAX, &data, &len, err);

	if (r < 0)
		return r;
	r = gw_record_decode(data, len, desc, ret, err);
	if (r < 0)
		gw_error_wrap(err, "%s", path);
	return r;
}

static char *id_path(struct gw_agent *a, const char *folder, const uint8_t id[GW_ID_LEN])
{
	char hex[2 * GW_ID_LEN + 1];
	char *path;

	gw_format_hex(id, GW_ID_LEN, hex);
	return asprintf(&path, "%s/%s/%s", a->conf->state, folder, hex) < 0 ? NULL : path;
}

int gw_outcome_get(struct gw_agent *a, const uint8_t id[GW_ID_LEN], Godwit__MoveRecord **ret, struct gw_error *err)
{
	gw_autofree char *path = id_path(a, "moves", id);
	ProtobufCMessage *m = NULL;
	int r;

	if (!path)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_record_load(path, &godwit__move_record__descriptor, &m, err);
	if (r < 0 && r != -ENOENT)
		return r;
	*ret = (Godwit__MoveRecord *)m;
	return 0;
}

int gw_outcome_decide(struct gw_agent *a, const uint8_t id[GW_ID_LEN], const char *vm, const char *peer, uint64_t epoch,
		   Godwit__MoveSide side, const char *reason, struct gw_error *err)
{
	gw_autofree char *path = id_path(a, "moves", id);
	Godwit__MoveRecord rec = GODWIT__MOVE_RECORD__INIT;
	Godwit__MoveRecord *before = NULL;
	int r = path ? gw_outcome_get(a, id, &before, err) : gw_error_set(err, ENOMEM, "out of memory");

	if (r < 0)
		return r;
	if (before) {
		r = before->side == side ? 0 : gw_error_set(err, EEXIST, "the end of this move was decided otherwise before");
		godwit__move_record__free_unpacked(before, NULL);
		return r;
	}
	rec.version = 1;
	rec.move_id.data = (uint8_t *)id;
	rec.move_id.len = GW_ID_LEN;
	rec.vm = (char *)vm;
	rec.peer = (char *)peer;
	rec.epoch = epoch;
	rec.side = side;
	rec.reason = (char *)reason;
	rec.decided_ns = gw_realtime_ns();
	return gw_record_save(path, &rec.base, err);
}

int gw_resumed_get(struct gw_agent *a, const uint8_t id[GW_ID_LEN], bool *ret, struct gw_error *err)
{
	gw_autofree char *path = id_path(a, "resumed", id);

	if (!path)
		return gw_error_set(err, ENOMEM, "out of memory");
	*ret = access(path, F_OK) == 0;
	return *ret || errno == ENOENT ? 0 : gw_error_errno(err, errno, "cannot look at %s", path);
}

int gw_resumed_note(struct gw_agent *a, const uint8_t id[GW_ID_LEN], const char *vm, uint64_t epoch, struct gw_error *err)
{
	gw_autofree char *path = id_path(a, "resumed", id);
	Godwit__ResumedRecord rec = GODWIT__RESUMED_RECORD__INIT;

	if (!path)
		return gw_error_set(err, ENOMEM, "out of memory");
	rec.version = 1;
	rec.vm = (char *)vm;
	rec.epoch = epoch;
	rec.noted_ns = gw_realtime_ns();
	return gw_record_save(path, &rec.base, err);
}
