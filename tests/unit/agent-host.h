// SPDX-License-Identifier: Apache-2.0
/*
 * Agents for tests: real godwitd and godwit on loopback in a fresh folder, with VMMs that need no KVM (agent-vmm.h). The test program is
 * all of them: it runs itself under other names.
 */
#ifndef GW_TESTS_AGENT_HOST_H
#define GW_TESTS_AGENT_HOST_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define AGENT_MAX_HOSTS 3

struct agent_host {
	char name[16];
	char conf[128], socket[128], state[128], log[128];
	unsigned port, data_port;
	int held[2]; /* the two ports */
	pid_t pid; /* 0: not running */
};

struct agent_lab {
	char dir[64];
	unsigned nhosts;
	bool apart; /* for configurations that are written from now on: its agent reaches no other one */
	struct agent_host h[AGENT_MAX_HOSTS];
};

/* First thing in main(): true when the program was started as godwitd, godwit, godwit-vmm or godwit-ksmd, which then has run; exit with *status. */
bool agent_lab_role(int argc, char **argv, int *status);

/*
 * Certificates and configurations of hosts h1, h2, ... Fails the test when it cannot. They share no memory and hold none in reserve: what
 * this machine has left is no matter of tests.
 */
void agent_lab_init(struct agent_lab *lab, unsigned nhosts);
/* Writes the host's configuration anew, with these sections instead of that. */
void agent_host_conf(struct agent_lab *lab, unsigned host, const char *more);
/* Kills what it started (agents and VMMs), removes the folder. */
void agent_lab_release(struct agent_lab *lab);

/* Starts the agent with this list of failpoints (NULL: none) and waits until it answers. */
void agent_host_start(struct agent_lab *lab, unsigned host, const char *failpoints);
/* SIGKILL, or SIGTERM; waits for its end. Fine when it is dead. */
void agent_host_kill(struct agent_lab *lab, unsigned host, int sig);
/* Whether it has died by itself (a failpoint). */
bool agent_host_dead(struct agent_lab *lab, unsigned host);

/*
 * Runs `godwit --socket <host's> <words...>` and returns its exit status; standard output and error together go to `out`
 * (NULL: dropped). The command is one string, split at blanks.
 */
int agent_cli(struct agent_lab *lab, unsigned host, char *out, size_t size, const char *fmt, ...)
	__attribute__((format(printf, 5, 6)));
/* The same without waiting; collect with agent_cli_wait(). */
pid_t agent_cli_start(struct agent_lab *lab, unsigned host, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* With standard output and error to `out`. */
pid_t agent_cli_start_to(struct agent_lab *lab, unsigned host, int out, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
int agent_cli_wait(pid_t pid);

/* Writes a VM file and returns its path (static buffer). */
const char *agent_vm_file(struct agent_lab *lab, const char *name, const char *more);
/* The state of a VM on a host as `godwit show --json` tells it; "none" when it has none, "?" when the agent does not answer. */
void agent_vm_state(struct agent_lab *lab, unsigned host, const char *vm, char state[32]);
/* Waits until it is `state`. */
bool agent_wait_state(struct agent_lab *lab, unsigned host, const char *vm, const char *state);
/* How many VMM processes of the lab live. */
unsigned agent_vmms(struct agent_lab *lab);
/* SIGKILL to the VMM of a VM on a host, which is dead then; false when there is none. */
bool agent_kill_vmm(struct agent_lab *lab, unsigned host, const char *vm);
/* True when two VMMs ever ran the VM at the same time. */
bool agent_two_ran(struct agent_lab *lab, const char *vm);
/* For a failed test: logs to standard output. */
void agent_lab_dump(struct agent_lab *lab);

#endif
