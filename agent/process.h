// SPDX-License-Identifier: Apache-2.0
/*
 * VMM processes: started detached from the agent so that they outlive it, found again by it, and known to be dead.
 *
 * Liveness is the kernel's word. The agent opens STATE/vms/NAME/lock, takes an open-file-description lock on it and lets the
 * VMM inherit the descriptor as number GW_VMM_LOCK_FD: the lock lasts exactly as long as the VMM's process, whatever
 * becomes of the agent or of process ids. A VMM found again is the process whose GW_VMM_LOCK_FD is that file.
 */
#ifndef GW_AGENT_PROCESS_H
#define GW_AGENT_PROCESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "lib/error.h"

#define GW_VMM_LOCK_FD 3

/* 1 while a process holds the lock file at `path`, 0 when none (or there is no such file), negative errno. */
int gw_process_alive(const char *path);

struct gw_process_spec {
	const char *program;
	char *const *argv;
	const char *lock;     /* path */
	const char *log;      /* path: standard output and error, appended */
};
/*
 * Starts the program in a session of its own. -EBUSY when the lock is held: a VMM of that VM may be alive. *pidfd is owned;
 * the caller is the parent and must gw_process_reap().
 */
int gw_process_start(const struct gw_process_spec *spec, pid_t *pid, int *pidfd, struct gw_error *err);
/* Finds the process that holds `lock`. -ESRCH when there is none. */
int gw_process_find(const char *lock, pid_t *pid, int *pidfd);
/* SIGKILL, then waits until its lock is free. 0 or -ETIMEDOUT. A process that is dead already is fine. */
int gw_process_kill(int pidfd, const char *lock, uint64_t deadline_ns);
/*
 * After its death: collects the exit status if the process was our child. Writes how it ended to `how` ("exited with
 * status 1", "killed by signal 9"), or "" when nobody knows. Returns whether it ended well.
 */
bool gw_process_reap(int pidfd, char *how, size_t size);

/* The last line of the log, at most size - 1 bytes, "" when there is none. */
void gw_process_last_words(const char *log, char *out, size_t size);
/* Keeps the log's size bounded: past the limit its end goes to LOG.1 and it is emptied. */
void gw_process_trim_log(const char *log);

#endif
