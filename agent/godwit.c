// SPDX-License-Identifier: Apache-2.0
/* godwit(1), the command line of Godwit's agents; see cli.h. */
#include <argp.h>

#include "agent/agent.h"
#include "agent/cli.h"

const char *argp_program_version = "godwit " GW_AGENT_VERSION;

int main(int argc, char **argv)
{
	return gw_cli_main(argc, argv);
}
