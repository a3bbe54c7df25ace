// SPDX-License-Identifier: Apache-2.0
/* The table of VMs, and one VM's record and operations; see guest.h. */
#include "agent/guest.h"

#include <dirent.h>
#include <errno.h>
#include <openssl/sha.h>
#include <string.h>

#include "agent/records.h"
#include "agent/vmconfig.h"
#include "agent/watch.h"
#include "lib/clock.h"
#include "lib/failpoint.h"
#include "lib/io.h"
#include "lib/log.h"
#include "lib/parse.h"
#include "lib/util.h"

static const char *const state_words[] = { "none",     "stopped", "running", "paused", "moving",
					   "incoming", "doubt",   "moved",   "crashed", "suspended", "saving" };

const char *gw_vm_state_word(Godwit__VmState state)
{
	return (unsigned)state < ARRAY_SIZE(state_words) ? state_words[state] : "unknown";
}

bool gw_vm_state_is_live(Godwit__VmState state)
{
	return state == GODWIT__VM_STATE__VM_RUNNING || state == GODWIT__VM_STATE__VM_PAUSED ||
	       state == GODWIT__VM_STATE__VM_MOVING || state == GODWIT__VM_STATE__VM_INCOMING ||
	       state == GODWIT__VM_STATE__VM_DOUBT || state == GODWIT__VM_STATE__VM_SAVING;
}

char *gw_guest_path(const struct gw_guest *g, const char *file)
{
	char *path;

	if (asprintf(&path, "%s/vms/%s%s%s", g->agent->conf->state, g->name, file ? "/" : "", file ?: "") < 0)
		return NULL;
	return path;
}

char *gw_guest_control(const struct gw_guest *g)
{
	char *path;

	return asprintf(&path, "%s/vms/%s.sock", g->agent->conf->run, g->name) < 0 ? NULL : path;
}

void gw_guest_tap_name(const struct gw_guest *g, const char *net, char name[16])
{
	uint8_t digest[SHA256_DIGEST_LENGTH];
	char text[512];
	int len = snprintf(text, sizeof(text), "%s|%s|%s", g->agent->conf->state, g->name, net);

	SHA256((const unsigned char *)text, (size_t)GW_MIN(len, (int)sizeof(text) - 1), digest);
	memcpy(name, "gw", 2);
	gw_format_hex(digest, 6, name + 2);
}

static struct gw_guest *new_guest(struct gw_agent *a, Godwit__VmRecord *record)
{
	struct gw_guest *g = calloc(1, sizeof(*g));
	pthread_condattr_t attr;

	if (!g) {
		godwit__vm_record__free_unpacked(record, NULL);
		return NULL;
	}
	g->agent = a;
	g->record = record;
	g->refs = 1;
	g->pidfd = -1;
	snprintf(g->name, sizeof(g->name), "%s", record->config->name);
	pthread_mutex_init(&g->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&g->changed, &attr);
	pthread_condattr_destroy(&attr);
	return g;
}

struct gw_guest *gw_guest_ref(struct gw_guest *g)
{
	pthread_mutex_lock(&g->agent->lock);
	g->refs++;
	pthread_mutex_unlock(&g->agent->lock);
	return g;
}

void gw_guest_unref(struct gw_guest *g)
{
	struct gw_agent *a = g->agent;
	bool last;

	pthread_mutex_lock(&a->lock);
	last = --g->refs == 0;
	pthread_mutex_unlock(&a->lock);
	if (!last)
		return;
	godwit__vm_record__free_unpacked(g->record, NULL);
	if (g->status)
		godwit__vmm_status__free_unpacked(g->status, NULL);
	if (g->move)
		godwit__move_progress__free_unpacked(g->move, NULL);
	if (g->save)
		godwit__save_progress__free_unpacked(g->save, NULL);
	if (g->load)
		godwit__load_progress__free_unpacked(g->load, NULL);
	if (g->share.status)
		godwit__share_status__free_unpacked(g->share.status, NULL);
	gw_closep(&g->pidfd);
	pthread_cond_destroy(&g->changed);
	pthread_mutex_destroy(&g->lock);
	free(g);
}

/* With agent->lock held. */
static struct gw_guest *lookup(struct gw_agent *a, const char *name)
{
	struct gw_guest *g = a->guests;

	while (g && strcmp(g->name, name) != 0)
		g = g->next;
	return g;
}

struct gw_guest *gw_guest_find(struct gw_agent *a, const char *name)
{
	struct gw_guest *g;

	pthread_mutex_lock(&a->lock);
	g = lookup(a, name);
	if (g)
		g->refs++;
	pthread_mutex_unlock(&a->lock);
	return g;
}

int gw_guest_list(struct gw_agent *a, struct gw_guest ***ret, unsigned *n)
{
	struct gw_guest **list;
	unsigned count = 0;

	pthread_mutex_lock(&a->lock);
	for (struct gw_guest *g = a->guests; g; g = g->next)
		count++;
	list = calloc((size_t)count + 1, sizeof(*list));
	count = 0;
	for (struct gw_guest *g = a->guests; list && g; g = g->next) {
		g->refs++;
		list[count++] = g;
	}
	pthread_mutex_unlock(&a->lock);
	if (!list)
		return -ENOMEM;
	*ret = list;
	*n = count;
	return 0;
}

/* Into the table, which takes a reference of its own; sorted by name. -EEXIST when the name is there. */
static int link_guest(struct gw_agent *a, struct gw_guest *g)
{
	struct gw_guest **p;
	int r = 0;

	pthread_mutex_lock(&a->lock);
	for (p = &a->guests; *p && strcmp((*p)->name, g->name) < 0; p = &(*p)->next)
		;
	if (*p && !strcmp((*p)->name, g->name)) {
		r = -EEXIST;
	} else {
		g->next = *p;
		*p = g;
		g->refs++;
	}
	pthread_mutex_unlock(&a->lock);
	return r;
}

static void unlink_guest(struct gw_agent *a, struct gw_guest *g)
{
	bool found = false;

	pthread_mutex_lock(&a->lock);
	for (struct gw_guest **p = &a->guests; *p; p = &(*p)->next) {
		if (*p == g) {
			*p = g->next;
			found = true;
			break;
		}
	}
	pthread_mutex_unlock(&a->lock);
	if (found)
		gw_guest_unref(g);
}

static void remove_files(struct gw_guest *g)
{
	/* The record last: as long as it is there, an interrupted removal is seen and done again. */
	static const char *const files[] = { "vmm.log", "vmm.log.1", "journal", "lock", "record" };
	gw_autofree char *dir = gw_guest_path(g, NULL);
	gw_autofree char *control = gw_guest_control(g);

	if (control)
		unlink(control);
	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		gw_autofree char *path = gw_guest_path(g, files[i]);

		if (path)
			unlink(path);
	}
	if (dir && rmdir(dir) < 0 && errno != ENOENT)
		gw_warn("cannot remove %s: %s", dir, strerrordesc_np(errno));
}

void gw_guest_remove(struct gw_guest *g)
{
	pthread_mutex_lock(&g->lock);
	g->gone = true;
	remove_files(g);
	pthread_cond_broadcast(&g->changed);
	pthread_mutex_unlock(&g->lock);
	unlink_guest(g->agent, g);
}

/* Takes a tombstone of an earlier ownership out of the way. */
static int replace_tombstone(struct gw_agent *a, const Godwit__VmRecord *record, struct gw_error *err)
{
	gw_autoguest *old = gw_guest_find(a, record->config->name);
	int r = 0;

	if (!old)
		return 0;
	pthread_mutex_lock(&old->lock);
	if (old->record->state != GODWIT__VM_STATE__VM_MOVED)
		r = gw_error_set(err, EEXIST, "VM %s exists here already (%s)", old->name, gw_vm_state_word(old->record->state));
	else if (old->record->epoch >= record->epoch)
		r = gw_error_set(err, EEXIST, "VM %s left this host with a newer epoch (%llu)", old->name,
				 (unsigned long long)old->record->epoch);
	else
		r = gw_guest_begin_locked(old, "remove", err);
	pthread_mutex_unlock(&old->lock);
	if (r == 0)
		gw_guest_remove(old);
	return r;
}

int gw_guest_add(struct gw_agent *a, Godwit__VmRecord *record, const char *op, bool over_tombstone, struct gw_guest **ret,
		 struct gw_error *err)
{
	struct gw_guest *g;
	gw_autofree char *dir = NULL;
	int r = over_tombstone ? replace_tombstone(a, record, err) : 0;

	if (r < 0) {
		godwit__vm_record__free_unpacked(record, NULL);
		return r;
	}
	g = new_guest(a, record);
	if (!g)
		return gw_error_set(err, ENOMEM, "out of memory");
	g->op = op;
	record->changed_ns = gw_realtime_ns();
	/* Held from before it can be found until it is on disk, so that nobody works on what does not last. */
	pthread_mutex_lock(&g->lock);
	r = link_guest(a, g);
	if (r < 0) {
		pthread_mutex_unlock(&g->lock);
		gw_error_set(err, r, "VM %s exists already", g->name);
		gw_guest_unref(g);
		return r;
	}
	dir = gw_guest_path(g, NULL);
	r = dir ? gw_mkdir_p(dir, 0700) : -ENOMEM;
	r = r < 0 ? gw_error_errno(err, r, "cannot make the folder of VM %s", g->name) : gw_guest_save_locked(g, err);
	pthread_mutex_unlock(&g->lock);
	if (r < 0) {
		gw_guest_remove(g);
		gw_guest_unref(g);
		return r;
	}
	*ret = g;
	return 0;
}

void gw_guest_wait_left_locked(struct gw_guest *g)
{
	while (g->leaving && !g->gone && gw_guest_wait_locked(g, GW_NO_DEADLINE) == 0)
		;
}

int gw_guest_begin_locked(struct gw_guest *g, const char *op, struct gw_error *err)
{
	gw_guest_wait_left_locked(g);
	if (g->gone)
		return gw_error_set(err, ESRCH, "no VM %s", g->name);
	if (g->record->state == GODWIT__VM_STATE__VM_DOUBT)
		return gw_error_set(err, EUCLEAN, "VM %s: %s (see 'godwit resolve')", g->name, g->record->reason);
	if (g->op)
		return gw_error_set(err, EBUSY, "VM %s is busy: '%s' is under way", g->name, g->op);
	g->op = op;
	pthread_cond_broadcast(&g->changed);
	return 0;
}

int gw_guest_begin(struct gw_guest *g, const char *op, struct gw_error *err)
{
	int r;

	pthread_mutex_lock(&g->lock);
	r = gw_guest_begin_locked(g, op, err);
	pthread_mutex_unlock(&g->lock);
	return r;
}

void gw_guest_end_locked(struct gw_guest *g)
{
	g->op = NULL;
	g->leaving = false;
	g->admitted = false;
	pthread_cond_broadcast(&g->changed);
}

void gw_guest_end(struct gw_guest *g)
{
	pthread_mutex_lock(&g->lock);
	gw_guest_end_locked(g);
	pthread_mutex_unlock(&g->lock);
}

int gw_guest_save_locked(struct gw_guest *g, struct gw_error *err)
{
	gw_autofree char *path = gw_guest_path(g, "record");

	if (!path)
		return gw_error_set(err, ENOMEM, "out of memory");
	if (g->gone)
		return 0;
	return gw_record_save(path, &g->record->base, err);
}

void gw_guest_set_state_locked(struct gw_guest *g, Godwit__VmState state, const char *fmt, ...)
{
	struct gw_error err = GW_ERROR_INIT;
	Godwit__VmState before = g->record->state;
	char reason[GW_ERROR_MAX], kind[32];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(reason, sizeof(reason), fmt, ap);
	va_end(ap);
	gw_make_printable(reason);
	if (before == state && !strcmp(g->record->reason, reason))
		return;
	g->record->state = state;
	/* A clone is one once it has been here. */
	g->record->cloning &= state == GODWIT__VM_STATE__VM_SUSPENDED;
	g->record->changed_ns = gw_realtime_ns();
	gw_pb_set_string(&g->record->reason, reason);
	if (gw_guest_save_locked(g, &err) < 0)
		gw_warn("VM %s: %s", g->name, gw_error_text(&err));
	snprintf(kind, sizeof(kind), "vm-%s", gw_vm_state_word(state));
	/* One that was given back has an event of its own, and is gone. */
	if (before != state && state != GODWIT__VM_STATE__VM_STATE_NONE)
		gw_events_emit(g->agent->events, kind, g->name, "%s", reason);
	pthread_cond_broadcast(&g->changed);
}

void gw_guest_failpoint_locked(struct gw_guest *g, const char *name)
{
	pthread_mutex_unlock(&g->lock);
	gw_failpoint(name);
	pthread_mutex_lock(&g->lock);
}

int gw_guest_wait_locked(struct gw_guest *g, uint64_t deadline_ns)
{
	/* In pieces, so that the end of the agent is noticed without it having to know who waits where. */
	uint64_t until = GW_MIN(deadline_ns, gw_now_ns() + 200 * GW_NS_PER_MS);
	struct timespec ts = { (time_t)(until / GW_NS_PER_SEC), (long)(until % GW_NS_PER_SEC) };

	if (g->agent->stopping)
		return -ESHUTDOWN;
	if (gw_now_ns() >= deadline_ns)
		return -ETIMEDOUT;
	pthread_cond_timedwait(&g->changed, &g->lock, &ts);
	return 0;
}

Godwit__VmInfo *gw_guest_info(struct gw_guest *g)
{
	Godwit__VmInfo i = GODWIT__VM_INFO__INIT;
	const Godwit__VmRecord *rec;
	char unconfirmed[128];
	Godwit__VmInfo *ret;

	pthread_mutex_lock(&g->lock);
	rec = g->record;
	i.config = rec->config;
	i.state = rec->state;
	i.host = g->agent->conf->name;
	i.epoch = rec->epoch;
	snprintf(unconfirmed, sizeof(unconfirmed), "arrived from %.63s, which has not said yet that it let go", rec->peer);
	i.reason = g->unconfirmed && !*rec->reason ? unconfirmed : rec->reason;
	i.pid = g->watched ? (uint32_t)g->pid : 0;
	i.resident = g->status ? g->status->resident : 0;
	i.balloon = g->status ? g->status->balloon : 0;
	i.peer = rec->peer;
	i.move = g->move;
	i.suspension = rec->suspension;
	i.save = g->save;
	i.load = g->load;
	i.changed_ns = rec->changed_ns;
	i.kernel_file = rec->kernel_file;
	i.initrd_file = rec->initrd_file;
	i.n_taps = rec->n_taps;
	i.taps = rec->taps;
	i.operation = (char *)(g->op ?: "");
	ret = (Godwit__VmInfo *)gw_pb_copy(&i.base);
	pthread_mutex_unlock(&g->lock);
	return ret;
}

static int load_one(struct gw_agent *a, const char *name, struct gw_error *err)
{
	ProtobufCMessage *m = NULL;
	gw_autofree char *path = NULL;
	Godwit__VmRecord *rec;
	struct gw_guest *g;
	int r;

	if (asprintf(&path, "%s/vms/%s/record", a->conf->state, name) < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_record_load(path, &godwit__vm_record__descriptor, &m, err);
	if (r < 0)
		return r;
	rec = (Godwit__VmRecord *)m;
	if (rec->version != 1 || !rec->config || strcmp(rec->config->name, name) != 0) {
		godwit__vm_record__free_unpacked(rec, NULL);
		return gw_error_set(err, EPROTO, "%s: the record is of another version or another VM", path);
	}
	r = gw_vmconfig_check(rec->config, err);
	if (r < 0) {
		godwit__vm_record__free_unpacked(rec, NULL);
		return gw_error_wrap(err, "%s", path);
	}
	g = new_guest(a, rec);
	if (!g)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = link_guest(a, g);
	if (r == 0)
		gw_watch_adopt(g);
	gw_guest_unref(g);
	return r;
}

int gw_guests_load(struct gw_agent *a, struct gw_error *err)
{
	gw_autofree char *path = NULL;
	struct dirent *d;
	DIR *dir;

	if (asprintf(&path, "%s/vms", a->conf->state) < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	dir = opendir(path);
	if (!dir)
		return gw_error_errno(err, errno, "cannot read %s", path);
	while ((d = readdir(dir))) {
		struct gw_error one = GW_ERROR_INIT;

		if (gw_parse_name(d->d_name, "VM name", NULL) < 0)
			continue;
		/* A folder without a record is what a crash in the middle of create or rm leaves. */
		if (load_one(a, d->d_name, &one) < 0 && one.code != ENOENT)
			gw_events_emit(a->events, "warning", d->d_name, "%s", gw_error_text(&one));
	}
	closedir(dir);
	return 0;
}

void gw_guests_free(struct gw_agent *a)
{
	struct gw_guest *g = a->guests;

	while (g) {
		struct gw_guest *next = g->next;

		gw_guest_unref(g);
		g = next;
	}
	a->guests = NULL;
}
