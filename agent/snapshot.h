// SPDX-License-Identifier: Apache-2.0
/* A snapshot's part "about": what the agent of another host needs to know of the VM, as for a move. */
#ifndef GW_AGENT_SNAPSHOT_H
#define GW_AGENT_SNAPSHOT_H

#include "agent/guest.h"
#include "lib/buf.h"
#include "migrate/repo/repo.h"
#include "migrate/repo/snap.h"

/* Of a VM with a live VMM, which is asked. Packed, appended to `out`. */
int gw_snapshot_describe(struct gw_guest *g, bool suspended, struct gw_buf *out, struct gw_error *err);
/* Checked like a peer's offer: whoever has the repository's key can have written it. *ret is owned (godwit__snapshot_about__free_unpacked). */
int gw_snapshot_about(const struct gw_snap *snap, Godwit__SnapshotAbout **ret, struct gw_error *err);
/* The same of the part's bytes (NULL: there is none). */
int gw_snapshot_about_decode(const void *data, size_t len, Godwit__SnapshotAbout **ret, struct gw_error *err);
/*
 * By passphrase or, where that is empty, by the key of this host, and then only one that has the fingerprint: anybody can make a repository that a host's key
 * opens. An empty fingerprint is none. -EKEYREJECTED, and as gw_repo_open().
 */
int gw_snapshot_repo(struct gw_agent *a, const char *url, const char *passphrase, const ProtobufCBinaryData *fingerprint, struct gw_repo **ret,
		     struct gw_error *err);

#endif
