// SPDX-License-Identifier: Apache-2.0
/* VM files and the check of a VM's configuration; see vmconfig.h. */
#include "agent/vmconfig.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "agent/ini.h"
#include "lib/io.h"
#include "lib/parse.h"
#include "lib/util.h"

static int set(char **field, const char *value, struct gw_error *err)
{
	return gw_pb_set_string(field, value) < 0 ? gw_error_set(err, ENOMEM, "out of memory") : 0;
}

/* A path goes to other hosts, so it must not depend on a folder to stand in. */
static int check_path(const char *what, const char *path, struct gw_error *err)
{
	if (path[0] != '/')
		return gw_error_set(err, EINVAL, "%s: '%.64s' is not an absolute path", what, path);
	if (strlen(path) > GW_VM_MAX_PATH)
		return gw_error_set(err, EINVAL, "%s: the path is longer than %d bytes", what, GW_VM_MAX_PATH);
	return 0;
}

static int check_text(const char *what, const char *text, size_t max, struct gw_error *err)
{
	if (strlen(text) > max)
		return gw_error_set(err, EINVAL, "%s is longer than %zu bytes", what, max);
	for (const char *p = text; *p; p++) {
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			return gw_error_set(err, EINVAL, "%s holds a control character", what);
	}
	return 0;
}

static int check_disk_path(const char *path, struct gw_error *err)
{
	int r = check_text("path", path, GW_VM_MAX_PATH, err);

	if (r < 0)
		return r;
	/* The VMM takes disks as comma-separated options. */
	if (strchr(path, ','))
		return gw_error_set(err, EINVAL, "path: '%.64s' holds a comma", path);
	if (!strncmp(path, "nbd://", 6) || !strncmp(path, "nbd+unix://", 11))
		return 0;
	if (path[0] != '/' && strstr(path, "://"))
		return gw_error_set(err, EINVAL, "path: '%.64s': of URIs there are nbd:// and nbd+unix://", path);
	return check_path("path", path, err);
}

static int set_vm_name(void *o, const char *value, struct gw_error *err)
{
	int r = gw_parse_name(value, "VM name", err);

	return r < 0 ? r : set(&((Godwit__VmConfig *)o)->name, value, err);
}

static int set_vm_tenant(void *o, const char *value, struct gw_error *err)
{
	int r = gw_parse_name(value, "tenant", err);

	return r < 0 ? r : set(&((Godwit__VmConfig *)o)->tenant, value, err);
}

static int set_vm_cpus(void *o, const char *value, struct gw_error *err)
{
	uint64_t v;
	int r = gw_parse_uint(value, "cpus", 1, GW_VM_MAX_CPUS, &v, err);

	if (r == 0)
		((Godwit__VmConfig *)o)->cpus = (uint32_t)v;
	return r;
}

static int check_memory(uint64_t bytes, struct gw_error *err)
{
	if (bytes < GW_VM_MIN_MEMORY || bytes > GW_VM_MAX_MEMORY)
		return gw_error_set(err, ERANGE, "memory is not within 64M to 1T");
	if (bytes % (1ull << 20) != 0)
		return gw_error_set(err, EINVAL, "memory is not a multiple of 1M");
	return 0;
}

static int set_vm_memory(void *o, const char *value, struct gw_error *err)
{
	uint64_t v;
	int r = gw_parse_size(value, &v, err);

	if (r < 0)
		return gw_error_wrap(err, "memory");
	r = check_memory(v, err);
	if (r == 0)
		((Godwit__VmConfig *)o)->memory = v;
	return r;
}

static int set_vm_kernel(void *o, const char *value, struct gw_error *err)
{
	int r = check_path("kernel", value, err);

	return r < 0 ? r : set(&((Godwit__VmConfig *)o)->kernel, value, err);
}

static int set_vm_initrd(void *o, const char *value, struct gw_error *err)
{
	int r = check_path("initrd", value, err);

	return r < 0 ? r : set(&((Godwit__VmConfig *)o)->initrd, value, err);
}

static int set_vm_cmdline(void *o, const char *value, struct gw_error *err)
{
	int r = check_text("cmdline", value, GW_VM_MAX_CMDLINE, err);

	return r < 0 ? r : set(&((Godwit__VmConfig *)o)->cmdline, value, err);
}

static int set_vm_balloon(void *o, const char *value, struct gw_error *err)
{
	int v, r = gw_parse_bool(value, "balloon", &v, err);

	if (r == 0)
		((Godwit__VmConfig *)o)->no_balloon = !v;
	return r;
}

static int set_vm_share(void *o, const char *value, struct gw_error *err)
{
	static const char *const words[] = { "tenant", "image", "off" };

	for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
		if (!strcmp(words[i], value)) {
			((Godwit__VmConfig *)o)->share = (Godwit__VmShare)i;
			return 0;
		}
	}
	return gw_error_set(err, EINVAL, "share: '%.64s' is neither tenant, image nor off", value);
}

static int set_disk_path(void *o, const char *value, struct gw_error *err)
{
	int r = check_disk_path(value, err);

	return r < 0 ? r : set(&((Godwit__VmDisk *)o)->path, value, err);
}

static int set_disk_readonly(void *o, const char *value, struct gw_error *err)
{
	int v, r = gw_parse_bool(value, "readonly", &v, err);

	if (r == 0)
		((Godwit__VmDisk *)o)->readonly = v;
	return r;
}

static int set_net_tap(void *o, const char *value, struct gw_error *err)
{
	int r = gw_parse_ifname(value, err);

	return r < 0 ? r : set(&((Godwit__VmNet *)o)->tap, value, err);
}

static int set_net_bridge(void *o, const char *value, struct gw_error *err)
{
	int r = gw_parse_ifname(value, err);

	return r < 0 ? r : set(&((Godwit__VmNet *)o)->bridge, value, err);
}

static int set_net_mac(void *o, const char *value, struct gw_error *err)
{
	uint8_t mac[6];
	int r = gw_parse_mac(value, mac, err);

	return r < 0 ? r : set(&((Godwit__VmNet *)o)->mac, value, err);
}

static const struct gw_ini_key vm_keys[] = {
	{ "name", set_vm_name },
	{ "tenant", set_vm_tenant },
	{ "cpus", set_vm_cpus },
	{ "memory", set_vm_memory },
	{ "kernel", set_vm_kernel },
	{ "initrd", set_vm_initrd },
	{ "cmdline", set_vm_cmdline },
	{ "balloon", set_vm_balloon },
	{ "share", set_vm_share },
};
static const struct gw_ini_key disk_keys[] = {
	{ "path", set_disk_path },
	{ "readonly", set_disk_readonly },
};
static const struct gw_ini_key net_keys[] = {
	{ "tap", set_net_tap },
	{ "bridge", set_net_bridge },
	{ "mac", set_net_mac },
};

static int open_vm(void *ctx, const char *name, void **object, struct gw_error *err)
{
	*object = ctx;
	return 0;
}

static int open_disk(void *ctx, const char *name, void **object, struct gw_error *err)
{
	Godwit__VmConfig *c = ctx;
	Godwit__VmDisk **grown, *d;
	int r = gw_parse_name(name, "disk name", err);

	if (r < 0)
		return r;
	if (c->n_disks == GW_VM_MAX_DISKS)
		return gw_error_set(err, E2BIG, "more than %d disks", GW_VM_MAX_DISKS);
	for (size_t i = 0; i < c->n_disks; i++) {
		if (!strcmp(c->disks[i]->name, name))
			return gw_error_set(err, EINVAL, "section [disk %s] came before", name);
	}
	grown = reallocarray(c->disks, c->n_disks + 1, sizeof(*grown));
	if (grown)
		c->disks = grown;
	d = malloc(sizeof(*d));
	if (!grown || !d) {
		free(d);
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	godwit__vm_disk__init(d);
	c->disks[c->n_disks++] = d;
	*object = d;
	return set(&d->name, name, err);
}

static int open_net(void *ctx, const char *name, void **object, struct gw_error *err)
{
	Godwit__VmConfig *c = ctx;
	Godwit__VmNet **grown, *n;
	int r = gw_parse_name(name, "net name", err);

	if (r < 0)
		return r;
	if (c->n_nets == GW_VM_MAX_NETS)
		return gw_error_set(err, E2BIG, "more than %d nets", GW_VM_MAX_NETS);
	for (size_t i = 0; i < c->n_nets; i++) {
		if (!strcmp(c->nets[i]->name, name))
			return gw_error_set(err, EINVAL, "section [net %s] came before", name);
	}
	grown = reallocarray(c->nets, c->n_nets + 1, sizeof(*grown));
	if (grown)
		c->nets = grown;
	n = malloc(sizeof(*n));
	if (!grown || !n) {
		free(n);
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	godwit__vm_net__init(n);
	c->nets[c->n_nets++] = n;
	*object = n;
	return set(&n->name, name, err);
}

static const struct gw_ini_section sections[] = {
	{ .kind = "vm", .keys = vm_keys, .nkeys = ARRAY_SIZE(vm_keys), .open = open_vm },
	{ .kind = "disk", .named = true, .keys = disk_keys, .nkeys = ARRAY_SIZE(disk_keys), .open = open_disk },
	{ .kind = "net", .named = true, .keys = net_keys, .nkeys = ARRAY_SIZE(net_keys), .open = open_net },
};

int gw_vmconfig_parse(const char *file, const char *text, size_t len, Godwit__VmConfig **ret, struct gw_error *err)
{
	gw_cleanup(gw_vmconfig_freep) Godwit__VmConfig *c = malloc(sizeof(*c));
	int r;

	if (!c)
		return gw_error_set(err, ENOMEM, "out of memory");
	godwit__vm_config__init(c);
	c->cpus = 1;
	if (set(&c->tenant, "default", err) < 0)
		return -ENOMEM;
	r = gw_ini_parse(file, text, len, sections, ARRAY_SIZE(sections), c, err);
	if (r < 0)
		return r;
	r = gw_vmconfig_check(c, err);
	if (r < 0) {
		gw_error_wrap(err, "%s", file);
		return r;
	}
	*ret = gw_steal_ptr(&c);
	return 0;
}

int gw_vmconfig_read(const char *path, Godwit__VmConfig **ret, struct gw_error *err)
{
	gw_autofree char *text = NULL;
	size_t len;
	int r = gw_read_file(path, GW_INI_FILE_MAX, &text, &len, err);

	return r < 0 ? r : gw_vmconfig_parse(path, text, len, ret, err);
}

static int check_disks(const Godwit__VmConfig *c, struct gw_error *err)
{
	if (c->n_disks > GW_VM_MAX_DISKS)
		return gw_error_set(err, E2BIG, "more than %d disks", GW_VM_MAX_DISKS);
	for (size_t i = 0; i < c->n_disks; i++) {
		const Godwit__VmDisk *d = c->disks[i];
		int r = gw_parse_name(d->name, "disk name", err);

		if (r < 0)
			return r;
		if (!*d->path)
			return gw_error_set(err, EINVAL, "[disk %s] has no path", d->name);
		r = check_disk_path(d->path, err);
		if (r < 0) {
			gw_error_wrap(err, "[disk %s]", d->name);
			return r;
		}
		for (size_t j = 0; j < i; j++) {
			if (!strcmp(c->disks[j]->name, d->name))
				return gw_error_set(err, EINVAL, "two disks are named '%s'", d->name);
			if (!strcmp(c->disks[j]->path, d->path) && !(d->readonly && c->disks[j]->readonly))
				return gw_error_set(err, EINVAL, "[disk %s] and [disk %s] write the same path", c->disks[j]->name,
						    d->name);
		}
	}
	return 0;
}

static int check_net(const Godwit__VmNet *n, struct gw_error *err)
{
	uint8_t mac[6];
	int r = gw_parse_name(n->name, "net name", err);

	if (r < 0)
		return r;
	if (!*n->tap == !*n->bridge)
		return gw_error_set(err, EINVAL, "[net %s] needs either tap or bridge", n->name);
	r = gw_parse_ifname(*n->tap ? n->tap : n->bridge, err);
	if (r == 0 && *n->mac)
		r = gw_parse_mac(n->mac, mac, err);
	if (r < 0)
		gw_error_wrap(err, "[net %s]", n->name);
	return r;
}

static int check_nets(const Godwit__VmConfig *c, struct gw_error *err)
{
	if (c->n_nets > GW_VM_MAX_NETS)
		return gw_error_set(err, E2BIG, "more than %d nets", GW_VM_MAX_NETS);
	for (size_t i = 0; i < c->n_nets; i++) {
		const Godwit__VmNet *n = c->nets[i];
		int r = check_net(n, err);

		if (r < 0)
			return r;
		for (size_t j = 0; j < i; j++) {
			const Godwit__VmNet *o = c->nets[j];

			if (!strcmp(o->name, n->name))
				return gw_error_set(err, EINVAL, "two nets are named '%s'", n->name);
			if (*n->tap && !strcmp(o->tap, n->tap))
				return gw_error_set(err, EINVAL, "[net %s] and [net %s] use the same tap", o->name, n->name);
			if (*n->mac && !strcasecmp(o->mac, n->mac))
				return gw_error_set(err, EINVAL, "[net %s] and [net %s] have the same mac", o->name, n->name);
		}
	}
	return 0;
}

int gw_vmconfig_check(const Godwit__VmConfig *c, struct gw_error *err)
{
	int r;

	if (!*c->name)
		return gw_error_set(err, EINVAL, "[vm] has no name");
	r = gw_parse_name(c->name, "VM name", err);
	if (r == 0 && *c->tenant)
		r = gw_parse_name(c->tenant, "tenant", err);
	if (r < 0)
		return r;
	if (c->cpus < 1 || c->cpus > GW_VM_MAX_CPUS)
		return gw_error_set(err, ERANGE, "cpus: %u is not within 1 to %d", c->cpus, GW_VM_MAX_CPUS);
	if (!c->memory)
		return gw_error_set(err, EINVAL, "[vm] has no memory (example: memory = 512M)");
	if (!*c->kernel)
		return gw_error_set(err, EINVAL, "[vm] has no kernel");
	if ((unsigned)c->share > GODWIT__VM_SHARE__SHARE_OFF)
		return gw_error_set(err, EINVAL, "[vm] share: this version does not know the value %u", (unsigned)c->share);
	r = check_memory(c->memory, err);
	if (r == 0)
		r = check_path("kernel", c->kernel, err);
	if (r == 0)
		r = check_text("kernel", c->kernel, GW_VM_MAX_PATH, err);
	if (r == 0 && *c->initrd)
		r = check_path("initrd", c->initrd, err);
	if (r == 0)
		r = check_text("initrd", c->initrd, GW_VM_MAX_PATH, err);
	if (r == 0)
		r = check_text("cmdline", c->cmdline, GW_VM_MAX_CMDLINE, err);
	if (r == 0)
		r = check_disks(c, err);
	return r < 0 ? r : check_nets(c, err);
}

int gw_vmconfig_fill(Godwit__VmConfig *c)
{
	for (size_t i = 0; i < c->n_nets; i++) {
		uint8_t rnd[3];
		char mac[18];

		if (*c->nets[i]->mac)
			continue;
		if (getrandom(rnd, sizeof(rnd), 0) != sizeof(rnd))
			return -EIO;
		/* 52:54:00 is the prefix that virtual machines customarily use. */
		snprintf(mac, sizeof(mac), "52:54:00:%02x:%02x:%02x", rnd[0], rnd[1], rnd[2]);
		if (gw_pb_set_string(&c->nets[i]->mac, mac) < 0)
			return -ENOMEM;
	}
	return 0;
}

Godwit__VmConfig *gw_vmconfig_copy(const Godwit__VmConfig *config)
{
	return (Godwit__VmConfig *)gw_pb_copy(&config->base);
}

void gw_vmconfig_free(Godwit__VmConfig *config)
{
	if (config)
		godwit__vm_config__free_unpacked(config, NULL);
}
