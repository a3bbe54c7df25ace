// SPDX-License-Identifier: Apache-2.0
/* Device state by table; see state.h. */
#include "vmm/state.h"

#include <errno.h>
#include <string.h>

#include "lib/bytes.h"
#include "lib/util.h"
#include "proto/state.pb-c.h"

#define VM_STATE_VERSION 1
/* A VM of 32 vCPUs and all devices has about a hundred. */
#define MAX_SECTIONS 1024

struct gw_state_writer {
	Godwit__MachineState msg;
};

struct gw_state_reader {
	Godwit__MachineState *msg;
	bool *taken; /* one a section */
};

int gw_state_writer_new(struct gw_state_writer **ret)
{
	struct gw_state_writer *w = calloc(1, sizeof(*w));

	if (!w)
		return -ENOMEM;
	godwit__machine_state__init(&w->msg);
	w->msg.version = VM_STATE_VERSION;
	*ret = w;
	return 0;
}

static void free_section(Godwit__StateSection *s)
{
	if (!s)
		return;
	for (size_t i = 0; i < s->n_fields; i++) {
		/* Names and instances: fields' names are the table's own, borrowed. */
		free(s->fields[i]->data.data);
		free(s->fields[i]);
	}
	free(s->fields);
	free(s->instance);
	free(s);
}

void gw_state_writer_free(struct gw_state_writer *w)
{
	if (!w)
		return;
	for (size_t i = 0; i < w->msg.n_sections; i++)
		free_section(w->msg.sections[i]);
	free(w->msg.sections);
	free(w);
}

static uint64_t load_uint(const void *p, size_t size)
{
	uint64_t v = 0;

	memcpy(&v, p, GW_MIN(size, sizeof(v))); /* little-endian: see lib/bytes.h */
	return v;
}

static int put_bytes(Godwit__StateField *f, const void *data, size_t len)
{
	if (len == 0)
		return 0;
	f->data.data = malloc(len);
	if (!f->data.data)
		return -ENOMEM;
	memcpy(f->data.data, data, len);
	f->data.len = len;
	return 0;
}

static int put_field(Godwit__StateField *f, const struct gw_state_field *d, const void *obj)
{
	const uint8_t *at = (const uint8_t *)obj + d->offset;
	const struct gw_buf *buf;

	f->name = (char *)d->name;
	switch (d->type) {
	case GW_STATE_T_UINT:
	case GW_STATE_T_BOOL:
		f->value = load_uint(at, d->size);
		return 0;
	case GW_STATE_T_BYTES:
		return put_bytes(f, at, d->size);
	case GW_STATE_T_BUF:
		buf = (const struct gw_buf *)at;
		return buf->len > d->size ? -EMSGSIZE : put_bytes(f, buf->data, buf->len);
	case GW_STATE_END:
		break;
	}
	return -EINVAL;
}

static size_t count_fields(const struct gw_state_desc *desc)
{
	size_t n = 0;

	while (desc->fields[n].type != GW_STATE_END)
		n++;
	return n;
}

static int fill_section(Godwit__StateSection *s, const struct gw_state_desc *desc, const char *instance, const void *obj)
{
	size_t n = count_fields(desc);

	s->device = (char *)desc->device;
	s->version = desc->version;
	s->instance = strdup(instance);
	s->fields = calloc(n + 1, sizeof(*s->fields));
	if (!s->instance || !s->fields)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		Godwit__StateField *f = malloc(sizeof(*f));
		int r;

		if (!f)
			return -ENOMEM;
		godwit__state_field__init(f);
		s->fields[s->n_fields++] = f;
		r = put_field(f, &desc->fields[i], obj);
		if (r < 0)
			return r;
	}
	return 0;
}

int gw_state_put(struct gw_state_writer *w, const struct gw_state_desc *desc, const char *instance, const void *obj)
{
	Godwit__StateSection **sections, *s;
	int r;

	sections = reallocarray(w->msg.sections, w->msg.n_sections + 1, sizeof(*sections));
	if (!sections)
		return -ENOMEM;
	w->msg.sections = sections;
	s = malloc(sizeof(*s));
	if (!s)
		return -ENOMEM;
	godwit__state_section__init(s);
	s->instance = NULL;
	r = fill_section(s, desc, instance, obj);
	if (r < 0) {
		free_section(s);
		return r;
	}
	sections[w->msg.n_sections++] = s;
	return 0;
}

int gw_state_finish(struct gw_state_writer *w, struct gw_buf *out)
{
	size_t len = godwit__machine_state__get_packed_size(&w->msg);
	uint8_t *p = gw_buf_reserve(out, len);

	if (!p)
		return -ENOMEM;
	godwit__machine_state__pack(&w->msg, p);
	out->len += len;
	return 0;
}

int gw_state_reader_new(const void *data, size_t len, struct gw_state_reader **ret, struct gw_error *err)
{
	struct gw_state_reader *r = calloc(1, sizeof(*r));

	if (!r)
		return gw_error_set(err, ENOMEM, "out of memory");
	r->msg = godwit__machine_state__unpack(NULL, len, data);
	if (!r->msg || r->msg->n_sections > MAX_SECTIONS) {
		gw_state_reader_free(r);
		return gw_error_set(err, EPROTO, "the device state is damaged");
	}
	if (r->msg->version != VM_STATE_VERSION) {
		uint32_t version = r->msg->version;

		gw_state_reader_free(r);
		return gw_error_set(err, EPROTO, "device state has version %u, this VMM knows %u", version, VM_STATE_VERSION);
	}
	r->taken = calloc(r->msg->n_sections + 1, sizeof(bool));
	if (!r->taken) {
		gw_state_reader_free(r);
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	*ret = r;
	return 0;
}

void gw_state_reader_free(struct gw_state_reader *r)
{
	if (!r)
		return;
	if (r->msg)
		godwit__machine_state__free_unpacked(r->msg, NULL);
	free(r->taken);
	free(r);
}

static int get_field(const Godwit__StateField *f, const struct gw_state_field *d, void *obj)
{
	uint8_t *at = (uint8_t *)obj + d->offset;
	struct gw_buf *buf;

	switch (d->type) {
	case GW_STATE_T_BOOL:
		if (f->value > 1)
			return -EPROTO;
		/* fall through */
	case GW_STATE_T_UINT:
		if (f->data.len || (d->size < sizeof(uint64_t) && f->value >> (8 * d->size)))
			return -EPROTO;
		memcpy(at, &f->value, d->size);
		return 0;
	case GW_STATE_T_BYTES:
		if (f->data.len != d->size)
			return -EPROTO;
		memcpy(at, f->data.data, d->size);
		return 0;
	case GW_STATE_T_BUF:
		if (f->data.len > d->size)
			return -EPROTO;
		buf = (struct gw_buf *)at;
		buf->len = 0;
		return gw_buf_append(buf, f->data.data, f->data.len);
	case GW_STATE_END:
		break;
	}
	return -EPROTO;
}

static const Godwit__StateField *find_field(const Godwit__StateSection *s, const char *name)
{
	for (size_t i = 0; i < s->n_fields; i++) {
		if (!strcmp(s->fields[i]->name, name))
			return s->fields[i];
	}
	return NULL;
}

static int get_fields(const Godwit__StateSection *s, const struct gw_state_desc *desc, void *obj, struct gw_error *err)
{
	size_t known = 0;

	for (const struct gw_state_field *d = desc->fields; d->type != GW_STATE_END; d++) {
		const Godwit__StateField *f = find_field(s, d->name);

		if (!f && d->since > s->version)
			continue;
		if (!f)
			return gw_error_set(err, EPROTO, "state of %s %s lacks field %s", s->device, s->instance, d->name);
		if (get_field(f, d, obj) < 0)
			return gw_error_set(err, EPROTO, "state of %s %s: field %s has a wrong size or value", s->device,
					    s->instance, d->name);
		known++;
	}
	if (known != s->n_fields)
		return gw_error_set(err, EPROTO, "state of %s %s holds a field that this version does not know", s->device,
				    s->instance);
	return 0;
}

int gw_state_get(struct gw_state_reader *r, const struct gw_state_desc *desc, const char *instance, void *obj,
		 struct gw_error *err)
{
	for (size_t i = 0; i < r->msg->n_sections; i++) {
		const Godwit__StateSection *s = r->msg->sections[i];

		if (strcmp(s->device, desc->device) || strcmp(s->instance, instance))
			continue;
		if (s->version > desc->version || s->version < desc->min_version)
			return gw_error_set(err, EPROTO, "state of %s %s has version %u, this VMM takes %u to %u", s->device,
					    s->instance, s->version, desc->min_version, desc->version);
		if (r->taken[i])
			return gw_error_set(err, EPROTO, "state of %s %s is taken twice", s->device, s->instance);
		r->taken[i] = true;
		return get_fields(s, desc, obj, err);
	}
	return gw_error_set(err, ENOENT, "no state of %s %s came along", desc->device, instance);
}

int gw_state_reader_done(struct gw_state_reader *r, struct gw_error *err)
{
	for (size_t i = 0; i < r->msg->n_sections; i++) {
		if (!r->taken[i])
			return gw_error_set(err, EPROTO, "state of an unknown device: %s %s", r->msg->sections[i]->device,
					    r->msg->sections[i]->instance);
	}
	return 0;
}
