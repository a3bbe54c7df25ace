// SPDX-License-Identifier: Apache-2.0
/* The command line of a VMM; see vmmargs.h. */
#include "agent/vmmargs.h"

#include <errno.h>
#include <string.h>

#include "lib/util.h"

static void add(struct gw_vmm_args *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add(struct gw_vmm_args *a, const char *fmt, ...)
{
	char *text;
	va_list ap;

	va_start(ap, fmt);
	if (a->n == GW_VMM_MAX_ARGS || vasprintf(&text, fmt, ap) < 0)
		a->failed = true;
	else
		a->v[a->n++] = text;
	va_end(ap);
}

static void add_path(struct gw_vmm_args *a, const char *option, char *path)
{
	add(a, "%s", option);
	add(a, "%s", path ?: "");
	a->failed |= path == NULL;
	free(path);
}

int gw_vmm_args_build(struct gw_guest *g, bool incoming, struct gw_vmm_args *a)
{
	const Godwit__VmRecord *rec = g->record;
	const Godwit__VmConfig *c = rec->config;

	memset(a, 0, sizeof(*a));
	add(a, "godwit-vmm");
	add(a, "--name");
	add(a, "%s", c->name);
	add_path(a, "--control", gw_guest_control(g));
	add_path(a, "--journal", gw_guest_path(g, "journal"));
	add(a, "--no-tty");
	if (incoming) {
		add(a, "--incoming");
	} else {
		add(a, "--epoch");
		add(a, "%llu", (unsigned long long)rec->epoch);
	}
	add(a, "--memory");
	add(a, "%llu", (unsigned long long)c->memory);
	add(a, "--cpus");
	add(a, "%u", c->cpus);
	add(a, "--kernel");
	add(a, "%s", *rec->kernel_file ? rec->kernel_file : c->kernel);
	if (*c->initrd) {
		add(a, "--initrd");
		add(a, "%s", *rec->initrd_file ? rec->initrd_file : c->initrd);
	}
	if (*c->cmdline) {
		add(a, "--cmdline");
		add(a, "%s", c->cmdline);
	}
	if (c->no_balloon)
		add(a, "--no-balloon");
	for (size_t i = 0; i < c->n_disks; i++) {
		add(a, "--disk");
		add(a, "path=%s,name=%s%s", c->disks[i]->path, c->disks[i]->name, c->disks[i]->readonly ? ",ro" : "");
	}
	for (size_t i = 0; i < c->n_nets; i++) {
		const char *tap = *c->nets[i]->tap ? c->nets[i]->tap : i < rec->n_taps ? rec->taps[i] : "";

		add(a, "--net");
		add(a, "tap=%s,name=%s,mac=%s", tap, c->nets[i]->name, c->nets[i]->mac);
	}
	return a->failed ? -ENOMEM : 0;
}

void gw_vmm_args_release(struct gw_vmm_args *a)
{
	for (unsigned i = 0; i < a->n; i++)
		free(a->v[i]);
	memset(a, 0, sizeof(*a));
}
