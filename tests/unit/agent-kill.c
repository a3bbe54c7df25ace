// SPDX-License-Identifier: Apache-2.0
/* Agents killed at each step of a move; see agent-kill.h. */
#include "cmocka-all.h"

#include "agent-kill.h"

#include <signal.h>
#include <string.h>

#include "agent-host.h"
#include "lib/clock.h"
#include "lib/util.h"

#define MAX_TESTS 40

static struct agent_lab lab;

static void arm(const struct agent_kill_scenario *s, const char *action)
{
	char points[256];

	snprintf(points, sizeof(points), "%s=%s%s%s", s->point, action, s->with ? "," : "", s->with ?: "");
	for (unsigned i = 0; i < 2; i++) {
		agent_host_kill(&lab, i, SIGTERM);
		agent_host_start(&lab, i, i == s->host ? points : NULL);
	}
}

/* Waits until the two agents agree: 's' or 'd' for where the VM runs, 0 when they do not in time. */
static char settled(void)
{
	uint64_t deadline = gw_now_ns() + TEST_PATIENCE;
	char a[32], b[32];

	do {
		agent_vm_state(&lab, 0, "v", a);
		agent_vm_state(&lab, 1, "v", b);
		if (!strcmp(a, "running") && !strcmp(b, "none") && agent_vmms(&lab) == 1)
			return 's';
		if (!strcmp(a, "moved") && !strcmp(b, "running") && agent_vmms(&lab) == 1)
			return 'd';
		usleep(50000);
	} while (gw_now_ns() < deadline);
	printf("source: %s, destination: %s, %u VMMs\n", a, b, agent_vmms(&lab));
	return 0;
}

static void run(const struct agent_kill_scenario *s, const char *action)
{
	bool kill = !strcmp(action, "kill");
	char out[2048];
	char where;
	int rc;

	arm(s, action);
	assert_int_equal(agent_cli(&lab, 0, out, sizeof(out), "create %s", agent_vm_file(&lab, "v", NULL)), 0);
	assert_int_equal(agent_cli(&lab, 0, out, sizeof(out), "start v"), 0);
	rc = agent_cli(&lab, 0, out, sizeof(out), "move v h2");
	for (int i = 0; kill && i < 3000 && !agent_host_dead(&lab, s->host); i++)
		usleep(20000);
	if (kill && !agent_host_dead(&lab, s->host)) {
		agent_lab_dump(&lab);
		fail_msg("%s was never visited", s->point);
	}
	if (kill)
		agent_host_start(&lab, s->host, NULL);
	where = settled();
	if (!where || (s->where != '?' && where != s->where) || agent_two_ran(&lab, "v")) {
		agent_lab_dump(&lab);
		fail_msg("%s=%s: the VM is at '%c', want '%c'; two ran: %d; move said %d: %s", s->point, action, where ?: '0', s->where,
			 agent_two_ran(&lab, "v"), rc, out);
	}
	/* What the command said was true, if it could say anything. */
	if (rc == 0)
		assert_int_equal(where, 'd');
	/* Nothing stands in the way of another move. */
	for (unsigned i = 0; i < 2; i++) {
		agent_host_kill(&lab, i, SIGTERM);
		agent_host_start(&lab, i, NULL);
	}
	/* (The source's VMM has its failpoints still.) */
	if (!s->with || s->host == 1 || where == 'd') {
		rc = agent_cli(&lab, where == 'd', out, sizeof(out), "move v %s --verify-digest", where == 'd' ? "h1" : "h2");
		if (rc != 0) {
			agent_lab_dump(&lab);
			fail_msg("%s=%s: the next move failed: %s", s->point, action, out);
		}
		where = where == 'd' ? 's' : 'd';
	}
	assert_false(agent_two_ran(&lab, "v"));
	assert_int_equal(agent_cli(&lab, where == 'd', NULL, 0, "stop v --force"), 0);
	assert_int_equal(agent_cli(&lab, where == 'd', NULL, 0, "rm v"), 0);
	assert_int_equal(agent_vmms(&lab), 0);
}

static void test_kill(void **state)
{
	run(*state, "kill");
}

static void test_error(void **state)
{
	run(*state, "error");
}

static int setup(void **state)
{
	agent_lab_init(&lab, 2);
	return 0; /* *state is the scenario and stays */
}

static int teardown(void **state)
{
	agent_lab_release(&lab);
	return 0;
}

int agent_kill_main(const char *group, const struct agent_kill_scenario *scenarios, size_t n, int argc, char **argv)
{
	static char names[MAX_TESTS][64];
	struct CMUnitTest tests[MAX_TESTS];
	size_t count = 0;
	int status;

	if (agent_lab_role(argc, argv, &status))
		return status;
	for (size_t i = 0; i < n && count + 2 <= MAX_TESTS; i++) {
		const struct agent_kill_scenario *s = &scenarios[i];

		if (argc > 1 && strcmp(argv[1], s->point) != 0)
			continue;
		snprintf(names[count], sizeof(names[count]), "%s=kill", s->point);
		tests[count] = (struct CMUnitTest){ names[count], test_kill, setup, teardown, (void *)s };
		count++;
		/* Of the errors those that can be one. */
		if (strchr("d?", s->where) || s->with)
			continue;
		snprintf(names[count], sizeof(names[count]), "%s=error", s->point);
		tests[count] = (struct CMUnitTest){ names[count], test_error, setup, teardown, (void *)s };
		count++;
	}
	return _cmocka_run_group_tests(group, tests, count, NULL, NULL);
}
