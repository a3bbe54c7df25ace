// SPDX-License-Identifier: Apache-2.0
/* What the agent writes into snapshots and reads from them; see snapshot.h. */
#include "agent/snapshot.h"

#include <errno.h>

#include "agent/bootfile.h"
#include "agent/offer.h"
#include "agent/ticket.h"
#include "agent/vmconfig.h"
#include "lib/util.h"
#include "migrate/save.h"

#define EPOCH_MAX (1ull << 62) /* far from wrapping, whatever a snapshot says */

int gw_snapshot_describe(struct gw_guest *g, bool suspended, struct gw_buf *out, struct gw_error *err)
{
	const Godwit__MoveRequest none = GODWIT__MOVE_REQUEST__INIT;
	Godwit__SnapshotAbout about = GODWIT__SNAPSHOT_ABOUT__INIT;
	struct gw_offer offer;
	uint8_t *p = NULL;
	size_t len;
	int r = gw_offer_build(g, &none, &offer, err);

	if (r == 0) {
		pthread_mutex_lock(&g->lock);
		offer.prepare->epoch = g->record->epoch;
		pthread_mutex_unlock(&g->lock);
		about.version = 1;
		about.vm = offer.prepare;
		about.suspended = suspended;
		len = godwit__snapshot_about__get_packed_size(&about);
		p = gw_buf_reserve(out, len);
		if (p)
			out->len += godwit__snapshot_about__pack(&about, p);
		else
			r = gw_error_set(err, ENOMEM, "out of memory");
	}
	gw_offer_release(&offer);
	return r;
}

static bool digest_ok(const Godwit__BootFile *f)
{
	return f && (f->sha256.len == GW_SHA256_LEN || f->sha256.len == 0);
}

static int check_about(const Godwit__SnapshotAbout *about, struct gw_error *err)
{
	const Godwit__PeerPrepare *vm = about->vm;

	if (about->version != 1)
		return gw_error_set(err, EPROTONOSUPPORT, "the snapshot describes its VM in version %u, this agent reads 1", about->version);
	if (!vm || !vm->config || !vm->features || !digest_ok(vm->kernel) || !digest_ok(vm->initrd) || vm->epoch > EPOCH_MAX)
		return gw_error_set(err, EPROTO, "the snapshot's description of its VM is malformed");
	return gw_vmconfig_check(vm->config, err);
}

int gw_snapshot_about_decode(const void *data, size_t len, Godwit__SnapshotAbout **ret, struct gw_error *err)
{
	Godwit__SnapshotAbout *about = data ? godwit__snapshot_about__unpack(NULL, len, data) : NULL;
	int r;

	if (!about)
		return gw_error_set(err, EPROTO, "the snapshot does not describe its VM");
	r = check_about(about, err);
	if (r < 0)
		godwit__snapshot_about__free_unpacked(about, NULL);
	else
		*ret = about;
	return r;
}

int gw_snapshot_about(const struct gw_snap *snap, Godwit__SnapshotAbout **ret, struct gw_error *err)
{
	uint64_t len = 0;
	const void *data = gw_snap_part(snap, GW_SAVE_ABOUT, &len);

	return gw_snapshot_about_decode(data, len, ret, err) < 0 ? gw_error_wrap(err, "%s", gw_snap_info(snap)->name) : 0;
}

int gw_snapshot_repo(struct gw_agent *a, const char *url, const char *passphrase, const ProtobufCBinaryData *fingerprint, struct gw_repo **ret,
		     struct gw_error *err)
{
	struct gw_repo_secret secret = { .passphrase = *passphrase ? passphrase : NULL };
	struct gw_ticket ticket;
	int r = 0;

	if (!*url)
		return gw_error_set(err, EINVAL, "no repository is named");
	if (fingerprint->len && fingerprint->len != GW_REPO_ID_LEN)
		return gw_error_set(err, EINVAL, "a fingerprint has %u bytes, not %zu", GW_REPO_ID_LEN, fingerprint->len);
	secret.fingerprint = fingerprint->len ? fingerprint->data : NULL;
	if (!secret.passphrase) {
		if (!secret.fingerprint)
			return gw_error_set(err, EINVAL, "the passphrase of %s is needed, or its fingerprint if this host's key opens it", url);
		if (!a->tls_server)
			return gw_error_set(err, EINVAL, "this host has no key that could open %s: its configuration has no [tls]", url);
		secret.host = SSL_CTX_get0_privatekey(a->tls_server);
	}
	if (gw_ticket_is_url(url)) {
		r = gw_ticket_for(a, url, &ticket, err);
		secret.ticket = &ticket;
	}
	return r ?: gw_repo_open(url, &secret, ret, err);
}
