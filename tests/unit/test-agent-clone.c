// SPDX-License-Identifier: Apache-2.0
/* Two agents and clones of a VM: each is one of its own, whatever becomes of the VM that was saved, and there is no half of one. */
#include "cmocka-all.h"

#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <string.h>

#include "agent-host.h"
#include "lib/io.h"
#include "lib/util.h"
#include "migrate/repo/repo.h"
#include "repo-help.h"

static struct agent_lab lab;
static char url[100], to[300], from[300], out[8192];

#define check(cond) \
	do { \
		if (!(cond)) { \
			agent_lab_dump(&lab); \
			fail_msg("%s:%d: %s: %s", __FILE__, __LINE__, #cond, out); \
		} \
	} while (0)

static const char *const names[] = { "v", "v-1", "v-2", "v-3", "w-1", "w-2", "x-1", "x-2" };

static int setup(void **state)
{
	char path[128];

	agent_lab_init(&lab, 2);
	snprintf(url, sizeof(url), "file://%s/repo", lab.dir);
	repo_init_url(url, 600);
	snprintf(path, sizeof(path), "%s/right", lab.dir);
	assert_int_equal(gw_write_file_atomic(path, REPO_PASS "\n", sizeof(REPO_PASS), 0600, NULL), 0);
	snprintf(to, sizeof(to), "--to %s --passphrase-file %s", url, path);
	snprintf(from, sizeof(from), "--from %s --passphrase-file %s", url, path);
	return 0;
}

static int teardown(void **state)
{
	agent_lab_release(&lab);
	return 0;
}

static int begin(void **state)
{
	out[0] = '\0';
	agent_host_start(&lab, 0, NULL);
	agent_host_start(&lab, 1, NULL);
	return 0;
}

static int end(void **state)
{
	for (unsigned i = 0; i < 2; i++) {
		agent_host_kill(&lab, i, SIGKILL);
		agent_host_start(&lab, i, NULL);
		for (size_t n = 0; n < ARRAY_SIZE(names); n++) {
			agent_cli(&lab, i, NULL, 0, "stop %s --force", names[n]);
			agent_cli(&lab, i, NULL, 0, "rm %s", names[n]);
		}
		agent_host_kill(&lab, i, SIGKILL);
	}
	for (size_t n = 0; n < ARRAY_SIZE(names); n++)
		check(!agent_two_ran(&lab, names[n]));
	return 0;
}

/* A VM that runs on the first host, and a snapshot of it. */
static void snapshot(const char *more)
{
	check(agent_cli(&lab, 0, out, sizeof(out), "create %s", agent_vm_file(&lab, "v", more)) == 0);
	check(agent_cli(&lab, 0, out, sizeof(out), "start v") == 0);
	check(agent_cli(&lab, 0, out, sizeof(out), "snapshot v %s", to) == 0);
}

static int clones(const char *what)
{
	return agent_cli(&lab, 0, out, sizeof(out), "clone %s %s", what, from);
}

static bool runs(unsigned host, const char *vm)
{
	return agent_wait_state(&lab, host, vm, "running");
}

static bool there_is_none(unsigned host, const char *vm)
{
	char state[32];

	agent_vm_state(&lab, host, vm, state);
	return !strcmp(state, "none");
}

static void they_run_beside_the_vm_that_was_saved(void **state)
{
	snapshot(NULL);
	check(clones("v 3") == 0 && strstr(out, "v-1: runs on h1") && strstr(out, "v-3: runs on h1"));
	check(runs(0, "v") && runs(0, "v-1") && runs(0, "v-2") && runs(0, "v-3") && agent_vmms(&lab) == 4);
	check(clones("v 1") == 4 && strstr(out, "--name"));
	check(agent_vmms(&lab) == 4);
	check(clones("v@1 --name w --paused") == 0 && strstr(out, "w-1: paused on h1"));
	check(agent_cli(&lab, 0, out, sizeof(out), "resume w-1") == 0 && runs(0, "w-1"));
	/* They are VMs like others: one moves, one ends and starts, one is saved. */
	check(agent_cli(&lab, 0, out, sizeof(out), "move v-2 h2") == 0 && runs(1, "v-2"));
	check(agent_cli(&lab, 0, out, sizeof(out), "stop v-1 --force") == 0 && agent_cli(&lab, 0, out, sizeof(out), "start v-1") == 0);
	agent_host_kill(&lab, 0, SIGKILL);
	agent_host_start(&lab, 0, NULL);
	check(runs(0, "v") && runs(0, "v-1") && runs(0, "v-3") && runs(0, "w-1"));
}

/* Nobody is asked for the VM, and nobody loses it. */
static void the_vm_that_was_saved_stays_its_owners(void **state)
{
	check(agent_cli(&lab, 0, out, sizeof(out), "create %s", agent_vm_file(&lab, "v", NULL)) == 0);
	check(agent_cli(&lab, 0, out, sizeof(out), "start v") == 0 && agent_cli(&lab, 0, out, sizeof(out), "suspend v %s", to) == 0);
	check(clones("v 2 --on h2") == 0 && strstr(out, "v-2: runs on h2"));
	check(clones("v 2 --name w") == 0);
	check(runs(1, "v-1") && runs(1, "v-2") && runs(0, "w-1") && runs(0, "w-2"));
	check(agent_wait_state(&lab, 0, "v", "suspended") && there_is_none(1, "v"));
	agent_host_kill(&lab, 0, SIGKILL);
	/* Its host is not needed for it. */
	check(agent_cli(&lab, 1, out, sizeof(out), "clone v --name x %s", from) == 0 && runs(1, "x-1"));
	agent_host_start(&lab, 0, NULL);
	check(agent_cli(&lab, 0, out, sizeof(out), "resume v --on h2 %s", from) == 0 && runs(1, "v"));
	check(agent_wait_state(&lab, 0, "v", "moved"));
}

static void make_disk(const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", lab.dir, name);
	assert_int_equal(gw_write_file_atomic(path, name, strlen(name), 0600, NULL), 0);
}

static void disks_are_not_written_by_two(void **state)
{
	static const char *const files[] = { "base", "root", "root-1", "root-2", "one" };
	char more[400];

	for (size_t i = 0; i < ARRAY_SIZE(files); i++)
		make_disk(files[i]);
	snprintf(more, sizeof(more), "[disk base]\npath = %s/base\nreadonly = yes\n[disk root]\npath = %s/root\n", lab.dir, lab.dir);
	snapshot(more);
	check(clones("v 2") == 1 && strstr(out, "[disk root]") && strstr(out, "--disk root=PATH"));
	snprintf(more, sizeof(more), "v 2 --disk root=%s/one", lab.dir);
	check(clones(more) == 1 && strstr(out, "clones 1 and 2") && strstr(out, "{}"));
	snprintf(more, sizeof(more), "v 1 --disk root=%s/root", lab.dir);
	check(clones(more) == 1 && strstr(out, "itself"));
	snprintf(more, sizeof(more), "v 1 --disk boot=%s/one", lab.dir);
	check(clones(more) == 1 && strstr(out, "no disk 'boot'"));
	snprintf(more, sizeof(more), "v 1 --disk root=%s/one --disk root=%s/root-1", lab.dir, lab.dir);
	check(clones(more) == 1 && strstr(out, "twice"));
	snprintf(more, sizeof(more), "v 3 --disk root=%s/root-{}", lab.dir);
	check(clones(more) == 1 && strstr(out, "root-3"));
	check(agent_cli(&lab, 0, out, sizeof(out), "clone v --disk root %s", from) == 2);
	check(agent_vmms(&lab) == 1 && there_is_none(0, "v-1"));
	snprintf(more, sizeof(more), "v 2 --disk root=%s/root-{}", lab.dir);
	check(clones(more) == 0 && runs(0, "v-1") && runs(0, "v-2"));
	check(agent_cli(&lab, 0, out, sizeof(out), "show v-2 --json") == 0 && strstr(out, "/root-2\"") && strstr(out, "/base\""));
	/* Nor by a clone and whoever else there is. */
	snprintf(more, sizeof(more), "v --name w --disk root=%s/root-2", lab.dir);
	check(clones(more) == 4 && strstr(out, "VM v-2"));
	check(there_is_none(0, "w-1"));
}

/* Asked for at once, with one disk for both: not both are made. */
static void nor_by_two_that_are_made_at_once(void **state)
{
	char more[200], one[32], two[32];
	unsigned made = 0;
	pid_t a, b;

	make_disk("root");
	make_disk("one");
	snprintf(more, sizeof(more), "[disk root]\npath = %s/root\n", lab.dir);
	snapshot(more);
	for (unsigned i = 0; i < 4; i++) {
		a = agent_cli_start(&lab, 0, "clone v --name w --disk root=%s/one %s", lab.dir, from);
		b = agent_cli_start(&lab, 0, "clone v --name x --disk root=%s/one %s", lab.dir, from);
		made = (agent_cli_wait(a) == 0) + (agent_cli_wait(b) == 0);
		agent_vm_state(&lab, 0, "w-1", one);
		agent_vm_state(&lab, 0, "x-1", two);
		check(made <= 1 && made == (unsigned)(!strcmp(one, "running") + !strcmp(two, "running")));
		check(!strcmp(one, "none") || !strcmp(two, "none"));
		for (unsigned k = 0; k < 2; k++) {
			agent_cli(&lab, 0, NULL, 0, "stop %s --force", k ? "w-1" : "x-1");
			agent_cli(&lab, 0, NULL, 0, "rm %s", k ? "w-1" : "x-1");
		}
	}
}

static void what_makes_no_sense_is_refused(void **state)
{
	snapshot(NULL);
	check(clones("v 0") == 1 && clones("v 257") == 1 && strstr(out, "1 to 256") && clones("v many") == 1);
	check(clones("v 2 --name .x") == 1 && clones("nobody 2") == 1 && strstr(out, "no snapshot nobody"));
	check(agent_cli(&lab, 0, out, sizeof(out), "clone v 2") == 2 && strstr(out, "--from"));
	check(agent_cli(&lab, 0, out, sizeof(out), "clone v 2 --on nowhere %s", from) != 0);
	check(agent_vmms(&lab) == 1);
}

static void json_tells_each(void **state)
{
	const char *last;
	json_t *o, *list;

	snapshot(NULL);
	check(clones("v 2 --json") == 0 && strstr(out, "\"progress\"") && strstr(out, "\"count\":"));
	last = strstr(out, "{\"result\"");
	check(last);
	o = json_loads(last, 0, NULL);
	list = json_object_get(json_object_get(o, "result"), "clones");
	check(json_array_size(list) == 2);
	check(!strcmp(json_string_value(json_object_get(json_object_get(json_array_get(list, 1), "config"), "name")), "v-2"));
	json_decref(o);
}

/* The second one's VMM is killed on the way: the first one runs, and that is all there is. */
static void one_that_fails_leaves_nothing(void **state)
{
	char text[4096];
	size_t len = 0;
	ssize_t n;
	pid_t pid;
	int p[2];

	snapshot(NULL);
	agent_host_kill(&lab, 0, SIGKILL);
	agent_host_start(&lab, 0, "load-state=delay:700");
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	pid = agent_cli_start_to(&lab, 0, p[1], "clone v 3 %s", from);
	close(p[1]);
	while (!agent_kill_vmm(&lab, 0, "v-2"))
		usleep(5000);
	while ((n = read(p[0], text + len, sizeof(text) - 1 - len)) > 0)
		len += (size_t)n;
	text[len] = '\0';
	close(p[0]);
	check(agent_cli_wait(pid) == 1);
	if (!strstr(text, "v-1 was made, no further one") || !strstr(text, "v-1: runs"))
		fail_msg("%s", text);
	check(runs(0, "v-1") && there_is_none(0, "v-2") && there_is_none(0, "v-3") && agent_vmms(&lab) == 2);
	/* The name is free. */
	check(clones("v --name w") == 0 && runs(0, "w-1"));
}

/* Killed at each step, VMM or agent: there is a whole clone or none. */
static void killed_on_the_way(void **state)
{
	static const struct {
		const char *point;
		bool agent, both; /* it is killed, and not its VMM, or that too */
		const char *state;
	} cases[] = {
		{ "load-opened=kill", false, false, "none" },
		{ "load-state=kill", false, false, "none" },
		{ "load-owned=kill", false, false, "none" },
		{ "load-state=delay:1500", true, false, "none" },
		{ "load-state=delay:1500", true, true, "none" },
		{ "load-owned=delay:1500", true, true, "stopped" },
		{ "load-owned=delay:1500", true, false, "running" },
	};

	snapshot(NULL);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		agent_host_kill(&lab, 0, SIGKILL);
		agent_host_start(&lab, 0, cases[i].point);
		if (cases[i].agent) {
			pid_t pid = agent_cli_start(&lab, 0, "clone v 2 %s", from);

			check(agent_wait_state(&lab, 0, "v-1", "suspended"));
			usleep(700000);
			agent_host_kill(&lab, 0, SIGKILL);
			agent_cli_wait(pid);
			check(!cases[i].both || agent_kill_vmm(&lab, 0, "v-1"));
		} else {
			check(clones("v 2") == 1 && strstr(out, "no clone was made"));
		}
		agent_host_kill(&lab, 0, SIGKILL);
		agent_host_start(&lab, 0, NULL);
		check(agent_wait_state(&lab, 0, "v-1", cases[i].state));
		check(there_is_none(0, "v-2") && runs(0, "v"));
		agent_cli(&lab, 0, NULL, 0, "rm v-1");
	}
}

/* Who asked for them has gone: no further one is made. */
static void nobody_waits_for_them(void **state)
{
	pid_t pid;

	snapshot(NULL);
	agent_host_kill(&lab, 0, SIGKILL);
	agent_host_start(&lab, 0, "load-state=delay:1000");
	pid = agent_cli_start(&lab, 0, "clone v 3 %s", from);
	check(agent_wait_state(&lab, 0, "v-1", "suspended"));
	kill(pid, SIGKILL);
	agent_cli_wait(pid);
	check(runs(0, "v-1"));
	usleep(1500000);
	check(there_is_none(0, "v-2") && there_is_none(0, "v-3"));
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(they_run_beside_the_vm_that_was_saved, begin, end),
		cmocka_unit_test_setup_teardown(the_vm_that_was_saved_stays_its_owners, begin, end),
		cmocka_unit_test_setup_teardown(disks_are_not_written_by_two, begin, end),
		cmocka_unit_test_setup_teardown(nor_by_two_that_are_made_at_once, begin, end),
		cmocka_unit_test_setup_teardown(what_makes_no_sense_is_refused, begin, end),
		cmocka_unit_test_setup_teardown(json_tells_each, begin, end),
		cmocka_unit_test_setup_teardown(one_that_fails_leaves_nothing, begin, end),
		cmocka_unit_test_setup_teardown(killed_on_the_way, begin, end),
		cmocka_unit_test_setup_teardown(nobody_waits_for_them, begin, end),
	};
	int status;

	if (agent_lab_role(argc, argv, &status))
		return status;
	return cmocka_run_group_tests(tests, setup, teardown);
}
