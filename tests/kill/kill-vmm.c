// SPDX-License-Identifier: Apache-2.0
/* The VMM without KVM (tests/unit/agent-vmm.h) as a program of its own, for agents that are started by tests/kill/test-kill.py. */
#include "tests/unit/agent-vmm.h"

int main(int argc, char **argv)
{
	return agent_vmm_main(argc, argv);
}
