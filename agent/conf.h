// SPDX-License-Identifier: Apache-2.0
/* godwitd's configuration file, godwitd.conf(5). */
#ifndef GW_AGENT_CONF_H
#define GW_AGENT_CONF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/error.h"

#define GW_PEER_PORT "7410"
#define GW_DATA_PORT "7411"
#define GW_MAX_PEERS 256

struct gw_conf_peer {
	char *name;
	char *address; /* HOST[:PORT] */
};

struct gw_conf {
	char *name;         /* this host's; also in its certificate */
	char *listen;       /* ADDR:PORT for peers and remote clients */
	char *data_listen;  /* ADDR:PORT for the channels of moves that come */
	char *data_address; /* what peers are to connect to, NULL: the address at which they reached us */
	char *socket;
	char *state;
	char *run;
	char *vmm;
	char **allow_cli;   /* names of remote clients that may use us; none listed: all that the CA signed */
	unsigned nallow_cli;
	char *tls_ca;       /* all three or none: without them there are no peers and no remote clients */
	char *tls_cert;
	char *tls_key;
	struct gw_conf_peer *peers;
	unsigned npeers;

	char *repositories;      /* folder of those that this host keeps for others; NULL: it keeps none */
	uint64_t repositories_keep_free; /* bytes that stay free in its file system */

	bool share;              /* VMs of one tenant share memory */
	char *share_daemon;      /* godwit-ksmd; by default beside our own binary */
	unsigned share_cpu;      /* percent of one processor that a VM's sharing may take */
	uint64_t share_map_count; /* vm.max_map_count is raised to that; 0: left alone */

	uint64_t reserve;         /* bytes of the host's memory that stay available, or */
	unsigned reserve_percent; /* of all of it; the other is 0 */
	unsigned overcommit;      /* VMs' memory over the host's, in hundredths */
};

/* Fills *conf with defaults, then from the file. gw_conf_release() in either case. Errors say FILE:LINE. */
int gw_conf_read(const char *path, struct gw_conf *conf, struct gw_error *err);
int gw_conf_parse(const char *file, const char *text, size_t len, struct gw_conf *conf, struct gw_error *err);
void gw_conf_release(struct gw_conf *conf);
static inline bool gw_conf_has_tls(const struct gw_conf *conf)
{
	return conf->tls_ca != NULL;
}

/*
 * Splits "HOST", "HOST:PORT", "[V6]" or "[V6]:PORT"; `port` takes `default_port` when there is none. Both are bounded
 * by their sizes.
 */
int gw_parse_address(const char *text, const char *default_port, char host[256], char port[6], struct gw_error *err);
/*
 * "HOST[:PORT]", or "NAME@HOST[:PORT]" where the certificate says NAME: the address to connect to, and the name to expect.
 */
int gw_split_host(const char *text, char address[280], char want_name[256], struct gw_error *err);

#endif
