// SPDX-License-Identifier: Apache-2.0
/* godwitd(8), the agent of a host. Theory of operation: agent.h. */
#include <argp.h>

#include "agent/agent.h"
#include "agent/daemon.h"

const char *argp_program_version = "godwitd " GW_AGENT_VERSION;

int main(int argc, char **argv)
{
	return gw_daemon_main(argc, argv);
}
