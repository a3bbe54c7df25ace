// SPDX-License-Identifier: Apache-2.0
/*
 * VMMs killed at each step of a move, and doubt: whatever dies, the two agents agree on who has the VM, never do two run, and a VM that
 * the journals say is safe to go on goes on.
 */
#include "cmocka-all.h"

#include <signal.h>
#include <string.h>

#include "agent-host.h"
#include "lib/clock.h"
#include "lib/util.h"

static struct agent_lab lab;

#define check(cond) \
	do { \
		if (!(cond)) { \
			agent_lab_dump(&lab); \
			fail_msg("%s:%d: %s", __FILE__, __LINE__, #cond); \
		} \
	} while (0)

struct scenario {
	const char *points;
	unsigned host;   /* whose VMM visits them */
	const char *source, *destination; /* the states at the end */
};

static const struct scenario scenarios[] = {
	{ "move-src-connect=kill", 0, "crashed", "none" },
	{ "move-src-copy=kill", 0, "crashed", "none" },
	{ "move-src-stop=kill", 0, "crashed", "none" },
	{ "move-src-ready=kill", 0, "crashed", "none" },
	{ "move-src-commit-journalled=kill", 0, "crashed", "none" },
	{ "move-src-commit-sent=kill", 0, "moved", "running" },
	{ "move-src-running=kill", 0, "moved", "running" },
	{ "move-dst-connect=kill", 1, "running", "none" },
	{ "move-dst-copy=kill", 1, "running", "none" },
	{ "move-dst-state=kill", 1, "running", "none" },
	{ "move-dst-ready-sent=kill", 1, "running", "none" },
	{ "move-dst-commit-received=kill", 1, "running", "none" },
	{ "move-dst-owner-journalled=kill", 1, "running", "none" },
	{ "move-dst-running-sent=kill", 1, "moved", "crashed" },
	/* The channel lost with COMMIT: the agents settle it. */
	{ "move-src-commit-sent=error", 0, NULL, NULL },
};

/* Starts both agents, the one of `host` with failpoints, and the VM on the source. */
static void begin(const char *points, unsigned host)
{
	char out[1024];

	for (unsigned i = 0; i < 2; i++)
		agent_host_start(&lab, i, i == host ? points : NULL);
	check(agent_cli(&lab, 0, out, sizeof(out), "create %s", agent_vm_file(&lab, "v", NULL)) == 0);
	check(agent_cli(&lab, 0, out, sizeof(out), "start v") == 0);
}

static void test_vmm_killed(void **state)
{
	const struct scenario *s = *state;
	char out[2048], a[32] = "", b[32] = "";
	uint64_t deadline;
	bool good = false;

	begin(s->points, s->host);
	agent_cli(&lab, 0, out, sizeof(out), "move v h2");
	deadline = gw_now_ns() + TEST_PATIENCE;
	while (!good && gw_now_ns() < deadline) {
		agent_vm_state(&lab, 0, "v", a);
		agent_vm_state(&lab, 1, "v", b);
		if (s->source)
			good = !strcmp(a, s->source) && !strcmp(b, s->destination);
		else
			good = (!strcmp(a, "running") && !strcmp(b, "none")) || (!strcmp(a, "moved") && !strcmp(b, "running"));
	}
	if (!good || agent_two_ran(&lab, "v")) {
		agent_lab_dump(&lab);
		fail_msg("%s: source %s, destination %s, two ran: %d; move said: %s", s->points, a, b, agent_two_ran(&lab, "v"), out);
	}
	/* What is not running can be started where it belongs, and nowhere else. */
	if (!strcmp(a, "crashed"))
		check(agent_cli(&lab, 0, NULL, 0, "start v") == 0);
	if (!strcmp(b, "crashed"))
		check(agent_cli(&lab, 1, NULL, 0, "start v") == 0);
	if (!strcmp(a, "moved"))
		check(agent_cli(&lab, 0, NULL, 0, "start v") == 4);
	check(agent_vmms(&lab) == 1);
	check(!agent_two_ran(&lab, "v"));
}

/* Operators who say the same at the same time, with the agent's own thread, which has read it too: each is told that it is done, or was. */
static void resolve_at_once(unsigned host, const char *side)
{
	pid_t cli[6];
	unsigned done = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(cli); i++)
		cli[i] = agent_cli_start(&lab, host, "resolve v %s", side);
	for (unsigned i = 0; i < ARRAY_SIZE(cli); i++) {
		int rc = agent_cli_wait(cli[i]);

		check(rc == 0 || rc == 4);
		done += rc == 0;
	}
	check(done > 0);
}

static void test_operator_here(void **state)
{
	char out[2048];
	pid_t move;

	/* The destination's VMM waits with COMMIT in hand until its file appears, which never happens. */
	snprintf(out, sizeof(out), "move-dst-commit-received=wait:%s/never", lab.dir);
	begin(out, 1);
	move = agent_cli_start(&lab, 0, "move v h2");
	snprintf(out, sizeof(out), "%s/never.hit", lab.dir);
	for (int i = 0; i < 6000 && access(out, F_OK) < 0; i++)
		usleep(10000);
	check(access(out, F_OK) == 0);
	agent_host_kill(&lab, 1, SIGKILL);
	check(agent_kill_vmm(&lab, 1, "v"));
	check(agent_wait_state(&lab, 0, "v", "doubt"));
	check(agent_cli(&lab, 0, out, sizeof(out), "ls") == 0 && strstr(out, "doubt"));
	check(agent_cli(&lab, 0, NULL, 0, "start v") == 6);
	check(agent_cli(&lab, 0, NULL, 0, "rm v") != 0);
	/* A restart of the agent does not settle it. */
	kill(move, SIGKILL);
	agent_cli_wait(move);
	agent_host_kill(&lab, 0, SIGKILL);
	agent_host_start(&lab, 0, NULL);
	check(agent_wait_state(&lab, 0, "v", "doubt"));
	resolve_at_once(0, "--here");
	check(agent_wait_state(&lab, 0, "v", "running"));
	check(agent_cli(&lab, 0, NULL, 0, "resolve v --here") == 4);
	/* The destination comes back, and finds nothing of its own. */
	agent_host_start(&lab, 1, NULL);
	check(agent_wait_state(&lab, 1, "v", "none"));
	check(agent_cli(&lab, 0, out, sizeof(out), "move v h2") == 0);
	check(!agent_two_ran(&lab, "v"));
}

static void test_operator_there(void **state)
{
	char out[2048];
	pid_t move;

	snprintf(out, sizeof(out), "move-dst-owner-journalled=wait:%s/never", lab.dir);
	begin(out, 1);
	move = agent_cli_start(&lab, 0, "move v h2");
	snprintf(out, sizeof(out), "%s/never.hit", lab.dir);
	for (int i = 0; i < 6000 && access(out, F_OK) < 0; i++)
		usleep(10000);
	check(access(out, F_OK) == 0);
	agent_host_kill(&lab, 1, SIGKILL);
	check(agent_kill_vmm(&lab, 1, "v"));
	check(agent_wait_state(&lab, 0, "v", "doubt"));
	check(agent_cli(&lab, 0, NULL, 0, "resolve v --there") == 0);
	check(agent_wait_state(&lab, 0, "v", "moved"));
	check(agent_vmms(&lab) == 0);
	check(agent_cli_wait(move) == 0);
	agent_host_kill(&lab, 0, SIGKILL);
	/* The destination: its VMM died as owner, and nobody told it more; it says so and the operator decides there as well. */
	agent_host_start(&lab, 1, NULL);
	check(agent_wait_state(&lab, 1, "v", "incoming"));
	check(agent_cli(&lab, 1, NULL, 0, "resolve v --here") == 0);
	check(agent_wait_state(&lab, 1, "v", "crashed"));
	check(agent_cli(&lab, 1, NULL, 0, "start v") == 0);
	check(!agent_two_ran(&lab, "v"));
}

/* An agent that comes back answers the doubt by itself. */
static void test_answered_later(void **state)
{
	char out[2048];
	pid_t move;

	snprintf(out, sizeof(out), "move-dst-owner-journalled=wait:%s/never", lab.dir);
	begin(out, 1);
	move = agent_cli_start(&lab, 0, "move v h2");
	snprintf(out, sizeof(out), "%s/never.hit", lab.dir);
	for (int i = 0; i < 6000 && access(out, F_OK) < 0; i++)
		usleep(10000);
	agent_host_kill(&lab, 1, SIGKILL);
	check(agent_kill_vmm(&lab, 1, "v"));
	check(agent_wait_state(&lab, 0, "v", "doubt"));
	agent_host_start(&lab, 1, NULL);
	check(agent_wait_state(&lab, 0, "v", "running"));
	check(agent_wait_state(&lab, 1, "v", "none"));
	check(agent_cli_wait(move) == 1);
	check(agent_vmms(&lab) == 1);
	check(!agent_two_ran(&lab, "v"));
}

/* Asked while the destination's VMM owns the VM and has not run it, the agent there waits for what comes of it. */
static void test_asked_too_early(void **state)
{
	char out[2048];
	pid_t move;

	snprintf(out, sizeof(out), "move-dst-owner-journalled=wait:%s/never", lab.dir);
	agent_host_start(&lab, 0, "move-src-commit-sent=error");
	agent_host_start(&lab, 1, out);
	check(agent_cli(&lab, 0, NULL, 0, "create %s", agent_vm_file(&lab, "v", NULL)) == 0);
	check(agent_cli(&lab, 0, NULL, 0, "start v") == 0);
	move = agent_cli_start(&lab, 0, "move v h2");
	snprintf(out, sizeof(out), "%s/never.hit", lab.dir);
	for (int i = 0; i < 6000 && access(out, F_OK) < 0; i++)
		usleep(10000);
	check(access(out, F_OK) == 0);
	check(agent_wait_state(&lab, 0, "v", "doubt"));
	check(agent_kill_vmm(&lab, 1, "v"));
	check(agent_wait_state(&lab, 0, "v", "running"));
	check(agent_wait_state(&lab, 1, "v", "none"));
	check(agent_cli_wait(move) == 1);
	check(agent_vmms(&lab) == 1);
	check(!agent_two_ran(&lab, "v"));
}

static int setup(void **state)
{
	agent_lab_init(&lab, 2);
	return 0;
}

static int teardown(void **state)
{
	agent_lab_release(&lab);
	return 0;
}

int main(int argc, char **argv)
{
	static const struct CMUnitTest fixed[] = {
		cmocka_unit_test_setup_teardown(test_operator_here, setup, teardown),
		cmocka_unit_test_setup_teardown(test_operator_there, setup, teardown),
		cmocka_unit_test_setup_teardown(test_answered_later, setup, teardown),
		cmocka_unit_test_setup_teardown(test_asked_too_early, setup, teardown),
	};
	struct CMUnitTest tests[ARRAY_SIZE(scenarios) + ARRAY_SIZE(fixed)];
	size_t n = 0;
	int status;

	if (agent_lab_role(argc, argv, &status))
		return status;
	/* An argument picks one. */
	for (size_t i = 0; i < ARRAY_SIZE(scenarios); i++) {
		if (argc < 2 || strstr(scenarios[i].points, argv[1]))
			tests[n++] = (struct CMUnitTest){ scenarios[i].points, test_vmm_killed, setup, teardown, (void *)&scenarios[i] };
	}
	for (size_t i = 0; i < ARRAY_SIZE(fixed); i++) {
		if (argc < 2 || strstr(fixed[i].name, argv[1]))
			tests[n++] = fixed[i];
	}
	return _cmocka_run_group_tests("agent-doubt", tests, n, NULL, NULL);
}
