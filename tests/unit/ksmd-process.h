// SPDX-License-Identifier: Apache-2.0
/* A page-store daemon in a process of its own, with the test as its agent. One at a time. */
#ifndef GW_TESTS_KSMD_PROCESS_H
#define GW_TESTS_KSMD_PROCESS_H

#include <stddef.h>
#include <sys/types.h>

#include "proto/share.h"
#include "proto/share.pb-c.h"

struct ksmd_process {
	pid_t pid;   /* -1: none */
	int control; /* the agent's end */
};
extern struct ksmd_process ksmd;

/* Listens for control connections at `path`, or has one already (NULL). */
void ksmd_start(const char *path);
/* Closes the control socket: the daemon ends by itself, without an error. */
void ksmd_stop(void);
/* SIGKILL, and gone when it returns. */
void ksmd_kill(void);

/* The answer to a request on the control socket; owned. */
Godwit__ShareReply *ksmd_ask(const Godwit__ShareRequest *req, const int *fds, unsigned nfds);
/* The daemon's figures; owned. */
Godwit__ShareReply *ksmd_figures(void);
/* How many descriptors it has of what has `name` in its name ("": of anything). */
unsigned ksmd_fds(const char *name);
/* 0 or the daemon's -errno. */
int ksmd_attach_with(const char *vm, const char *domain, const char *key, size_t key_len, const int *fds, unsigned nfds);
/* The client's end of a new session for the VM, under a key that goes with the domain. */
int ksmd_attach(const char *vm, const char *domain);

#endif
