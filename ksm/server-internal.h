// SPDX-License-Identifier: Apache-2.0
/* What the two files of the server share; see server.h. */
#ifndef GW_KSM_SERVER_INTERNAL_H
#define GW_KSM_SERVER_INTERNAL_H

#include "ksm/server.h"
#include "ksm/store.h"
#include "proto/share.pb-c.h"

struct gw_share_domain {
	struct gw_share_domain *next;
	struct gw_store *store;
	unsigned sessions;
};

struct gw_share_session {
	struct gw_share_session *next, **link;
	struct gw_share_server *server;
	struct gw_share_domain *domain;
	struct gw_store_client *client;
	sd_event_source *io;
	int fd;
	bool waits;   /* for its socket to take more */
	bool retry;   /* at the next tick: the kernel is short of something */
	char vm[GW_STORE_NAME_MAX];
};

struct gw_share_control;

struct gw_share_server {
	sd_event *loop;
	struct gw_share_domain *domains;
	struct gw_share_session *sessions;
	struct gw_share_control *controls;
	sd_event_source *tick, *idle, *listener;
	char *path;     /* of the listener */
	bool ticking;
	unsigned since_idle; /* packets */
	struct gw_share_packet *packet;
};

/* server.c. Takes fd on success. */
int gw_share_server_attach(struct gw_share_server *s, const Godwit__ShareAttach *a, int fd, struct gw_error *err);
/* server-control.c */
void gw_share_controls_free(struct gw_share_server *s);

#endif
