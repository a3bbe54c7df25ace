// SPDX-License-Identifier: Apache-2.0
/* The agent of a move's source killed, or given an error, at each of its steps; see agent-kill.h. */
#include "agent-kill.h"

#include "agent/failpoints.h"
#include "lib/util.h"

static const struct agent_kill_scenario scenarios[] = {
	{ GW_FP_SRC_PREPARE, 0, NULL, 's' },
	{ GW_FP_SRC_PREPARED, 0, NULL, 's' },
	{ GW_FP_SRC_CONNECTED, 0, NULL, 's' },
	{ GW_FP_SRC_HANDED, 0, NULL, '?' },
	{ GW_FP_SRC_RELEASED, 0, NULL, 'd' },
	{ GW_FP_SRC_RECORDED, 0, NULL, 'd' },
	{ GW_FP_SRC_FAILED, 0, "move-src-round=error", 's' },
	{ GW_FP_SRC_DOUBT, 0, "move-src-commit-sent=error", '?' },
};

int main(int argc, char **argv)
{
	return agent_kill_main("agent-kill-source", scenarios, ARRAY_SIZE(scenarios), argc, argv);
}
