// SPDX-License-Identifier: Apache-2.0
/* Agents that do not reach each other, and a VM that goes from one to the other through a repository: it is one's alone at each step, whatever fails or is said again. */
#include "cmocka-all.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>

#include "agent-host.h"
#include "agent/pki.h"
#include "lib/io.h"
#include "lib/util.h"
#include "migrate/repo/repo.h"
#include "repo-help.h"

static struct agent_lab lab;
static char url[100], right[120], from[300], to[300], through[400], out[32768];

#define SHARE_NOTHING "[share]\nenable = no\n[memory]\nreserve = 0%\n"

#define check(cond) \
	do { \
		if (!(cond)) { \
			agent_lab_dump(&lab); \
			fail_msg("%s:%d: %s: %s", __FILE__, __LINE__, #cond, out); \
		} \
	} while (0)
#define says(text) (strstr(out, text) != NULL)

/* The command line reaches all hosts, as the client "client" by its default files. */
static void make_client(void)
{
	const struct gw_pki_request req = { .name = "client", .role = GW_ROLE_CLIENT, .days = 5 };
	char config[120], dir[140], pki[80], ca[100], copy[160];
	gw_autofree char *text = NULL;
	size_t len;

	snprintf(config, sizeof(config), "%s/config", lab.dir);
	snprintf(dir, sizeof(dir), "%s/godwit", config);
	snprintf(pki, sizeof(pki), "%s/pki", lab.dir);
	snprintf(ca, sizeof(ca), "%s/ca.crt", pki);
	snprintf(copy, sizeof(copy), "%s/ca.crt", dir);
	assert_int_equal(gw_pki_issue(pki, dir, &req, NULL), 0);
	assert_int_equal(gw_read_file(ca, 65536, &text, &len, NULL), 0);
	assert_int_equal(gw_write_file_atomic(copy, text, len, 0644, NULL), 0);
	setenv("XDG_CONFIG_HOME", config, 1);
}

static int setup(void **state)
{
	agent_lab_init(&lab, 3);
	snprintf(url, sizeof(url), "file://%s/repo", lab.dir);
	repo_init_url(url, 600);
	snprintf(right, sizeof(right), "%s/right", lab.dir);
	assert_int_equal(gw_write_file_atomic(right, REPO_PASS "\n", sizeof(REPO_PASS), 0600, NULL), 0);
	make_client();
	snprintf(to, sizeof(to), "--to %s --passphrase-file %s", url, right);
	snprintf(from, sizeof(from), "--from %s --passphrase-file %s", url, right);
	snprintf(through, sizeof(through), "move v h2@127.0.0.1:%u --through %s --passphrase-file %s", lab.h[1].port, url, right);
	return 0;
}

static int teardown(void **state)
{
	agent_lab_release(&lab);
	return 0;
}

static void restart(unsigned host, const char *failpoints)
{
	agent_host_kill(&lab, host, SIGKILL);
	agent_host_start(&lab, host, failpoints);
}

/* Whether they reach each other from now on. */
static void begin_with(bool apart)
{
	out[0] = '\0';
	lab.apart = apart;
	for (unsigned i = 0; i < 3; i++) {
		agent_host_conf(&lab, i, SHARE_NOTHING);
		restart(i, NULL);
	}
}

static int begin(void **state)
{
	begin_with(true);
	check(agent_cli(&lab, 0, out, sizeof(out), "create %s", agent_vm_file(&lab, "v", NULL)) == 0);
	check(agent_cli(&lab, 0, out, sizeof(out), "start v") == 0);
	return 0;
}

static int end(void **state)
{
	for (unsigned i = 0; i < 3; i++) {
		restart(i, NULL);
		agent_cli(&lab, i, NULL, 0, "stop v --force");
		agent_cli(&lab, i, NULL, 0, "rm v");
		agent_host_kill(&lab, i, SIGKILL);
	}
	check(!agent_two_ran(&lab, "v"));
	return 0;
}

static bool is(unsigned host, const char *state)
{
	return agent_wait_state(&lab, host, "v", state);
}

static int say(unsigned host, const char *words)
{
	return agent_cli(&lab, host, out, sizeof(out), "%s", words);
}

static int resume_on(unsigned host, const char *more)
{
	return agent_cli(&lab, host, out, sizeof(out), "resume v %s %s", from, more);
}

/* Released by h1; the grant is in lab.dir/NAME. */
static int release_to(const char *host, const char *name)
{
	char path[128];
	gw_autofd fd = -1;

	snprintf(path, sizeof(path), "%s/%s", lab.dir, name);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	return agent_cli_wait(agent_cli_start_to(&lab, 0, fd, "release v %s", host));
}

static int resume_with(unsigned host, const char *grant)
{
	char more[160];

	snprintf(more, sizeof(more), "--grant %s/%s", lab.dir, grant);
	return resume_on(host, more);
}

static void in_one_command(void **state)
{
	check(say(0, through) == 0 && says("moved to h2") && says("stood still") && says("v@1 stays"));
	check(is(1, "running") && is(0, "moved") && agent_vmms(&lab) == 1);
	/* Said again it is done already. */
	check(say(0, through) == 0 && is(1, "running") && agent_vmms(&lab) == 1);
	check(resume_on(0, "") == 4 && is(0, "moved"));
	/* From where it is now, by a client alone, with JSON; slow enough to be followed. */
	check(say(1, "stop v --force") == 0);
	restart(1, "save-state=delay:500");
	check(say(1, "start v") == 0);
	check(agent_cli(&lab, 2, out, sizeof(out), "--host h2@127.0.0.1:%u move v h1@127.0.0.1:%u --through %s --passphrase-file %s --json",
			lab.h[1].port, lab.h[0].port, url, right) == 0);
	check(says("{\"progress\":{\"phase\":") && says("\"moved\":true,\"host\":\"h1\"") && says("\"load\":{"));
	check(is(0, "running") && is(1, "moved") && agent_vmms(&lab) == 1);
}

static void nothing_is_done_where_it_could_not_go(void **state)
{
	agent_host_kill(&lab, 1, SIGKILL);
	check(say(0, through) == 5 && says("nothing was done"));
	agent_host_start(&lab, 1, NULL);
	check(agent_cli(&lab, 0, out, sizeof(out), "move v h2@127.0.0.1:%u --through file://%s/nowhere --passphrase-file %s", lab.h[1].port, lab.dir, right) != 0);
	check(says("nothing was done"));
	check(agent_cli(&lab, 0, out, sizeof(out), "move v h1@127.0.0.1:%u --through %s --passphrase-file %s", lab.h[0].port, url, right) == 4);
	check(agent_cli(&lab, 0, out, sizeof(out), "%s --bandwidth 1M", through) == 2 && agent_cli(&lab, 0, out, sizeof(out), "move v h2 --name x") == 2);
	check(is(0, "running"));
	check(agent_cli(&lab, 0, out, sizeof(out), "show v --json") == 0 && !says("\"phase\": \"done\""));
}

/* What only the snapshot tells is found out before the VM is handed over. */
static void it_comes_back_from_where_it_cannot_be(void **state)
{
	check(agent_cli(&lab, 1, out, sizeof(out), "create %s", agent_vm_file(&lab, "v", NULL)) == 0);
	check(say(0, through) == 4 && says("was resumed on h1") && says("VM v is stopped here"));
	check(is(0, "running") && is(1, "stopped") && agent_vmms(&lab) == 1);
	check(agent_cli(&lab, 1, out, sizeof(out), "rm v") == 0);
	check(say(0, through) == 0 && is(1, "running") && is(0, "moved"));
}

static void handed_over_it_is_not_lost(void **state)
{
	restart(1, "load-state=kill");
	check(say(0, through) == 1 && says("VM v is h2's now") && says("Say the same again"));
	check(is(0, "moved") && is(1, "suspended") && agent_vmms(&lab) == 0);
	check(resume_on(0, "") == 4 && agent_vmms(&lab) == 0);
	check(release_to("h3", "grant") != 0);
	restart(1, NULL);
	check(say(0, through) == 0 && is(1, "running") && is(0, "moved") && agent_vmms(&lab) == 1);
}

/* Its host dies, with the release in the journal and before anybody hears of it. */
static void an_answer_that_is_lost_is_given_again(void **state)
{
	restart(0, "release-journalled=kill");
	check(say(0, through) != 0 && says("goes on"));
	agent_host_kill(&lab, 0, SIGKILL);
	check(is(1, "none"));
	agent_host_start(&lab, 0, NULL);
	check(is(0, "moved"));
	check(resume_on(0, "") == 4 && release_to("h3", "grant") != 0);
	check(say(0, through) == 0 && is(1, "running") && agent_vmms(&lab) == 1);
}

static void cancelled_it_stays(void **state)
{
	char go[100], points[140];
	pid_t pid;

	check(say(0, "stop v --force") == 0);
	snprintf(go, sizeof(go), "%s/go", lab.dir);
	snprintf(points, sizeof(points), "save-state=wait:%s", go);
	restart(0, points);
	check(say(0, "start v") == 0);
	pid = agent_cli_start(&lab, 0, "%s", through);
	check(is(0, "saving"));
	check(say(0, "cancel v") == 0);
	assert_int_equal(gw_write_file_atomic(go, "", 0, 0600, NULL), 0);
	check(agent_cli_wait(pid) == 7);
	check(is(0, "running") && is(1, "none"));
}

static void by_hand(void **state)
{
	check(release_to("h2", "grant") == 4);
	check(agent_cli(&lab, 0, out, sizeof(out), "suspend v %s", to) == 0);
	check(resume_on(1, "") == 5 && says("'godwit release v h2'") && says("--grant"));
	check(release_to("h1", "none") == 1 && release_to("no/host", "none") == 1);
	check(is(0, "suspended"));
	check(release_to("h2", "grant") == 0 && is(0, "moved"));
	check(release_to("h3", "other") == 4 && release_to("h2", "again") == 0);
	/* It is good there alone. */
	check(resume_with(2, "grant") == 1 && says("for host h2, and this is h3"));
	check(resume_with(0, "grant") == 4);
	check(resume_with(1, "right") == 1 && says("holds no grant") && resume_with(1, "missing") == 1 && says("No such file"));
	check(resume_with(1, "again") == 0 && is(1, "running") && is(2, "none"));
	check(resume_with(1, "grant") == 4 && says("running here"));
}

/* A grant is good for ever, and for one time. */
static void when_the_vm_has_gone_on_a_grant_is_worth_nothing(void **state)
{
	check(agent_cli(&lab, 0, out, sizeof(out), "suspend v %s", to) == 0);
	check(release_to("h2", "grant") == 0 && resume_with(1, "grant") == 0);
	begin_with(false);
	check(is(1, "running"));
	check(agent_cli(&lab, 1, out, sizeof(out), "move v h3") == 0 && is(2, "running"));
	check(resume_with(1, "grant") == 4 && says("resumed here from this snapshot before"));
	/* Nor when nothing else at h2 remembers the VM; and h1 answers as ever. */
	check(agent_cli(&lab, 1, out, sizeof(out), "rm v") == 0 && is(1, "none"));
	check(resume_with(1, "grant") == 4 && resume_on(1, "") == 4);
	check(is(2, "running") && agent_vmms(&lab) == 1);
	/* Suspended again, where it is now, it is another snapshot. */
	check(agent_cli(&lab, 2, out, sizeof(out), "suspend v %s", to) == 0);
	check(resume_with(1, "grant") == 1 && says("given by host h1"));
	check(agent_cli(&lab, 1, out, sizeof(out), "resume v %s --on h1", from) == 0 && is(0, "running") && is(2, "moved"));
	check(agent_cli(&lab, 0, out, sizeof(out), "suspend v %s", to) == 0);
	check(resume_with(1, "grant") == 1 && says("another snapshot"));
	check(is(0, "suspended") && agent_vmms(&lab) == 0);
}

/* What moved there live was not handed over by the snapshot that it was resumed from once. */
static void a_move_is_no_release(void **state)
{
	check(agent_cli(&lab, 0, out, sizeof(out), "suspend v %s", to) == 0 && resume_on(0, "") == 0);
	begin_with(false);
	check(agent_cli(&lab, 0, out, sizeof(out), "move v h2") == 0 && is(1, "running") && is(0, "moved"));
	check(agent_cli(&lab, 1, out, sizeof(out), "stop v --force") == 0 && agent_cli(&lab, 1, out, sizeof(out), "rm v") == 0);
	check(resume_on(1, "") == 4 && says("not suspended in this snapshot on h1 any more"));
	check(release_to("h2", "grant") == 4);
	check(agent_vmms(&lab) == 0);
}

/* They need not be apart for it. */
static void hosts_that_reach_each_other_do_as_well(void **state)
{
	begin_with(false);
	check(say(0, through) == 0 && is(1, "running") && is(0, "moved"));
	check(agent_cli(&lab, 1, out, sizeof(out), "move v h1") == 0 && is(0, "running"));
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(in_one_command, begin, end),
		cmocka_unit_test_setup_teardown(nothing_is_done_where_it_could_not_go, begin, end),
		cmocka_unit_test_setup_teardown(it_comes_back_from_where_it_cannot_be, begin, end),
		cmocka_unit_test_setup_teardown(handed_over_it_is_not_lost, begin, end),
		cmocka_unit_test_setup_teardown(an_answer_that_is_lost_is_given_again, begin, end),
		cmocka_unit_test_setup_teardown(cancelled_it_stays, begin, end),
		cmocka_unit_test_setup_teardown(by_hand, begin, end),
		cmocka_unit_test_setup_teardown(when_the_vm_has_gone_on_a_grant_is_worth_nothing, begin, end),
		cmocka_unit_test_setup_teardown(a_move_is_no_release, begin, end),
		cmocka_unit_test_setup_teardown(hosts_that_reach_each_other_do_as_well, begin, end),
	};
	int status;

	if (agent_lab_role(argc, argv, &status))
		return status;
	return cmocka_run_group_tests(tests, setup, teardown);
}
