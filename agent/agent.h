// SPDX-License-Identifier: Apache-2.0
/*
 * godwitd, the host's agent. Theory of operation:
 *
 * - The main thread accepts connections; each has a thread (server.c) that answers its requests. Each live VMM has a watcher
 *   thread (watch.c) that follows its control socket and its death. A move away has a thread (depart.c), a doubt has
 *   one that asks the other side until it answers (settle.c). A move that comes is driven by its connection's thread
 *   (arrive.c) until the VMM holds the channels, then by the watcher. Each connection to a repository that this host keeps has
 *   one (repositories.h). One thread looks after the host's memory (memory.h), and each attach of a VM to the page store has
 *   one (share.h).
 * - What must survive the agent is in files: a record a VM, a record a move that came (records.h), the VMM's own ownership
 *   journal (migrate/journal.h). Whatever thread learns something decides by these files and the kernel's word on
 *   which process lives (process.h), so that a restarted agent comes to the same conclusion.
 * - Locks: a guest's lock may be held while agent->lock or the events' lock is taken, never the other way round; the
 *   memory policy's comes before all of these, the events' also after that of the page store's daemon, and the other locks are taken alone.
 *   Records are saved under the guest's lock. Nothing waits for the network or a VMM with a lock held, and for the daemon only with its own. Long work on a VM is fenced by its operation
 *   (gw_guest_begin), which refuses instead of waiting.
 */
#ifndef GW_AGENT_AGENT_H
#define GW_AGENT_AGENT_H

#include <openssl/ssl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "agent/conf.h"
#include "agent/events.h"
#include "agent/memory.h"
#include "lib/error.h"

#define GW_AGENT_VERSION "0.1.0"
#define GW_AGENT_PROTOCOL 1

struct gw_guest;
struct gw_arrival;
struct gw_repositories;
struct gw_sharing;

struct gw_agent {
	/* Constant once it runs. */
	const struct gw_conf *conf;
	SSL_CTX *tls_server; /* NULL without [tls], like the other */
	SSL_CTX *tls_client;
	struct gw_events *events;
	struct gw_sharing *sharing;
	struct gw_repositories *repositories; /* NULL: this host keeps none */
	char boot_id[40];
	uint16_t data_port;
	int lock_fd;         /* STATE/agent.lock: one agent a state folder */
	int stop_fd;         /* eventfd, readable when the agent is to end */
	_Atomic bool stopping;
	_Atomic unsigned threads; /* background threads that still use this */

	pthread_mutex_t lock; /* the list, and the guests' reference counts */
	struct gw_guest *guests;

	pthread_mutex_t arrivals_lock; /* the list and its members' channels */
	struct gw_arrival *arrivals;

	struct gw_memory memory;

	pthread_mutex_t digests_lock;
	struct gw_digest_cache *digests; /* bootfile.c */
};

/* Opens events and TLS, makes folders. conf is borrowed. */
int gw_agent_init(struct gw_agent *a, const struct gw_conf *conf, struct gw_error *err);
/* After gw_agent_stop(). */
void gw_agent_release(struct gw_agent *a);
/* Wakes all background threads and waits for them, at most `ms`. VMMs stay as they are. 0, or -ETIMEDOUT. */
int gw_agent_stop(struct gw_agent *a, int ms);
/*
 * Runs `fn(arg)` on a detached thread that counts in a->threads. On failure fn was not called.
 */
int gw_agent_thread(struct gw_agent *a, void (*fn)(void *), void *arg, struct gw_error *err);
/* Sleeps until the monotonic deadline; true when the agent is to end. */
bool gw_agent_sleep(struct gw_agent *a, uint64_t deadline_ns);

/* The address of host `name` for a channel: from [peers], else `name` itself (gw_split_host); *want_name is what its certificate must say. */
int gw_agent_peer_address(const struct gw_agent *a, const char *name, char address[280], char want_name[256],
			  struct gw_error *err);

#endif
