// SPDX-License-Identifier: Apache-2.0
/*
 * DOC: godwit repo
 *
 * Commands that look after a repository of snapshots (migrate/repo/repo.h). They open it themselves, by its URL: no agent takes part, so that they work
 * where the storage can be reached and somebody knows a passphrase or holds a host's key. For one that a host keeps, an agent is asked for a ticket.
 *
 *   cli-repo.c          opening, exit statuses
 *   cli-repo-options.c  the commands, and what a command line may say
 *   cli-repo-secret.c   passphrases and keys: from files, or typed
 *   cli-repo-ticket.c   tickets for repositories that a host keeps
 *   cli-repo-work.c     progress of what takes long; Ctrl-C
 *   cli-repo-snaps.c    snapshots by name
 *   cli-repo-key.c, -ls.c, -show.c, -rm.c, -check.c, -prune.c, -copy.c, -stats.c  a command each, or few
 *
 * Text that comes out of a repository was chosen by whoever could write to it: it is cleaned before it is printed.
 */
#ifndef GW_AGENT_CLI_REPO_H
#define GW_AGENT_CLI_REPO_H

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "agent/cli-output.h"
#include "agent/cli.h"
#include "lib/error.h"
#include "migrate/repo/repo.h"
#include "migrate/repo/snap.h"
#include "migrate/repo/ticket.h"
#include "migrate/repo/upkeep.h"

/* argv[0] is "repo"; `cli`: what was said before it. Returns the exit status. */
int gw_cli_repo_main(int argc, char **argv, const struct gw_cli *cli);

/* ---- passphrases and keys ---- */

/* Where the command line says that a secret is. */
struct gw_cli_secret_from {
	const char *passphrase_file; /* "-": standard input; NULL: none */
	const char *key_file;        /* PEM; NULL: none. Without both it is typed */
	const char *fingerprint;     /* hexadecimal; NULL: none */
};
struct gw_cli_secret {
	struct gw_repo_secret secret; /* of what follows */
	char *passphrase;             /* owned */
	EVP_PKEY *host;               /* owned */
	uint8_t fingerprint[GW_REPO_ID_LEN];
	struct gw_ticket ticket;
};
/* Asks for what is typed by "`what` of `url`", twice when it is `new`. *ret must stay where it is, until it is released. */
int gw_cli_secret_read(const struct gw_cli_secret_from *from, const char *what, const char *url, bool new, struct gw_cli_secret *ret,
		       struct gw_error *err);
/* Which fingerprint the repository must have; NULL: any. */
int gw_cli_secret_expect(struct gw_cli_secret *s, const char *fingerprint, struct gw_error *err);
/* A host's public key, of its certificate or alone; its name there goes to `name` (64 bytes; "": none). *ret is owned. */
int gw_cli_public_key_read(const char *path, EVP_PKEY **ret, char name[64], struct gw_error *err);
void gw_cli_secret_release(struct gw_cli_secret *s);

/* ---- commands ---- */

/* Everything that a command line may say; each command takes some of it. */
struct gw_cli_repo {
	const struct gw_cli *cli; /* which agent, and how: for tickets */
	bool json;
	const char *url;
	struct gw_cli_secret_from from;
	const char **args; /* owned array */
	unsigned nargs;
	struct gw_cli_secret_from new_from; /* key add: of the new key */
	const char *to;                     /* copy: the other repository */
	struct gw_cli_secret_from to_from;  /* copy: of that */
	const char *cert, *label;
	bool read_data, dry_run, exclusive, all;
	uint64_t keep_last, grace_s, waste_percent; /* 0: not said */
	/* Set as they become known. */
	struct gw_cli_secret secret;
	struct gw_repo *repo; /* owned */
	int status;           /* exit status of what went through and found something; 0: by the errno */
};

struct gw_cli_repo_command {
	const char *name;
	const char *args_doc;
	const char *doc;
	unsigned min_args, max_args;
	const int *options; /* keys, 0 at the end */
	bool opens;         /* c->repo is there when it runs */
	int (*run)(struct gw_cli_repo *c, struct gw_error *err); /* 0 or negative errno */
};
/* Reads the command line; exits on what makes no sense. */
const struct gw_cli_repo_command *gw_cli_repo_parse(struct gw_cli_repo *c, int argc, char **argv);

/* The ticket for one that a host keeps (migrate/repo/ticket.h) goes to *s; `create` makes it. Nothing for others. None there is -ESRCH. */
int gw_cli_repo_reach(const struct gw_cli_repo *c, const char *url, bool create, struct gw_cli_secret *s, struct gw_error *err);
/* Opens another repository than c->repo. Failures tell what to do about it; none there is -ESRCH. */
int gw_cli_repo_open(const char *url, const struct gw_repo_secret *secret, struct gw_repo **ret, struct gw_error *err);
/* Of work on a repository that is open: an object that is missing is damage. Passes `r` on. */
int gw_cli_repo_failed(int r, const char *url, struct gw_error *err);

int gw_cli_repo_init(struct gw_cli_repo *c, struct gw_error *err);
int gw_cli_repo_key_add(struct gw_cli_repo *c, struct gw_error *err);
int gw_cli_repo_key_list(struct gw_cli_repo *c, struct gw_error *err);
int gw_cli_repo_key_remove(struct gw_cli_repo *c, struct gw_error *err);
int gw_cli_repo_list(struct gw_cli_repo *c, struct gw_error *err);
int gw_cli_repo_show(struct gw_cli_repo *c, struct gw_error *err);
int gw_cli_repo_check(struct gw_cli_repo *c, struct gw_error *err);
int gw_cli_repo_prune(struct gw_cli_repo *c, struct gw_error *err);
int gw_cli_repo_copy(struct gw_cli_repo *c, struct gw_error *err);
int gw_cli_repo_remove(struct gw_cli_repo *c, struct gw_error *err);
int gw_cli_repo_stats(struct gw_cli_repo *c, struct gw_error *err);

/* ---- snapshots ---- */

/* One of a list: what its manifest tells, with clean text. */
struct gw_cli_snap {
	char object[GW_SNAP_OBJECT];
	uint64_t bytes;       /* of the manifest */
	uint64_t generation;  /* also when it cannot be read */
	char *error;          /* owned; why it cannot be read, and then there is nothing below. NULL: it can */
	uint8_t id[16], parent[16], origin[16], vm_id[16];
	char name[GW_SNAP_NAME], vm[GW_SNAP_NAME], host[GW_SNAP_NAME];
	uint64_t created_ns;
	uint64_t pages, used, new_pages, new_bytes;
};
void gw_cli_snap_fill(struct gw_cli_snap *s, const struct gw_snap_info *info);
/* New reference. */
json_t *gw_cli_snap_json(const struct gw_cli_snap *s);

struct gw_cli_snaps {
	struct gw_cli_snap *all; /* by name and generation; those that cannot be read last */
	size_t count, cap;
};
void gw_cli_snaps_release(struct gw_cli_snaps *l);
/* name NULL: all. */
int gw_cli_snaps_read(struct gw_repo *repo, const char *name, struct gw_cli_snaps *ret, struct gw_error *err);
/* [{"object", "message"}] of those that cannot be read. */
json_t *gw_cli_snaps_damaged(const struct gw_cli_snaps *l);

/* "NAME" or "NAME@GENERATION". */
struct gw_cli_snap_ref {
	char name[GW_SNAP_NAME];
	uint64_t generation; /* 0: not said */
};
int gw_cli_snap_ref_parse(const char *text, struct gw_cli_snap_ref *ret, struct gw_error *err);
/* The one that is meant, the latest if no generation is said. None there is -ESRCH. */
int gw_cli_snap_open(struct gw_repo *repo, const char *text, struct gw_snap **ret, struct gw_error *err);

/* ---- long work ---- */

/* A bar on the terminal, and Ctrl-C: what is under way fails with -ECANCELED; a second one ends the program. */
struct gw_cli_work {
	struct gw_upkeep upkeep;
	const char *what;        /* borrowed */
	bool bar;
	struct gw_repo *repos[2]; /* to be cancelled; NULL: none */
	uint64_t began_ns;
	int signals, end;        /* signalfd, eventfd */
	sigset_t before;
	pthread_t thread;
};
/* other: NULL for none. Must be ended when it returns 0. */
int gw_cli_work_begin(struct gw_cli_work *w, const struct gw_cli_repo *c, const char *what, struct gw_repo *other, struct gw_error *err);
void gw_cli_work_end(struct gw_cli_work *w);
/* For a line on standard output meanwhile: takes the bar away, which comes back by itself. */
void gw_cli_work_clear(const struct gw_cli_work *w);

#endif
