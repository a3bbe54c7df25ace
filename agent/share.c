// SPDX-License-Identifier: Apache-2.0
/* Attaching VMs to the page-store daemon; see share.h. What it brings is told by share-info.c. */
#include "agent/share.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

#include "agent/keyfile.h"
#include "agent/share-internal.h"
#include "agent/vmconfig.h"
#include "agent/vmmctl.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/log.h"
#include "lib/parse.h"
#include "lib/util.h"

/* Between attempts to attach a VM; doubled each time. */
#define RETRY_MIN (2 * GW_NS_PER_SEC)
#define RETRY_MAX (300 * GW_NS_PER_SEC)
/* A VMM that says so long after its attach that it has no session has lost it. */
#define SETTLED (15 * GW_NS_PER_SEC)

/* Never lowers it. `want` 0: leaves it. */
static void raise_map_count(struct gw_sharing *s, const char *path, uint64_t want)
{
	gw_autofree char *text = NULL;
	gw_autofd fd = -1;
	char digits[24];
	size_t len;

	if (gw_read_file(path, 64, &text, &len, NULL) < 0)
		return;
	s->map_count = strtoull(text, NULL, 10);
	if (s->map_count >= want)
		return;
	fd = open(path, O_WRONLY | O_CLOEXEC);
	snprintf(digits, sizeof(digits), "%llu\n", (unsigned long long)want);
	if (fd >= 0 && write(fd, digits, strlen(digits)) == (ssize_t)strlen(digits)) {
		gw_info("vm.max_map_count raised from %llu to %llu", (unsigned long long)s->map_count, (unsigned long long)want);
		s->map_count = want;
		return;
	}
	snprintf(s->warning, sizeof(s->warning),
		 "vm.max_map_count is %llu and cannot be raised (%s), so that VMs share less than they could; set it to %llu with sysctl",
		 (unsigned long long)s->map_count, strerrordesc_np(errno), (unsigned long long)want);
	gw_warn("%s", s->warning);
}

int gw_sharing_new(const struct gw_conf *conf, const char *map_count, struct gw_events *events, struct gw_sharing **ret,
		   struct gw_error *err)
{
	struct gw_sharing *s = calloc(1, sizeof(*s));
	int r = s ? gw_share_daemon_new(conf->share_daemon, events, &s->daemon, err) : gw_error_set(err, ENOMEM, "out of memory");

	if (r < 0) {
		free(s);
		return r;
	}
	pthread_mutex_init(&s->keys_lock, NULL);
	if (conf->share)
		raise_map_count(s, map_count, conf->share_map_count);
	*ret = s;
	return 0;
}

void gw_sharing_free(struct gw_sharing *s)
{
	if (!s)
		return;
	gw_share_daemon_free(s->daemon);
	pthread_mutex_destroy(&s->keys_lock);
	free(s);
}

const char *gw_share_domain(const Godwit__VmConfig *c)
{
	return *c->tenant ? c->tenant : "default";
}

/* One end for the daemon, one for the VMM. */
struct attach {
	struct gw_guest *g; /* a reference */
	pid_t pid;          /* of the VMM that it is for */
};

static int give_daemon(struct gw_guest *g, int fd, unsigned *number, struct gw_error *err)
{
	struct gw_sharing *s = g->agent->sharing;
	Godwit__ShareAttach attach = GODWIT__SHARE_ATTACH__INIT;
	uint8_t key[GW_KEYFILE_LEN];
	int r;

	/* Constant as long as the guest lives. */
	attach.vm = g->name;
	attach.domain = (char *)gw_share_domain(g->record->config);
	pthread_mutex_lock(&s->keys_lock);
	r = gw_keyfile(g->agent->conf->state, "share", attach.domain, key, err);
	pthread_mutex_unlock(&s->keys_lock);
	attach.pages = g->record->config->memory / GW_PAGE_SIZE;
	attach.key.data = key;
	attach.key.len = sizeof(key);
	r = r ?: gw_share_daemon_attach(s->daemon, &attach, fd, number, err);
	explicit_bzero(key, sizeof(key));
	return r;
}

static int give_vmm(struct gw_guest *g, int fd, struct gw_error *err)
{
	gw_autofree char *path = gw_guest_control(g);
	Godwit__VmmRequest req = GODWIT__VMM_REQUEST__INIT;
	Godwit__Share share = GODWIT__SHARE__INIT;

	if (!path)
		return gw_error_set(err, ENOMEM, "out of memory");
	share.image_only = g->record->config->share == GODWIT__VM_SHARE__SHARE_IMAGE;
	share.cpu_percent = g->agent->conf->share_cpu;
	req.op_case = GODWIT__VMM_REQUEST__OP_SHARE;
	req.share = &share;
	return gw_vmmctl_ask(path, &req, &fd, 1, NULL, NULL, err);
}

static void retry_later_locked(struct gw_guest *g)
{
	struct gw_guest_share *share = &g->share;

	share->pause_ns = share->pause_ns ? GW_MIN(2 * share->pause_ns, RETRY_MAX) : RETRY_MIN;
	share->retry_ns = gw_now_ns() + share->pause_ns;
}

/* With g->lock held. `tell`: that there is no daemon is told of as its own event. */
static void failed_locked(struct gw_guest *g, int r, bool tell, const char *why)
{
	struct gw_guest_share *share = &g->share;
	char before[sizeof(share->reason)];

	retry_later_locked(g);
	/* A move is under way, or the VMM is just ending: no refusal. */
	if (r == -EBUSY || r == -ECONNREFUSED || r == -ENOENT)
		return;
	memcpy(before, share->reason, sizeof(before));
	snprintf(share->reason, sizeof(share->reason), "%s", why);
	gw_make_printable(share->reason);
	if (tell && strcmp(before, share->reason) != 0)
		gw_events_emit(g->agent->events, "share-refused", g->name, "it runs on without sharing: %s", share->reason);
}

static void attach(void *arg)
{
	struct attach *at = arg;
	struct gw_guest *g = at->g;
	struct gw_error err = GW_ERROR_INIT;
	int pair[2] = { -1, -1 }, r = 0;
	struct gw_share_daemon_info daemon;
	unsigned number = 0;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		r = gw_error_errno(&err, errno, "cannot make a socket pair");
	r = r ?: give_daemon(g, pair[0], &number, &err);
	r = r ?: give_vmm(g, pair[1], &err);
	gw_share_daemon_info(g->agent->sharing->daemon, &daemon);
	gw_closep(&pair[0]);
	gw_closep(&pair[1]);
	pthread_mutex_lock(&g->lock);
	g->share.attaching = false;
	if (g->watched && g->pid == at->pid && r < 0) {
		failed_locked(g, r, daemon.pid != 0, gw_error_text(&err));
	} else if (g->watched && g->pid == at->pid) {
		g->share.session = number;
		g->share.attached_ns = gw_now_ns();
		g->share.reason[0] = '\0';
	}
	pthread_mutex_unlock(&g->lock);
	gw_guest_unref(g);
	free(at);
}

void gw_sharing_before_load(struct gw_guest *g)
{
	struct attach *at = malloc(sizeof(*at));
	bool may;

	if (!at)
		return;
	pthread_mutex_lock(&g->lock);
	may = g->agent->conf->share && g->record->config->share == GODWIT__VM_SHARE__SHARE_TENANT && g->watched && !g->share.attaching;
	if (may) {
		*at = (struct attach){ gw_guest_ref(g), g->pid };
		g->share.session = 0;
		g->share.attaching = true;
	}
	pthread_mutex_unlock(&g->lock);
	if (may)
		attach(at);
	else
		free(at);
}

/* With g->lock held: whether the VM is to share and may be given a session. A VM that moves is not: it has one, or will. */
static bool wants_locked(const struct gw_guest *g)
{
	const Godwit__VmRecord *rec = g->record;

	return g->agent->conf->share && rec->config->share != GODWIT__VM_SHARE__SHARE_OFF && g->watched && g->status && !g->departing &&
	       (rec->state == GODWIT__VM_STATE__VM_RUNNING || rec->state == GODWIT__VM_STATE__VM_PAUSED);
}

/* The VMM's own word on its session. */
static void take_status(struct gw_guest *g, Godwit__ShareStatus *status)
{
	struct gw_guest_share *share = &g->share;

	gw_make_printable(status->reason);
	gw_make_printable(status->limit);
	pthread_mutex_lock(&g->lock);
	if (share->status)
		godwit__share_status__free_unpacked(share->status, NULL);
	share->status = status;
	if (share->session && status->attached) {
		share->pause_ns = 0;
	} else if (share->session && gw_now_ns() - share->attached_ns > SETTLED) {
		share->session = 0;
		retry_later_locked(g);
	}
	pthread_mutex_unlock(&g->lock);
}

static void ask_status(struct gw_guest *g)
{
	gw_autofree char *path = gw_guest_control(g);
	Godwit__VmmReply *reply = NULL;

	if (!path || gw_vmmctl_simple(path, GODWIT__VMM_REQUEST__OP_SHARE_STATUS, &reply, NULL) < 0)
		return;
	if (reply->share)
		take_status(g, gw_steal_ptr(&reply->share));
	godwit__vmm_reply__free_unpacked(reply, NULL);
}

static void begin_locked(struct gw_guest *g)
{
	struct attach *at = malloc(sizeof(*at));
	struct gw_error err = GW_ERROR_INIT;

	if (!at)
		return;
	*at = (struct attach){ gw_guest_ref(g), g->pid };
	g->share.session = 0;
	g->share.attaching = true;
	if (gw_agent_thread(g->agent, attach, at, &err) == 0)
		return;
	g->share.attaching = false;
	failed_locked(g, -err.code, true, gw_error_text(&err));
	gw_guest_unref(g);
	free(at);
}

void gw_sharing_check(struct gw_guest *g, bool ask)
{
	unsigned session;
	bool due;

	pthread_mutex_lock(&g->lock);
	session = g->share.session;
	due = wants_locked(g) && !g->share.attaching && gw_now_ns() >= g->share.retry_ns;
	pthread_mutex_unlock(&g->lock);
	if (ask && session)
		ask_status(g);
	if (!due || !gw_share_daemon_due(g->agent->sharing->daemon, session))
		return;
	pthread_mutex_lock(&g->lock);
	if (wants_locked(g) && !g->share.attaching)
		begin_locked(g);
	pthread_mutex_unlock(&g->lock);
}

void gw_sharing_ended_locked(struct gw_guest *g)
{
	bool attaching = g->share.attaching;

	if (g->share.status)
		godwit__share_status__free_unpacked(g->share.status, NULL);
	/* The thread is for the VMM that ended, and clears this itself. */
	g->share = (struct gw_guest_share){ .attaching = attaching };
}
