// SPDX-License-Identifier: Apache-2.0
/* What sharing brings on this host: the VMMs' last words and the daemon's figures in one message. See share.h. */
#include <errno.h>
#include <string.h>

#include "agent/share-internal.h"
#include "agent/share.h"
#include "agent/vmconfig.h"
#include "lib/util.h"

/* What is asked for, "" for all, and what is known. */
struct query {
	const char *vm, *domain;
	const Godwit__ShareReply *figures; /* the daemon's; NULL: none */
	Godwit__ShareInfo *out;
};

static const char *reason_locked(const struct gw_guest *g)
{
	if (g->record->config->share == GODWIT__VM_SHARE__SHARE_OFF)
		return "off for this VM";
	if (!g->agent->conf->share)
		return "off on this host";
	if (!g->watched)
		return "does not run here";
	if (*g->share.reason)
		return g->share.reason;
	return g->share.status ? g->share.status->reason : "";
}

static int add_vm_locked(const struct query *q, struct gw_guest *g, const char *domain)
{
	Godwit__VmShareInfo vm = GODWIT__VM_SHARE_INFO__INIT;
	Godwit__VmShareInfo **grown = reallocarray(q->out->vms, q->out->n_vms + 1, sizeof(Godwit__VmShareInfo *));

	if (!grown)
		return -ENOMEM;
	q->out->vms = grown;
	vm.vm = g->name;
	vm.domain = (char *)domain;
	vm.mode = g->record->config->share;
	vm.running = g->watched;
	vm.reason = (char *)reason_locked(g);
	vm.status = g->share.status;
	for (size_t i = 0; q->figures && i < q->figures->n_clients; i++) {
		if (!strcmp(q->figures->clients[i]->vm, g->name))
			vm.client = q->figures->clients[i];
	}
	grown[q->out->n_vms] = (Godwit__VmShareInfo *)gw_pb_copy(&vm.base);
	if (!grown[q->out->n_vms])
		return -ENOMEM;
	q->out->n_vms++;
	return 0;
}

/* The entry of a domain, made at first; NULL when out of memory. */
static Godwit__DomainShareInfo *domain_of(const struct query *q, const char *name)
{
	Godwit__ShareInfo *out = q->out;
	Godwit__DomainShareInfo **grown, *d;

	for (size_t i = 0; i < out->n_domains; i++) {
		if (!strcmp(out->domains[i]->domain, name))
			return out->domains[i];
	}
	grown = reallocarray(out->domains, out->n_domains + 1, sizeof(Godwit__DomainShareInfo *));
	if (!grown)
		return NULL;
	out->domains = grown;
	d = malloc(sizeof(*d));
	if (!d)
		return NULL;
	godwit__domain_share_info__init(d);
	grown[out->n_domains++] = d;
	return gw_pb_set_string(&d->domain, name) < 0 ? NULL : d;
}

static int add_guest(const struct query *q, struct gw_guest *g)
{
	const char *domain = gw_share_domain(g->record->config);
	Godwit__DomainShareInfo *d;
	int r = 0;

	if (*q->domain && strcmp(q->domain, domain) != 0)
		return 0;
	pthread_mutex_lock(&g->lock);
	if (g->record->state != GODWIT__VM_STATE__VM_MOVED && (!*q->vm || !strcmp(q->vm, g->name)))
		r = add_vm_locked(q, g, domain);
	if (r == 0 && g->watched && g->agent->conf->share && g->record->config->share != GODWIT__VM_SHARE__SHARE_OFF) {
		d = domain_of(q, domain);
		r = d ? 0 : -ENOMEM;
		if (d) {
			d->vms++;
			/* Not more than it has, whatever a VMM that was taken over says. */
			if (g->share.status)
				d->zero_pages += GW_MIN(g->share.status->zero_pages, g->record->config->memory / GW_PAGE_SIZE);
			if (g->share.status)
				d->lineage_pages += GW_MIN(g->share.status->lineage_pages, g->record->config->memory / GW_PAGE_SIZE);
			d->metadata_bytes += g->share.status ? g->share.status->metadata_bytes : 0;
		}
	}
	pthread_mutex_unlock(&g->lock);
	return r;
}

static int add_guests(const struct query *q, struct gw_agent *a)
{
	struct gw_guest **list;
	unsigned n;
	int r = gw_guest_list(a, &list, &n);

	if (r < 0)
		return r;
	for (unsigned i = 0; i < n; i++) {
		r = r ?: add_guest(q, list[i]);
		gw_guest_unref(list[i]);
	}
	free(list);
	return r;
}

static int add_stores(const struct query *q)
{
	for (size_t i = 0; q->figures && i < q->figures->n_domains; i++) {
		const Godwit__ShareDomainStats *store = q->figures->domains[i];
		Godwit__DomainShareInfo *d;

		if (*q->domain && strcmp(q->domain, store->domain) != 0)
			continue;
		d = domain_of(q, store->domain);
		if (!d || d->store)
			return d ? -EPROTO : -ENOMEM;
		d->store = (Godwit__ShareDomainStats *)gw_pb_copy(&store->base);
		if (!d->store)
			return -ENOMEM;
	}
	return 0;
}

static int fill(const struct query *q, struct gw_agent *a, struct gw_error *err)
{
	struct gw_share_daemon_info daemon;
	Godwit__ShareInfo *out = q->out;
	int r = 0;

	gw_share_daemon_info(a->sharing->daemon, &daemon);
	out->enabled = a->conf->share;
	out->daemon_pid = (uint32_t)daemon.pid;
	out->daemon_starts = daemon.starts;
	out->daemon_cpu_us = q->figures ? q->figures->cpu_us : 0;
	out->max_map_count = a->sharing->map_count;
	if (gw_pb_set_string(&out->host, a->conf->name) < 0 || gw_pb_set_string(&out->daemon_reason, daemon.reason) < 0 ||
	    gw_pb_set_string(&out->warning, a->sharing->warning) < 0)
		r = -ENOMEM;
	r = r ?: add_guests(q, a);
	r = r ?: add_stores(q);
	if (r < 0)
		return gw_error_errno(err, r, "cannot tell what is shared");
	if (*q->vm && !out->n_vms)
		return gw_error_set(err, ESRCH, "no VM '%.63s' on %s", q->vm, a->conf->name);
	if (*q->domain && !out->n_vms && !out->n_domains)
		return gw_error_set(err, ESRCH, "no domain '%.63s' on %s", q->domain, a->conf->name);
	return 0;
}

int gw_sharing_info(struct gw_agent *a, const char *vm, const char *domain, Godwit__ShareInfo **ret, struct gw_error *err)
{
	struct query q = { .vm = vm, .domain = domain, .out = malloc(sizeof(*q.out)) };
	gw_autoguest *g = *vm ? gw_guest_find(a, vm) : NULL;
	Godwit__ShareReply *figures = NULL;
	int r;

	if (!q.out)
		return gw_error_set(err, ENOMEM, "out of memory");
	godwit__share_info__init(q.out);
	/* The VM's own domain with it. */
	if (g && !*domain)
		q.domain = gw_share_domain(g->record->config);
	/* None runs, or it does not answer: the VMs have their figures all the same. */
	(void)gw_share_daemon_stats(a->sharing->daemon, &figures, NULL);
	q.figures = figures;
	r = fill(&q, a, err);
	if (figures)
		godwit__share_reply__free_unpacked(figures, NULL);
	if (r < 0)
		godwit__share_info__free_unpacked(q.out, NULL);
	else
		*ret = q.out;
	return r;
}
