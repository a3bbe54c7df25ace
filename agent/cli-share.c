// SPDX-License-Identifier: Apache-2.0
/* godwit share: what sharing memory saves, for whom, and what it costs. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "agent/cli-output.h"
#include "agent/cli.h"
#include "agent/json.h"
#include "lib/util.h"

#define REPAINT_US 2000000

/* One measure: a count, or one in units of 1/per. */
struct measure {
	const char *name; /* of the Prometheus metric; labels are the object's fields */
	int64_t value;
	unsigned per;     /* 0: not known, 1: whole, else a fraction */
};

static void add_measures(json_t *o, const struct measure *m, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		json_t *v = m[i].per == 1 ? json_integer(m[i].value) : m[i].per ? json_real((double)m[i].value / m[i].per) : json_null();

		json_object_set_new(o, m[i].name, v);
	}
}

/* Bytes. Nonsense of a VMM wraps, which is no overflow. */
static int64_t pages(uint64_t n)
{
	return (int64_t)(n * GW_PAGE_SIZE);
}

/* What a VM maps beyond what it brought to the store, and its zeros, after all metadata. Over the VMs of a domain it sums up to that one's. */
static int64_t vm_profit(const Godwit__ShareStatus *s, const Godwit__ShareClientStats *c)
{
	return (int64_t)((s->zero_pages + s->shared_pages - c->stored_pages) * GW_PAGE_SIZE - s->metadata_bytes - c->metadata_bytes);
}

static json_t *vm_json(const Godwit__VmShareInfo *vm)
{
	const Godwit__ShareStatus *s = vm->status;
	const Godwit__ShareClientStats *c = vm->client;
	unsigned known = c != NULL;
	char mode[16];
	json_t *o;

	gw_enum_word(&godwit__vm_share__descriptor, (int)vm->mode, mode, sizeof(mode));
	o = json_pack("{s:s,s:s,s:s,s:b,s:b,s:s,s:s}", "vm", vm->vm, "domain", vm->domain, "mode", mode, "running", vm->running, "attached",
		      s && s->attached && c, "reason", vm->reason, "limit", s ? s->limit : "");
	if (o && s) {
		const struct measure m[] = {
			{ "godwit_share_memory_bytes", pages(s->pages), 1 },
			{ "godwit_share_zero_bytes", pages(s->zero_pages), 1 },
			{ "godwit_share_lineage_bytes", pages(s->lineage_pages), 1 },
			{ "godwit_share_shared_bytes", pages(s->shared_pages), 1 },
			{ "godwit_share_broken_bytes", pages(s->broken_pages), 1 },
			{ "godwit_share_stored_bytes", c ? pages(c->stored_pages) : 0, known },
			{ "godwit_share_metadata_bytes", (int64_t)(s->metadata_bytes + (c ? c->metadata_bytes : 0)), 1 },
			{ "godwit_share_profit_bytes", c ? vm_profit(s, c) : 0, known },
			{ "godwit_share_chunks", (int64_t)s->chunks, 1 },
			{ "godwit_share_mappings", s->mappings, 1 },
			{ "godwit_share_mappings_budget", s->mappings_budget, 1 },
			{ "godwit_share_passes_total", (int64_t)s->passes, 1 },
			{ "godwit_share_pass_age_seconds", (int64_t)s->pass_age_ms, s->passes ? 1000 : 0 },
			{ "godwit_share_pass_seconds", (int64_t)s->pass_ms, s->passes ? 1000 : 0 },
			{ "godwit_share_cpu_seconds_total", (int64_t)s->cpu_ms, 1000 },
			{ "godwit_share_stall_p50_seconds", (int64_t)s->stall_p50_us, 1000000 },
			{ "godwit_share_stall_p99_seconds", (int64_t)s->stall_p99_us, 1000000 },
			{ "godwit_share_stall_max_seconds", (int64_t)s->stall_max_us, 1000000 },
			{ "godwit_share_hashed_pages_total", (int64_t)s->hashed_pages, 1 },
			{ "godwit_share_merged_pages_total", (int64_t)s->merged_pages, 1 },
			{ "godwit_share_remerged_pages_total", (int64_t)s->again_pages, 1 },
			{ "godwit_share_skipped_differing_pages_total", (int64_t)s->differing_pages, 1 },
			{ "godwit_share_skipped_busy_pages_total", (int64_t)s->busy_pages, 1 },
			{ "godwit_share_skipped_budget_pages_total", (int64_t)s->over_budget_pages, 1 },
			{ "godwit_share_skipped_failed_pages_total", (int64_t)s->failed_pages, 1 },
			{ "godwit_share_lies_total", c ? (int64_t)c->lies : 0, known },
		};

		add_measures(o, m, ARRAY_SIZE(m));
	}
	return o;
}

struct domain_sums {
	int64_t sharing, stored, saved, zero, metadata, profit; /* bytes */
};

static struct domain_sums domain_sums(const Godwit__DomainShareInfo *d)
{
	struct domain_sums s = { .zero = pages(d->zero_pages), .metadata = (int64_t)d->metadata_bytes };

	if (d->store) {
		s.sharing = pages(d->store->live_pages);
		s.stored = pages(d->store->stored_pages);
		s.metadata += (int64_t)d->store->metadata_bytes;
	}
	s.saved = s.sharing - s.stored;
	s.profit = s.zero + s.saved - s.metadata;
	return s;
}

/* Only where there is one VM is it known that nothing is shared between VMs. */
static bool one_vm(const Godwit__DomainShareInfo *d)
{
	return d->store && d->store->clients == 1;
}

static json_t *domain_json(const Godwit__DomainShareInfo *d)
{
	struct domain_sums s = domain_sums(d);
	unsigned known = d->store != NULL;
	const struct measure m[] = {
		{ "godwit_share_vms", d->vms, 1 },
		{ "godwit_share_zero_bytes", s.zero, 1 },
		{ "godwit_share_lineage_bytes", pages(d->lineage_pages), 1 },
		{ "godwit_share_sharing_bytes", s.sharing, known },
		{ "godwit_share_stored_bytes", s.stored, known },
		{ "godwit_share_saved_bytes", s.saved, known },
		{ "godwit_share_within_vm_bytes", s.saved, one_vm(d) },
		{ "godwit_share_between_vm_bytes", 0, one_vm(d) },
		{ "godwit_share_metadata_bytes", s.metadata, known },
		{ "godwit_share_profit_bytes", s.profit, known },
		{ "godwit_share_store_bytes", known ? (int64_t)d->store->store_bytes : 0, known },
		{ "godwit_share_chunks", known ? (int64_t)d->store->chunks : 0, known },
		{ "godwit_share_index_entries", known ? (int64_t)d->store->index_entries : 0, known },
		{ "godwit_share_compacted_chunks_total", known ? (int64_t)d->store->compacted_chunks : 0, known },
	};
	json_t *o = json_pack("{s:s}", "domain", d->domain);

	if (o)
		add_measures(o, m, ARRAY_SIZE(m));
	return o;
}

static json_t *host_json(const Godwit__ShareInfo *info)
{
	const struct measure m[] = {
		{ "godwit_share_daemon_cpu_seconds_total", (int64_t)info->daemon_cpu_us, info->daemon_pid ? 1000000 : 0 },
		{ "godwit_share_daemon_starts_total", info->daemon_starts, 1 },
		{ "godwit_share_max_map_count", (int64_t)info->max_map_count, 1 },
	};
	json_t *o = json_pack("{s:s,s:b,s:i,s:s,s:s}", "host", info->host, "enabled", info->enabled, "daemon_pid", (int)info->daemon_pid,
			      "daemon_reason", info->daemon_reason, "warning", info->warning);
	json_t *domains = json_array(), *vms = json_array();

	if (o)
		add_measures(o, m, ARRAY_SIZE(m));
	for (size_t i = 0; i < info->n_domains; i++)
		json_array_append_new(domains, domain_json(info->domains[i]));
	for (size_t i = 0; i < info->n_vms; i++)
		json_array_append_new(vms, vm_json(info->vms[i]));
	json_object_set_new(o, "domains", domains);
	json_object_set_new(o, "vms", vms);
	return o;
}

static void size_cell(struct gw_table *t, int64_t bytes, bool known)
{
	char text[32];

	gw_format_size(bytes < 0 ? 0 - (uint64_t)bytes : (uint64_t)bytes, text, sizeof(text));
	gw_table_cell(t, "%s%s", known && bytes < 0 ? "-" : "", known ? text : "-");
}

static void domain_row(struct gw_table *t, const Godwit__DomainShareInfo *d)
{
	struct domain_sums s = domain_sums(d);
	bool known = d->store != NULL;

	gw_table_cell(t, "%s", d->domain);
	gw_table_cell(t, "%u", d->vms);
	size_cell(t, s.zero, true);
	size_cell(t, pages(d->lineage_pages), true);
	size_cell(t, s.sharing, known);
	size_cell(t, s.stored, known);
	size_cell(t, s.saved, known);
	size_cell(t, s.saved, one_vm(d));
	size_cell(t, 0, one_vm(d));
	size_cell(t, s.metadata, known);
	size_cell(t, s.profit, known);
	gw_table_cell(t, "%s", known ? "" : "the page store does not serve it");
}

static void vm_row(struct gw_table *t, const Godwit__VmShareInfo *vm)
{
	static const Godwit__ShareStatus none = GODWIT__SHARE_STATUS__INIT;
	const Godwit__ShareStatus *s = vm->status ?: &none;
	bool known = vm->status != NULL;

	gw_table_cell(t, "%s", vm->vm);
	gw_table_cell(t, "%s", vm->domain);
	size_cell(t, pages(s->zero_pages), known);
	size_cell(t, pages(s->lineage_pages), known);
	size_cell(t, pages(s->shared_pages), known);
	size_cell(t, pages(s->broken_pages), known);
	size_cell(t, known && vm->client ? vm_profit(s, vm->client) : 0, known && vm->client);
	gw_table_cell(t, known ? "%u/%u" : "-", s->mappings, s->mappings_budget);
	gw_table_cell(t, s->passes ? "%.0f s ago" : "-", (double)s->pass_age_ms / 1000);
	gw_table_cell(t, known ? "%.1f s" : "-", (double)s->cpu_ms / 1000);
	gw_table_cell(t, known ? "%" PRIu64 "/%" PRIu64 "/%" PRIu64 " us" : "-", s->stall_p50_us, s->stall_p99_us, s->stall_max_us);
	gw_table_cell(t, "%s", *vm->reason ? vm->reason : s->limit);
}

static void print_table(const char *const *header, size_t columns, const Godwit__ShareInfo *info, bool domains)
{
	struct gw_table t = { .columns = (unsigned)columns };

	for (size_t i = 0; i < columns; i++)
		gw_table_cell(&t, "%s", header[i]);
	for (size_t i = 0; domains && i < info->n_domains; i++)
		domain_row(&t, info->domains[i]);
	for (size_t i = 0; !domains && i < info->n_vms; i++)
		vm_row(&t, info->vms[i]);
	if (!t.failed)
		gw_table_print(&t);
	gw_table_release(&t);
}

/* Of one VM: why pages were not merged. */
static void print_skipped(const Godwit__ShareStatus *s)
{
	printf("\nhashed %" PRIu64 " pages ever, merged %" PRIu64 " and again %" PRIu64 "; not merged: changed meanwhile %" PRIu64
	       ", I/O in flight %" PRIu64 ", too many mappings %" PRIu64 ", refused by the host %" PRIu64 "\n",
	       s->hashed_pages, s->merged_pages, s->again_pages, s->differing_pages, s->busy_pages, s->over_budget_pages, s->failed_pages);
}

static void print_text(const struct gw_cli *cli, const Godwit__ShareInfo *info)
{
	static const char *const domain_header[] = { "DOMAIN", "VMS",	 "ZERO",    "LINEAGE",  "SHARING", "STORED",
						     "SAVED",  "WITHIN", "BETWEEN", "METADATA", "PROFIT",  "NOTE" };
	static const char *const vm_header[] = { "VM",	   "DOMAIN",   "ZERO",	  "LINEAGE", "SHARED", "BROKEN",
						 "PROFIT", "MAPPINGS", "SCANNED", "CPU",     "STALL",  "NOTE" };

	if (!info->enabled)
		printf("host %s does not share memory ([share] enable = no)\n\n", info->host);
	else if (info->daemon_pid)
		printf("host %s: page store of process %u, %.1f s of CPU\n\n", info->host, info->daemon_pid, (double)info->daemon_cpu_us / 1e6);
	else
		printf("host %s: no page store runs%s%s\n\n", info->host, *info->daemon_reason ? ": " : "", info->daemon_reason);
	if (*info->warning)
		printf("%s\n\n", info->warning);
	print_table(domain_header, ARRAY_SIZE(domain_header), info, true);
	putchar('\n');
	print_table(vm_header, ARRAY_SIZE(vm_header), info, false);
	if (cli->vm && info->n_vms == 1 && info->vms[0]->status)
		print_skipped(info->vms[0]->status);
	fflush(stdout);
}

static int print_once(struct gw_cli *cli, struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__ShareInfoRequest share = GODWIT__SHARE_INFO_REQUEST__INIT;
	gw_autoreply *reply = NULL;
	int r;

	share.vm = (char *)(cli->vm ?: "");
	share.domain = (char *)(cli->domain ?: "");
	req.op_case = GODWIT__AGENT_REQUEST__OP_SHARE;
	req.share = &share;
	r = gw_cli_ask(cli, &req, &reply, err);
	if (r < 0)
		return r;
	if (!reply->share)
		return gw_error_set(err, EPROTO, "the agent answers with something else");
	if (cli->json) {
		gw_print_json(host_json(reply->share), cli->watch);
		return 0;
	}
	/* Home, and clear what is below. */
	if (cli->watch && isatty(STDOUT_FILENO))
		fputs("\033[H\033[J", stdout);
	print_text(cli, reply->share);
	return 0;
}

int gw_cli_share(struct gw_cli *cli, struct gw_error *err)
{
	int r = print_once(cli, err);

	while (r == 0 && cli->watch && !ferror(stdout)) {
		usleep(REPAINT_US);
		if (!cli->json && !isatty(STDOUT_FILENO))
			putchar('\n');
		r = print_once(cli, err);
	}
	return r;
}
