// SPDX-License-Identifier: Apache-2.0
/* The agent of a move's destination killed, or given an error, at each of its steps; see agent-kill.h. */
#include "agent-kill.h"

#include "agent/failpoints.h"
#include "lib/util.h"

static const struct agent_kill_scenario scenarios[] = {
	{ GW_FP_DST_PREPARE, 1, NULL, 's' },
	{ GW_FP_DST_PREPARED, 1, NULL, 's' },
	{ GW_FP_DST_SPAWNED, 1, NULL, 's' },
	{ GW_FP_DST_CONNECTED, 1, NULL, 's' },
	{ GW_FP_DST_HANDED, 1, NULL, 's' },
	{ GW_FP_DST_ARRIVED, 1, NULL, 'd' },
	{ GW_FP_DST_DECIDED, 1, NULL, 'd' },
	{ GW_FP_DST_COMMITTED, 1, NULL, 'd' },
	{ GW_FP_DST_UNDO, 1, "move-dst-state=error", 's' },
};

int main(int argc, char **argv)
{
	return agent_kill_main("agent-kill-destination", scenarios, ARRAY_SIZE(scenarios), argc, argv);
}
