// SPDX-License-Identifier: Apache-2.0
/* godwitd as a function, so that tests can be one. */
#ifndef GW_AGENT_DAEMON_H
#define GW_AGENT_DAEMON_H

/* Runs until SIGTERM or SIGINT; returns the exit status. */
int gw_daemon_main(int argc, char **argv);

#endif
