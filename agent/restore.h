// SPDX-License-Identifier: Apache-2.0
/*
 * A snapshot of a VM, what it needs of this host, and the way from a VM that is recorded here as suspended to one that runs. Whether that may be done, and who
 * it is then, is told by resume.h and clone.h.
 */
#ifndef GW_AGENT_RESTORE_H
#define GW_AGENT_RESTORE_H

#include "agent/guest.h"
#include "migrate/repo/repo.h"
#include "migrate/repo/snap.h"

struct gw_restore {
	struct gw_agent *a;
	const char *url;                 /* borrowed */
	struct gw_repo *repo;
	struct gw_snap *snap;
	const struct gw_snap_info *info; /* of it */
	Godwit__SnapshotAbout *about;    /* checked */
	char *kernel, *initrd;           /* found by content elsewhere than the VM has them; else NULL */
	bool forced;                     /* set by who knows: somebody may have gone on from it as this VM before */
};

/* To be released in every case. `generation` 0: the latest. */
int gw_restore_open(struct gw_restore *s, struct gw_agent *a, const char *url, const char *passphrase, const ProtobufCBinaryData *fingerprint,
		    const char *snapshot, uint64_t generation, struct gw_error *err);
void gw_restore_release(struct gw_restore *s);
/* VMM, networks of `config`, and boot files: the guest needs them again only when it reboots, but then the very same. */
int gw_restore_check_host(struct gw_restore *s, const Godwit__VmConfig *config, struct gw_error *err);
/* A record of a VM that is suspended in the snapshot; owned, NULL when out of memory. */
Godwit__VmRecord *gw_restore_record(const struct gw_restore *s, const Godwit__VmConfig *config, uint64_t epoch);
/* Notes in the record where the VM is, so that it can be resumed again should this fail. 0 or -ENOMEM. */
int gw_restore_suspension(const struct gw_restore *s, Godwit__VmRecord *rec);
/*
 * From the record to a VM that runs, or stays paused; its memory may still be on its way. On failure there may be a VMM, whose end is left to the
 * caller; up to the moment that its journal says OWNER it has nothing.
 */
int gw_restore_bring(const struct gw_restore *s, struct gw_guest *g, bool paused, struct gw_error *err);

#endif
