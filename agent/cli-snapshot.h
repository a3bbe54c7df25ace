// SPDX-License-Identifier: Apache-2.0
/* What commands about snapshots of VMs share: suspend, snapshot, resume, clone, and moves through a repository. */
#ifndef GW_AGENT_CLI_SNAPSHOT_H
#define GW_AGENT_CLI_SNAPSHOT_H

#include "agent/cli-repo.h"
#include "agent/cli.h"

/*
 * The repository's passphrase, from where the command line or the environment says, or typed; none with a fingerprint alone: the agent then opens it by its
 * host's key. *ret is to be released.
 */
int gw_cli_snapshot_secret(const struct gw_cli *cli, const char *url, struct gw_cli_secret *ret, struct gw_error *err);
/* For the agent; empty: none. Lives as long as `s`. */
ProtobufCBinaryData gw_cli_fingerprint(struct gw_cli_secret *s);
/* "NAME" or "NAME@GENERATION": cuts off the latter; 0 without one. */
int gw_cli_split_generation(char *name, uint64_t *generation, struct gw_error *err);
/*
 * Saves the VM of the first argument as `s` says but for what the command line tells of name, downtime and detaching, and shows how it goes. *reply (owned) may be
 * there on failure, too.
 */
int gw_cli_save(const struct gw_cli *cli, Godwit__SaveRequest *s, struct gw_cli_secret *secret, Godwit__AgentReply **reply, struct gw_error *err);
/* godwit move --through. */
int gw_cli_move_through(struct gw_cli *cli, struct gw_error *err);

#endif
