// SPDX-License-Identifier: Apache-2.0
/*
 * Manifests: all that a snapshot is, but for its pages. One object in two sealed parts: a head that tells what a listing shows, and a body with places,
 * page map and device state; the head holds the body's tag. Both are bound to the object's name, which follows from the snapshot's name and generation: an
 * older generation cannot stand in for a newer one.
 */
#ifndef GW_MIGRATE_REPO_MANIFEST_H
#define GW_MIGRATE_REPO_MANIFEST_H

#include <stdint.h>

#include "lib/buf.h"
#include "lib/error.h"
#include "lib/ram/ram.h"
#include "migrate/repo/object.h"
#include "migrate/repo/places.h"

#define GW_SNAP_NAME 64        /* of a snapshot, VM, host: with NUL */
#define GW_SNAP_MAX_DISKS 32
#define GW_SNAP_DISK 256       /* with NUL */
#define GW_SNAP_MAX_PARTS 16
#define GW_SNAP_MAX_PART (64u << 20) /* bytes */
#define GW_SNAP_MAX_PAGES (1ull << 32)
#define GW_SNAP_OBJECT 80      /* of a manifest's name, with NUL: "snapshots/", 32 digits, '/', 16 digits, '-', 16 digits */

struct gw_snap_region {
	uint64_t gpa, size; /* bytes */
};

/* What a listing shows. */
struct gw_snap_info {
	uint8_t id[16];              /* random, of this snapshot alone */
	char name[GW_SNAP_NAME];
	uint64_t generation;         /* 1, 2, ... of its name */
	uint64_t created_ns;         /* CLOCK_REALTIME of the host that made it */
	char vm[GW_SNAP_NAME];
	uint8_t vm_id[16];
	char host[GW_SNAP_NAME];     /* that made it */
	uint8_t parent[16];          /* id of the snapshot whose pages were taken over by reference; zero: none */
	uint8_t origin[16];          /* id of the snapshot that it was first copied from; zero: it is no copy */
	uint64_t pages;              /* of RAM */
	uint64_t used;               /* of them not zero */
	uint64_t new_pages;          /* that were not in the repository when it was made */
	uint64_t new_bytes;          /* that these took there */
	unsigned nregions, ndisks;
	struct gw_snap_region regions[GW_RAM_MAX_REGIONS];
	char disks[GW_SNAP_MAX_DISKS][GW_SNAP_DISK]; /* what the VM's disks are called */
};

/* Pages page.. are the slots slot.. of a segment of the manifest's places. */
struct gw_snap_run {
	uint64_t page;
	uint32_t count, segment, slot;
};

/* Something with a name and no meaning here: device state, ... */
struct gw_snap_part {
	char name[32];
	void *data; /* owned */
	uint64_t len;
};

struct gw_manifest {
	struct gw_snap_info info;
	struct gw_places places;
	struct gw_snap_run *runs; /* by page; what is in none is zero */
	uint64_t nruns;
	struct gw_snap_part parts[GW_SNAP_MAX_PARTS];
	unsigned nparts;
};
void gw_manifest_release(struct gw_manifest *m);
/* 0, -ENOMEM, -EINVAL (its name, or their number). Replaces one of that name; copies. */
int gw_manifest_set_part(struct gw_manifest *m, const char *name, const void *data, uint64_t len);

/* "snapshots/...": the folder of all generations of a name, with its '/'; and one of them. */
int gw_manifest_folder(struct gw_crypt *c, const char *snapshot, char out[GW_SNAP_OBJECT]);
int gw_manifest_name(struct gw_crypt *c, const struct gw_snap_info *info, char out[GW_SNAP_OBJECT]);
/* The generation that an object's name tells. -EINVAL: it is not the name of a manifest. */
int gw_manifest_parse_name(const char *object, uint64_t *generation);

/* Appends to `out`. */
int gw_manifest_seal(struct gw_crypt *c, const struct gw_manifest *m, const char *object, struct gw_buf *out, struct gw_error *err);
/* How many bytes the head takes, from the object's first GW_OBJECT_PREFIX. */
int gw_manifest_head_len(const char *object, const void *data, uint64_t len, uint32_t *ret, struct gw_error *err);
/* `data` is at least the head. */
int gw_manifest_open_head(struct gw_crypt *c, const char *object, const void *data, uint64_t len, struct gw_snap_info *ret, struct gw_error *err);
/* *ret is to be released. Every page in it lies in a blob of its places. */
int gw_manifest_open(struct gw_crypt *c, const char *object, const void *data, uint64_t len, struct gw_manifest *ret, struct gw_error *err);

/* The contents of both parts. */
struct gw_body_bind {
	uint8_t tag[GW_SEAL_TAG];
};
int gw_manifest_encode_head(const struct gw_snap_info *info, const struct gw_body_bind *body, struct gw_buf *out);
int gw_manifest_encode_body(const struct gw_manifest *m, struct gw_buf *out);
int gw_manifest_decode_head(const void *data, uint64_t len, struct gw_snap_info *ret, struct gw_body_bind *body);
/* m->info is there already. m is to be released in any case. */
int gw_manifest_decode_body(const void *data, uint64_t len, struct gw_manifest *m);

#endif
