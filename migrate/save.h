// SPDX-License-Identifier: Apache-2.0
/*
 * DOC: saving a VM to a snapshot repository
 *
 * The engine knows the VM as a move does (struct gw_move_vm), and copies its RAM in the same rounds (rounds.h), into a snapshot's writer
 * (repo/writer.h) instead of to a host. What the repository has already is found by content: a second snapshot of a VM stores what changed.
 *
 *   open repository -> rounds while the VM runs (live) -> stop -> last round, device state -> index and manifest durable -> read back
 *
 * - A snapshot (`keep`) lets the VM run on as soon as its last pages are copied to the writer's memory and its device state is taken; what then
 *   fails costs the snapshot alone.
 * - A suspended VM stays stopped. It is given up only when its manifest is durable and has been read back, and the journal says SUSPENDED. Until
 *   then every failure, and cancelling, lets it run on as if nothing had happened: a snapshot that is left then is one of a VM that went on.
 *
 * Who may run the VM: the host, until its journal says SUSPENDED; then nobody, until the snapshot is resumed (load.h) by who has been told by
 * that host's agent that nobody else has.
 */
#ifndef GW_MIGRATE_SAVE_H
#define GW_MIGRATE_SAVE_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/error.h"
#include "migrate/move.h"
#include "migrate/repo/crypt.h"
#include "migrate/repo/manifest.h"
#include "migrate/repo/ticket.h"

/* Parts of the manifest that are written here, besides GW_TOUCH_PART; the names are part of the format (docs/REPOSITORY.md). */
#define GW_SAVE_WORKING_SET "working-set" /* what it touched while it was saved, as in repo/touch.h */
#define GW_SAVE_STATE "state"     /* godwit.MachineState, packed */
#define GW_SAVE_MACHINE "machine" /* godwit.StreamMachine, packed: what a host must offer */
#define GW_SAVE_ABOUT "about"     /* the caller's */

enum gw_save_phase {
	GW_SAVE_OPEN,      /* the repository and its index are read */
	GW_SAVE_COPY,      /* rounds, the VM runs if it ran */
	GW_SAVE_STOP,      /* the VM stands still: last pages, state */
	GW_SAVE_COMMIT,    /* waits for packs and manifest to be durable; a snapshot's VM runs again */
	GW_SAVE_DONE,
	GW_SAVE_FAILED,    /* the VM runs if it ran before */
	GW_SAVE_CANCELLED, /* the same, by request */
};
/* "open", "copy", "stop", "commit", "done", "failed", "cancelled". */
const char *gw_save_phase_name(enum gw_save_phase phase);

struct gw_save_progress {
	enum gw_save_phase phase;
	uint32_t round;
	uint64_t ram_bytes;
	uint64_t bytes_done;    /* of guest memory, looked at in all rounds */
	uint64_t bytes_left;    /* known to be left to look at */
	uint64_t rate;          /* of that, bytes/s, recent */
	uint64_t dirty_rate;    /* bytes/s */
	uint64_t eta_ms;        /* 0: unknown */
	uint64_t zero_pages;
	uint64_t known_pages;   /* that the repository had */
	uint64_t stored_pages;
	uint64_t stored_bytes;  /* what these came to */
	uint64_t durable_bytes; /* of them, in the repository */
	uint64_t stopped_us;    /* how long the VM stood still; of one that is suspended until it was durable */
	uint64_t elapsed_ms;
	uint8_t snapshot[16];   /* DONE: its id and generation */
	uint64_t generation;
	char message[256];      /* why it failed */
};

/* All is copied. */
struct gw_save_params {
	const char *url;
	uint8_t key[GW_REPO_KEY_LEN]; /* the repository's */
	struct gw_ticket ticket;      /* for one that another host keeps; else zero */
	const char *name;       /* of the snapshot */
	const char *vm, *host;  /* for listings */
	bool live;              /* rounds while the VM runs; else it is stopped for all of it */
	bool keep;              /* it goes on afterwards */
	uint64_t epoch;         /* that the VM is owned with: journalled when it is suspended */
	uint64_t watch_ns;      /* a VM that runs is watched for so long for its working set, before it is stopped; 0: 1 s */
	uint64_t downtime_ms;   /* live: so long the last round may take, about; 0: 300 */
	const void *about;      /* of the caller, kept as part GW_SAVE_ABOUT; len 0: none */
	size_t about_len;
	const void *touch;      /* order of first touches (repo/touch.h); len 0: not known */
	size_t touch_len;
};

/* On a thread of the engine, at least about five times a second. After DONE, FAILED or CANCELLED it is not called again, and the VM is as the phase says. */
typedef void gw_save_progress_fn(void *arg, const struct gw_save_progress *p);

struct gw_save;

/* What `vm` points to and the journal (may be NULL) are borrowed until gw_save_free(). -EINVAL: parameters. */
int gw_save_start(const struct gw_save_params *params, const struct gw_move_vm *vm, struct gw_journal *journal, gw_save_progress_fn *fn, void *arg,
		  struct gw_save **ret, struct gw_error *err);
/* Any thread. 0: it will end as CANCELLED unless it fails first; -EBUSY: it is done. */
int gw_save_cancel(struct gw_save *s);
/* Cancels if it still can, and waits for the threads. Takes NULL. */
void gw_save_free(struct gw_save *s);

#endif
