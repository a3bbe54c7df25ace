// SPDX-License-Identifier: Apache-2.0
/* Two agents and the life of a VM on them: start, stop, move, cancel, restart of the agent. */
#include "cmocka-all.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>

#include "agent-host.h"
#include "agent/pki.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/util.h"

static struct agent_lab lab;

#define check(cond) \
	do { \
		if (!(cond)) { \
			agent_lab_dump(&lab); \
			fail_msg("%s:%d: %s", __FILE__, __LINE__, #cond); \
		} \
	} while (0)

static int setup(void **state)
{
	agent_lab_init(&lab, 2);
	agent_host_start(&lab, 0, NULL);
	agent_host_start(&lab, 1, NULL);
	return 0;
}

static int teardown(void **state)
{
	agent_lab_release(&lab);
	return 0;
}

static void start_vm(const char *name, const char *more)
{
	char out[1024];

	if (agent_cli(&lab, 0, out, sizeof(out), "create %s", agent_vm_file(&lab, name, more)) != 0 ||
	    agent_cli(&lab, 0, out, sizeof(out), "start %s", name) != 0) {
		agent_lab_dump(&lab);
		fail_msg("%s", out);
	}
}

static void test_life(void **state)
{
	char out[2048];

	start_vm("v1", NULL);
	check(agent_wait_state(&lab, 0, "v1", "running"));
	check(agent_cli(&lab, 0, NULL, 0, "start v1") == 4);
	check(agent_cli(&lab, 0, NULL, 0, "create %s", agent_vm_file(&lab, "v1", NULL)) == 4);
	check(agent_cli(&lab, 0, NULL, 0, "pause v1") == 0);
	check(agent_wait_state(&lab, 0, "v1", "paused"));
	check(agent_cli(&lab, 0, NULL, 0, "pause v1") == 4);
	check(agent_cli(&lab, 0, NULL, 0, "stop v1") == 4);
	check(agent_cli(&lab, 0, NULL, 0, "resume v1") == 0);
	check(agent_cli(&lab, 0, NULL, 0, "rm v1") == 4);
	check(agent_cli(&lab, 0, NULL, 0, "stop v1") == 0);
	check(agent_wait_state(&lab, 0, "v1", "stopped"));
	check(agent_vmms(&lab) == 0);
	check(agent_cli(&lab, 0, NULL, 0, "stop v1") == 4);
	check(agent_cli(&lab, 0, NULL, 0, "start v1") == 0);
	check(agent_cli(&lab, 0, NULL, 0, "stop v1 --force") == 0);
	check(agent_cli(&lab, 0, NULL, 0, "rm v1") == 0);
	check(agent_cli(&lab, 0, NULL, 0, "show v1") == 3);
	check(agent_cli(&lab, 0, NULL, 0, "start v1") == 3);
	check(agent_cli(&lab, 0, out, sizeof(out), "events --no-follow --last 100") == 0);
	check(strstr(out, "vm-running") && strstr(out, "vm-paused") && strstr(out, "vm-removed"));
}

static void test_start_fails(void **state)
{
	char out[1024], more[200];

	snprintf(more, sizeof(more), "[disk d]\npath = %s/nothing\n", lab.dir);
	check(agent_cli(&lab, 0, NULL, 0, "create %s", agent_vm_file(&lab, "v2", more)) == 0);
	check(agent_cli(&lab, 0, out, sizeof(out), "start v2") == 1);
	check(strstr(out, "/nothing") && strstr(out, "No such file"));
	check(agent_cli(&lab, 0, NULL, 0, "rm v2") == 0);
	/* The VMM's own last words reach the user. */
	snprintf(more, sizeof(more), "cp %s/kernel %s/bad", lab.dir, lab.dir);
	assert_int_equal(system(more), 0);
	snprintf(more, sizeof(more), "%s/v2.vm", lab.dir);
	agent_vm_file(&lab, "v2", NULL);
	snprintf(out, sizeof(out), "sed -i 's|/kernel|/bad|' %s", more);
	assert_int_equal(system(out), 0);
	check(agent_cli(&lab, 0, NULL, 0, "create %s", more) == 0);
	check(agent_cli(&lab, 0, out, sizeof(out), "start v2") == 1);
	check(strstr(out, "/bad is not a kernel"));
	check(agent_wait_state(&lab, 0, "v2", "stopped"));
	check(agent_cli(&lab, 0, NULL, 0, "rm v2") == 0);
}

static void test_crash(void **state)
{
	start_vm("v3", NULL);
	check(agent_kill_vmm(&lab, 0, "v3"));
	check(agent_wait_state(&lab, 0, "v3", "crashed"));
	check(agent_cli(&lab, 0, NULL, 0, "start v3") == 0);
	check(agent_cli(&lab, 0, NULL, 0, "stop v3 --force") == 0);
	check(agent_cli(&lab, 0, NULL, 0, "rm v3") == 0);
}

static void test_move(void **state)
{
	static char out[1 << 20];

	start_vm("v4", NULL);
	check(agent_cli(&lab, 0, out, sizeof(out), "move v4 nowhere") == 1 || strstr(out, "nowhere"));
	check(agent_wait_state(&lab, 0, "v4", "running"));
	if (agent_cli(&lab, 0, out, sizeof(out), "move v4 h2 --verify-digest") != 0) {
		agent_lab_dump(&lab);
		fail_msg("%s", out);
	}
	check(strstr(out, "moved to h2"));
	check(strstr(out, "TLS"));
	check(agent_wait_state(&lab, 0, "v4", "moved"));
	check(agent_wait_state(&lab, 1, "v4", "running"));
	check(agent_vmms(&lab) == 1);
	check(agent_cli(&lab, 0, out, sizeof(out), "start v4") == 4 && strstr(out, "moved to h2"));
	check(agent_cli(&lab, 0, out, sizeof(out), "move v4 h2") == 4);
	check(agent_cli(&lab, 1, out, sizeof(out), "move v4 h1 --json") == 0);
	check(strstr(out, "\"moved\":true"));
	check(agent_wait_state(&lab, 0, "v4", "running"));
	check(agent_wait_state(&lab, 1, "v4", "moved"));
	/* Paused it moves as well, and stays so. */
	check(agent_cli(&lab, 0, NULL, 0, "pause v4") == 0);
	check(agent_cli(&lab, 0, out, sizeof(out), "move v4 h2") == 0);
	check(agent_wait_state(&lab, 1, "v4", "paused"));
	check(agent_cli(&lab, 1, NULL, 0, "resume v4") == 0);
	check(!agent_two_ran(&lab, "v4"));
	check(agent_cli(&lab, 1, NULL, 0, "stop v4 --force") == 0);
	/* Started where it is now. */
	check(agent_cli(&lab, 1, NULL, 0, "start v4") == 0);
	check(agent_cli(&lab, 1, NULL, 0, "stop v4 --force") == 0);
	check(agent_cli(&lab, 1, NULL, 0, "rm v4") == 0);
	check(agent_cli(&lab, 0, NULL, 0, "rm v4") == 0);
}

static void test_move_refused(void **state)
{
	char out[2048];

	start_vm("v5", NULL);
	check(agent_cli(&lab, 1, NULL, 0, "create %s", agent_vm_file(&lab, "v5", NULL)) == 0);
	check(agent_cli(&lab, 0, out, sizeof(out), "move v5 h2") == 4);
	check(strstr(out, "h2 refuses") && strstr(out, "exists here already"));
	check(agent_wait_state(&lab, 0, "v5", "running"));
	check(agent_cli(&lab, 1, NULL, 0, "rm v5") == 0);
	check(agent_cli(&lab, 0, out, sizeof(out), "move v5 h1") == 4);
	agent_host_kill(&lab, 1, SIGTERM);
	check(agent_cli(&lab, 0, out, sizeof(out), "move v5 h2") != 0);
	check(agent_wait_state(&lab, 0, "v5", "running"));
	agent_host_start(&lab, 1, NULL);
	check(agent_cli(&lab, 0, out, sizeof(out), "move v5 h2") == 0);
	check(agent_cli(&lab, 1, NULL, 0, "stop v5 --force") == 0);
	check(agent_cli(&lab, 1, NULL, 0, "rm v5") == 0);
	check(agent_cli(&lab, 0, NULL, 0, "rm v5") == 0);
}

static void test_balloon(void **state)
{
	char out[4096];

	start_vm("v1", NULL);
	/* What the guest tells is waited for. */
	check(agent_cli(&lab, 0, out, sizeof(out), "balloon v1") == 0);
	check(strstr(out, "actual     8.0 MiB") && strstr(out, "free       4.0 MiB") && strstr(out, "0.0 s ago"));
	check(agent_cli(&lab, 0, out, sizeof(out), "balloon v1 --target 6M --json") == 0);
	check(strstr(out, "\"target\": 6291456") && strstr(out, "\"free\": 4194304"));
	check(agent_cli(&lab, 0, out, sizeof(out), "show v1") == 0);
	check(strstr(out, "balloon    2.0 MiB"));
	check(agent_cli(&lab, 0, NULL, 0, "balloon v1 --target 0") == 2);
	check(agent_cli(&lab, 0, NULL, 0, "balloon v1 --target much") == 2);
	check(agent_cli(&lab, 0, NULL, 0, "balloon v2") == 3);
	check(agent_cli(&lab, 0, NULL, 0, "move v1 h2") == 0);
	check(agent_wait_state(&lab, 1, "v1", "running"));
	check(agent_cli(&lab, 0, NULL, 0, "balloon v1") == 4);
	check(agent_cli(&lab, 1, NULL, 0, "balloon v1") == 0);
	check(agent_cli(&lab, 1, NULL, 0, "stop v1") == 0);
	/* None by the VM file. */
	start_vm("v2", "balloon = no\n");
	check(agent_cli(&lab, 0, out, sizeof(out), "balloon v2") == 1 && strstr(out, "no balloon"));
	check(agent_cli(&lab, 0, NULL, 0, "move v2 h2") == 0);
	check(agent_cli(&lab, 1, NULL, 0, "balloon v2") == 1);
	check(agent_cli(&lab, 1, NULL, 0, "stop v2") == 0);
}

/* A VM that began on a host whose VMM has no balloon, and says nothing of that. */
static void test_older_source(void **state)
{
	char out[1024];

	agent_host_kill(&lab, 0, SIGTERM);
	setenv("GW_TEST_OLD", "1", 1);
	agent_host_start(&lab, 0, NULL);
	unsetenv("GW_TEST_OLD");
	start_vm("v1", NULL);
	check(agent_cli(&lab, 0, out, sizeof(out), "move v1 h2") == 0);
	check(agent_wait_state(&lab, 1, "v1", "running"));
	check(agent_cli(&lab, 1, NULL, 0, "balloon v1") == 1);
	check(agent_cli(&lab, 1, NULL, 0, "stop v1") == 0);
	/* What runs with one does not fit there. */
	check(agent_cli(&lab, 1, NULL, 0, "create %s", agent_vm_file(&lab, "v2", NULL)) == 0);
	check(agent_cli(&lab, 1, NULL, 0, "start v2") == 0);
	check(agent_cli(&lab, 1, out, sizeof(out), "move v2 h1") == 1 && strstr(out, "devices"));
	check(agent_wait_state(&lab, 1, "v2", "running"));
	check(agent_cli(&lab, 1, NULL, 0, "stop v2") == 0);
}

static void test_cancel(void **state)
{
	pid_t move;
	int rc = 4;

	start_vm("v6", NULL);
	check(agent_cli(&lab, 0, NULL, 0, "cancel v6") == 4);
	/* Slow enough to be caught in the copy. */
	move = agent_cli_start(&lab, 0, "move v6 h2 --bandwidth 128K");
	check(agent_wait_state(&lab, 0, "v6", "moving"));
	for (int i = 0; i < 6000 && rc == 4; i++)
		rc = agent_cli(&lab, 0, NULL, 0, "cancel v6");
	check(rc == 0);
	check(agent_cli_wait(move) == 7);
	check(agent_wait_state(&lab, 0, "v6", "running"));
	check(agent_wait_state(&lab, 1, "v6", "none"));
	check(agent_vmms(&lab) == 1);
	/* Ctrl-C says the same. */
	move = agent_cli_start(&lab, 0, "move v6 h2 --bandwidth 128K");
	check(agent_wait_state(&lab, 1, "v6", "incoming"));
	kill(move, SIGINT);
	check(agent_cli_wait(move) == 7);
	check(agent_wait_state(&lab, 1, "v6", "none"));
	/* The operator of the destination may refuse it too. */
	move = agent_cli_start(&lab, 0, "move v6 h2 --bandwidth 128K");
	check(agent_wait_state(&lab, 1, "v6", "incoming"));
	rc = 4;
	for (int i = 0; i < 6000 && rc == 4; i++)
		rc = agent_cli(&lab, 1, NULL, 0, "cancel v6");
	check(rc == 0);
	check(agent_cli_wait(move) == 1);
	check(agent_wait_state(&lab, 0, "v6", "running"));
	check(agent_cli(&lab, 0, NULL, 0, "stop v6 --force") == 0);
	check(agent_cli(&lab, 0, NULL, 0, "rm v6") == 0);
}

static void test_agent_restart(void **state)
{
	start_vm("v7", NULL);
	agent_host_kill(&lab, 0, SIGKILL);
	check(agent_vmms(&lab) == 1);
	agent_host_start(&lab, 0, NULL);
	check(agent_wait_state(&lab, 0, "v7", "running"));
	check(agent_cli(&lab, 0, NULL, 0, "start v7") == 4);
	check(agent_vmms(&lab) == 1);
	/* Adopted, it can do all that it could before. */
	check(agent_cli(&lab, 0, NULL, 0, "move v7 h2") == 0);
	agent_host_kill(&lab, 1, SIGTERM);
	check(agent_vmms(&lab) == 1);
	check(agent_kill_vmm(&lab, 1, "v7"));
	agent_host_start(&lab, 1, NULL);
	check(agent_wait_state(&lab, 1, "v7", "stopped"));
	check(agent_cli(&lab, 1, NULL, 0, "start v7") == 0);
	check(agent_cli(&lab, 1, NULL, 0, "stop v7") == 0);
	check(agent_cli(&lab, 1, NULL, 0, "rm v7") == 0);
	check(agent_cli(&lab, 0, NULL, 0, "rm v7") == 0);
}

/* Types a line at `godwit console v8` and waits for it to come back (the fake console is an echo). */
static bool echoes(char **argv)
{
	char got[64] = "";
	int in[2], out[2];
	size_t used = 0;
	pid_t pid;

	assert_int_equal(pipe2(in, O_CLOEXEC), 0);
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	pid = fork();
	if (pid == 0) {
		dup2(in[0], 0);
		dup2(out[1], 1);
		execv("/proc/self/exe", argv);
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	assert_int_equal(gw_write_full(in[1], "hello\n", 6, GW_NO_DEADLINE), 0);
	while (used < sizeof(got) - 1 && !strstr(got, "hello\n") && gw_wait_fd(out[0], POLLIN, gw_now_ns() + TEST_PATIENCE) == 0) {
		ssize_t n = read(out[0], got + used, sizeof(got) - 1 - used);

		if (n <= 0)
			break;
		used += (size_t)n;
		got[used] = '\0';
	}
	kill(pid, SIGKILL);
	agent_cli_wait(pid);
	close(in[1]);
	close(out[0]);
	return strstr(got, "hello\n") != NULL;
}

/* The serial console, here and from afar. */
static void test_console(void **state)
{
	struct gw_pki_request ann = { .name = "ann", .role = GW_ROLE_CLIENT, .days = 5 };
	char pki[80], ca[100], cert[100], key[100], host[64];
	char *local[] = { (char *)"godwit", (char *)"--socket", lab.h[0].socket, (char *)"console", (char *)"v8", NULL };
	char *remote[] = { (char *)"godwit", (char *)"--host", host, (char *)"--ca", ca, (char *)"--cert", cert,
			   (char *)"--key", key, (char *)"console", (char *)"v8", NULL };

	snprintf(pki, sizeof(pki), "%s/pki", lab.dir);
	assert_int_equal(gw_pki_issue(pki, pki, &ann, NULL), 0);
	snprintf(ca, sizeof(ca), "%s/ca.crt", pki);
	snprintf(cert, sizeof(cert), "%s/ann.crt", pki);
	snprintf(key, sizeof(key), "%s/ann.key", pki);
	snprintf(host, sizeof(host), "h1@127.0.0.1:%u", lab.h[0].port);
	start_vm("v8", NULL);
	check(echoes(local));
	check(echoes(remote));
	check(agent_cli(&lab, 0, NULL, 0, "stop v8 --force") == 0);
	check(agent_cli(&lab, 0, NULL, 0, "console v8") == 4);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_life, setup, teardown),
		cmocka_unit_test_setup_teardown(test_start_fails, setup, teardown),
		cmocka_unit_test_setup_teardown(test_crash, setup, teardown),
		cmocka_unit_test_setup_teardown(test_move, setup, teardown),
		cmocka_unit_test_setup_teardown(test_move_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(test_balloon, setup, teardown),
		cmocka_unit_test_setup_teardown(test_older_source, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cancel, setup, teardown),
		cmocka_unit_test_setup_teardown(test_agent_restart, setup, teardown),
		cmocka_unit_test_setup_teardown(test_console, setup, teardown),
	};
	int status;

	if (agent_lab_role(argc, argv, &status))
		return status;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
