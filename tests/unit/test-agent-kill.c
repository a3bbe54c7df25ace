// SPDX-License-Identifier: Apache-2.0
/*
 * Agents killed at each step of a move: the VM runs on, on exactly one host, both agents come to agree on which, nothing is left
 * behind on the other, and the VM can be moved again. Errors at each step: the same, without a restart.
 */
#include "cmocka-all.h"

#include <signal.h>
#include <string.h>

#include "agent-host.h"
#include "agent/failpoints.h"
#include "lib/clock.h"
#include "lib/util.h"

struct scenario {
	const char *name;
	unsigned host;      /* which agent has the failpoints: 0 source, 1 destination */
	const char *points; /* "%s" is the action */
	const char *with;   /* and these, as they are, on the same host */
	char where;         /* where the VM must end: 's', 'd', or '?' for either */
};

static const struct scenario scenarios[] = {
	{ GW_FP_SRC_PREPARE, 0, GW_FP_SRC_PREPARE, NULL, 's' },
	{ GW_FP_SRC_PREPARED, 0, GW_FP_SRC_PREPARED, NULL, 's' },
	{ GW_FP_SRC_CONNECTED, 0, GW_FP_SRC_CONNECTED, NULL, 's' },
	{ GW_FP_SRC_HANDED, 0, GW_FP_SRC_HANDED, NULL, '?' },
	{ GW_FP_SRC_RELEASED, 0, GW_FP_SRC_RELEASED, NULL, 'd' },
	{ GW_FP_SRC_RECORDED, 0, GW_FP_SRC_RECORDED, NULL, 'd' },
	{ GW_FP_SRC_FAILED, 0, GW_FP_SRC_FAILED, "move-src-round=error", 's' },
	{ GW_FP_SRC_DOUBT, 0, GW_FP_SRC_DOUBT, "move-src-commit-sent=error", '?' },
	{ GW_FP_DST_PREPARE, 1, GW_FP_DST_PREPARE, NULL, 's' },
	{ GW_FP_DST_PREPARED, 1, GW_FP_DST_PREPARED, NULL, 's' },
	{ GW_FP_DST_SPAWNED, 1, GW_FP_DST_SPAWNED, NULL, 's' },
	{ GW_FP_DST_CONNECTED, 1, GW_FP_DST_CONNECTED, NULL, 's' },
	{ GW_FP_DST_HANDED, 1, GW_FP_DST_HANDED, NULL, 's' },
	{ GW_FP_DST_ARRIVED, 1, GW_FP_DST_ARRIVED, NULL, 'd' },
	{ GW_FP_DST_DECIDED, 1, GW_FP_DST_DECIDED, NULL, 'd' },
	{ GW_FP_DST_COMMITTED, 1, GW_FP_DST_COMMITTED, NULL, 'd' },
	{ GW_FP_DST_UNDO, 1, GW_FP_DST_UNDO, "move-dst-state=error", 's' },
};

static struct agent_lab lab;

static void arm(const struct scenario *s, const char *action)
{
	char points[256];

	snprintf(points, sizeof(points), "%s=%s%s%s", s->points, action, s->with ? "," : "", s->with ?: "");
	for (unsigned i = 0; i < 2; i++) {
		agent_host_kill(&lab, i, SIGTERM);
		agent_host_start(&lab, i, i == s->host ? points : NULL);
	}
}

/* Waits until the two agents agree: 's' or 'd' for where the VM runs, 0 when they do not in time. */
static char settled(void)
{
	uint64_t deadline = gw_now_ns() + 60 * GW_NS_PER_SEC;
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

static void run(const struct scenario *s, const char *action)
{
	bool kill = !strcmp(action, "kill");
	char out[2048];
	char where;
	int rc;

	arm(s, action);
	assert_int_equal(agent_cli(&lab, 0, out, sizeof(out), "create %s", agent_vm_file(&lab, "v", NULL)), 0);
	assert_int_equal(agent_cli(&lab, 0, out, sizeof(out), "start v"), 0);
	rc = agent_cli(&lab, 0, out, sizeof(out), "move v h2");
	for (int i = 0; kill && i < 1000 && !agent_host_dead(&lab, s->host); i++)
		usleep(20000);
	if (kill && !agent_host_dead(&lab, s->host)) {
		agent_lab_dump(&lab);
		fail_msg("%s was never visited", s->name);
	}
	if (kill)
		agent_host_start(&lab, s->host, NULL);
	where = settled();
	if (!where || (s->where != '?' && where != s->where) || agent_two_ran(&lab, "v")) {
		agent_lab_dump(&lab);
		fail_msg("%s=%s: the VM is at '%c', want '%c'; two ran: %d; move said %d: %s", s->name, action, where ?: '0', s->where,
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
			fail_msg("%s=%s: the next move failed: %s", s->name, action, out);
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

int main(int argc, char **argv)
{
	struct CMUnitTest tests[2 * ARRAY_SIZE(scenarios)];
	static char names[2 * ARRAY_SIZE(scenarios)][64];
	size_t n = 0;
	int status;

	if (agent_lab_role(argc, argv, &status))
		return status;
	for (size_t i = 0; i < ARRAY_SIZE(scenarios); i++) {
		bool both = strcmp(scenarios[i].name, GW_FP_SRC_RELEASED) != 0;

		/* An argument picks one. */
		if (argc > 1 && strcmp(argv[1], scenarios[i].name) != 0)
			continue;
		snprintf(names[n], sizeof(names[n]), "%s=kill", scenarios[i].name);
		tests[n] = (struct CMUnitTest){ names[n], test_kill, setup, teardown, (void *)&scenarios[i] };
		n++;
		/* Of the errors those that can be one. */
		if (!both || strchr("d?", scenarios[i].where) || scenarios[i].with)
			continue;
		snprintf(names[n], sizeof(names[n]), "%s=error", scenarios[i].name);
		tests[n] = (struct CMUnitTest){ names[n], test_error, setup, teardown, (void *)&scenarios[i] };
		n++;
	}
	return _cmocka_run_group_tests("agent-kill", tests, n, NULL, NULL);
}
