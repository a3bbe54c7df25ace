// SPDX-License-Identifier: Apache-2.0
/*
 * Disks on NBD servers: what blk-nbd.c (operations) and nbd-link.c (the connection) share. Everything runs on the device thread, but
 * for opening, which happens before there is anything to share.
 */
#ifndef GW_VMM_BLK_NBD_H
#define GW_VMM_BLK_NBD_H

#include "lib/log.h"
#include "vmm/blk-backend.h"
#include "vmm/late-nbd.h"

/* Commands at the server at a time, and the most data of one. */
#define GW_NBD_COMMANDS 32
#define GW_NBD_CHUNK (1u << 20)

struct gw_nbd;

/* A command at the server: a part of an operation. */
struct gw_nbd_command {
	struct gw_nbd *nbd;
	struct gw_blk_io *io; /* NULL: free */
	bool finished;
	int error;            /* positive errno */
	uint64_t len;
	uint8_t *bounce;      /* data that is not one piece in guest memory; kept for reuse */
	bool bounced;         /* `bounce` is in use */
	uint64_t sequence;    /* order of issue */
};

enum gw_nbd_state { GW_NBD_DOWN, GW_NBD_CONNECTING, GW_NBD_UP };

struct gw_nbd {
	struct gw_blk_backend be;
	char *name, *uri;
	bool readonly;
	struct gw_iothread *io;
	void (*batch_done)(void *owner);
	void *owner;

	enum gw_nbd_state state;
	struct nbd_handle *handle; /* NULL when DOWN */
	int fd;                    /* of handle, as watched */
	int watched;               /* our duplicate of it: libnbd closes its own when it likes */
	struct gw_io_source *source;
	int timer;                 /* reconnecting, deadlines */
	struct gw_io_source *timer_source;
	uint64_t down_since_ns;    /* 0: never */
	uint64_t connect_by_ns;    /* CONNECTING gives up */
	uint64_t retry_ns;         /* next attempt when DOWN */
	struct gw_ratelimit limit;

	struct gw_nbd_command commands[GW_NBD_COMMANDS];
	unsigned issued;
	uint64_t sequence;
	struct gw_blk_io *waiting, **tail; /* operations, and the rest of them, not at the server */
};

/* nbd-link.c */
int gw_nbd_connect_first(struct gw_nbd *nbd, struct gw_error *err);
/* Watches the connection for what libnbd wants now. */
void gw_nbd_watch(struct gw_nbd *nbd);
/* Goes on with connecting or reconnecting as far as that is possible at once. */
void gw_nbd_link_step(struct gw_nbd *nbd);
/* Waits at most `ms` for the connection, whatever its state, and handles what comes. */
void gw_nbd_link_wait(struct gw_nbd *nbd, int ms);
/* Drops the connection: all issued commands are finished with ENOTCONN. */
void gw_nbd_link_drop(struct gw_nbd *nbd, const char *why);
void gw_nbd_link_close(struct gw_nbd *nbd);

/* blk-nbd.c: handles finished commands and issues waiting ones. True when operations were completed. */
bool gw_nbd_pump(struct gw_nbd *nbd);

#endif
