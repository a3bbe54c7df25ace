// SPDX-License-Identifier: Apache-2.0
/* The host's memory policy, with an agent in this process and figures of the host that the test makes up. */
#include "cmocka-all.h"

#include <errno.h>
#include <ftw.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "agent-host.h"
#include "agent/agent.h"
#include "agent/guest.h"
#include "agent/run.h"
#include "agent/vmconfig.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/util.h"

static struct gw_conf conf;
static struct gw_agent agent;
static char dir[32], meminfo[64], kernel[64];
static uint64_t seen; /* number of the first event that was not looked at */

static void host_has(unsigned total_mib, unsigned available_mib)
{
	char text[200];

	snprintf(text, sizeof(text), "MemTotal:       %u kB\nMemFree:        1 kB\nMemAvailable:   %u kB\n", total_mib << 10, available_mib << 10);
	assert_int_equal(gw_write_file_atomic(meminfo, text, strlen(text), 0600, NULL), 0);
}

/* An agent whose VMs' guests have `spare` MiB to spare. */
static void begin(const char *settings, const char *spare)
{
	char self[512], text[2048];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	struct gw_error err = GW_ERROR_INIT;

	assert_true(n > 0);
	snprintf(dir, sizeof(dir), "/tmp/gwt-XXXXXX");
	assert_non_null(mkdtemp(dir));
	snprintf(meminfo, sizeof(meminfo), "%s/meminfo", dir);
	snprintf(kernel, sizeof(kernel), "%s/kernel", dir);
	assert_int_equal(gw_write_file_atomic(kernel, "none", 4, 0600, NULL), 0);
	setenv("GW_TEST_DIR", dir, 1);
	setenv("GW_TEST_SPARE", spare, 1);
	snprintf(text, sizeof(text), "[agent]\nname = h1\nstate = %s/state\nrun = %s/run\nvmm = %.*s\n[share]\nenable = no\n[memory]\n%s", dir, dir, (int)n,
		 self, settings);
	if (gw_conf_parse("conf", text, strlen(text), &conf, &err) < 0 || gw_agent_init(&agent, &conf, &err) < 0)
		fail_msg("%s", err.msg);
	agent.memory.meminfo = meminfo;
	seen = 1;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static void finish(void)
{
	struct gw_guest **list;
	unsigned n;

	assert_int_equal(gw_guest_list(&agent, &list, &n), 0);
	for (unsigned i = 0; i < n; i++) {
		(void)gw_run_stop(list[i], true, 1000, NULL);
		gw_guest_unref(list[i]);
	}
	free(list);
	assert_int_equal(gw_agent_stop(&agent, 10000), 0);
	gw_agent_release(&agent);
	gw_conf_release(&conf);
	nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static int start(const char *name, const char *memory, struct gw_error *err)
{
	Godwit__VmConfig *c = NULL;
	gw_autoguest *g = NULL;
	char text[300];
	int r;

	snprintf(text, sizeof(text), "[vm]\nname = %s\nmemory = %s\nkernel = %s\n", name, memory, kernel);
	assert_int_equal(gw_vmconfig_parse("f", text, strlen(text), &c, err), 0);
	r = gw_run_create(&agent, c, err);
	gw_vmconfig_free(c);
	assert_true(r == 0 || r == -EEXIST);
	g = gw_guest_find(&agent, name);
	return gw_run_start(g, err);
}

/* How often an event of this kind came since the last call for any; the last one's message to `message`. */
static unsigned events(const char *kind, char message[GW_ERROR_MAX])
{
	Godwit__AgentEvent *ev;
	unsigned n = 0;

	message[0] = '\0';
	while (gw_events_next(agent.events, seen, 0, &ev) == 0) {
		seen = ev->seq + 1;
		if (!strcmp(ev->kind, kind)) {
			n++;
			snprintf(message, GW_ERROR_MAX, "%s", ev->message);
		}
		godwit__agent_event__free_unpacked(ev, NULL);
	}
	return n;
}

static uint64_t target(const char *name)
{
	gw_autoguest *g = gw_guest_find(&agent, name);
	Godwit__BalloonStatus *b = NULL;
	uint64_t v;

	assert_int_equal(gw_run_balloon(g, 0, &b, NULL), 0);
	v = b->target >> 20;
	godwit__balloon_status__free_unpacked(b, NULL);
	return v;
}

/* Of 1000 MiB, 50 are in reserve; a VMM takes 32. */
static void test_available(void **state)
{
	struct gw_error err = GW_ERROR_INIT;

	begin("reserve = 5%\n", "0");
	host_has(1000, 281);
	assert_int_equal(start("v1", "200M", &err), -ENOMEM);
	assert_string_equal(err.msg, "the VM needs 200 MiB and host h1 has 281 of 1000 MiB available, 0 of them promised to VMs and 50 in reserve");
	host_has(1000, 283);
	assert_int_equal(start("v1", "200M", &err), 0);
	/* Of which it has taken 8; the rest counts although it is still available. */
	host_has(1000, 400);
	assert_int_equal(start("v2", "200M", &err), -ENOMEM);
	assert_non_null(strstr(err.msg, "192 of them promised"));
	host_has(1000, 500);
	assert_int_equal(start("v2", "200M", &err), 0);
	finish();
}

static void test_overcommit(void **state)
{
	struct gw_error err = GW_ERROR_INIT;

	begin("reserve = 50M\novercommit = 1.5\n", "0");
	host_has(1000, 900);
	assert_int_equal(start("v1", "800M", &err), 0);
	host_has(1000, 890);
	assert_int_equal(start("v2", "701M", &err), -ENOMEM);
	assert_string_equal(err.msg, "the VM needs 701 MiB; host h1 has 1000 MiB, VMs have 800 of the 1500 MiB that overcommit = 1.50 allows");
	/* Two thirds of 792 and 400 MiB are expected to be used. */
	assert_int_equal(start("v3", "400M", &err), 0);
	finish();

	begin("reserve = 0%\novercommit = 0.5\n", "0");
	host_has(1000, 1000);
	assert_int_equal(start("v1", "501M", &err), -ENOMEM);
	assert_int_equal(start("v2", "500M", &err), 0);
	finish();
}

static void test_low_and_ok(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	char message[GW_ERROR_MAX];

	begin("reserve = 100M\n", "0");
	host_has(1000, 900);
	assert_int_equal(start("v1", "64M", &err), 0);
	gw_memory_look(&agent);
	assert_int_equal(events("memory-low", message), 0);
	host_has(1000, 99);
	gw_memory_look(&agent);
	gw_memory_look(&agent);
	assert_int_equal(events("memory-low", message), 1);
	assert_string_equal(message, "99 MiB are available, below the reserve of 100 MiB; the largest VMs: v1 (8 MiB); 'godwit move v1 HOST' would make room");
	assert_int_equal(start("v2", "64M", &err), -ENOMEM);
	assert_string_equal(err.msg, "host h1 is short of memory: 99 MiB are available, and 100 MiB are held in reserve");
	/* Not over until half the reserve more is there. */
	host_has(1000, 149);
	gw_memory_look(&agent);
	assert_int_equal(events("memory-ok", message), 0);
	host_has(1000, 99);
	gw_memory_look(&agent);
	assert_int_equal(events("memory-low", message), 0);
	host_has(1000, 150);
	gw_memory_look(&agent);
	assert_int_equal(events("memory-ok", message), 1);
	host_has(1000, 149);
	gw_memory_look(&agent);
	assert_int_equal(events("memory-low", message), 0);
	finish();
}

static void test_balloons(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	char message[GW_ERROR_MAX];

	begin("reserve = 100M\n", "60");
	host_has(4000, 3900);
	assert_int_equal(start("v1", "256M", &err), 0);
	assert_int_equal(start("v2", "256M", &err), 0);
	assert_int_equal(start("v3", "256M", &err), 0);
	/* 64 MiB are missing to the end of it: 30 of the first and of the second, half of what they can spare, 16 of the third. */
	host_has(4000, 86);
	gw_memory_look(&agent);
	assert_int_equal(events("memory-balloon", message), 3);
	assert_int_equal(target("v1"), 226);
	assert_int_equal(target("v2"), 226);
	assert_int_equal(target("v3"), 240);
	/* Not at once again. */
	gw_memory_look(&agent);
	assert_int_equal(target("v1"), 226);
	agent.memory.next_squeeze_ns = 0;
	for (int i = 0; i < 20; i++) {
		gw_memory_look(&agent);
		agent.memory.next_squeeze_ns = 0;
	}
	/* Half of its memory stays with each. */
	assert_in_range(target("v1"), 128, 144);
	assert_in_range(target("v2"), 128, 144);
	/* The operator has the last word: this one is not given back. */
	{
		gw_autoguest *g = gw_guest_find(&agent, "v2");
		Godwit__BalloonStatus *b = NULL;

		assert_int_equal(gw_run_balloon(g, 200ull << 20, &b, NULL), 0);
		godwit__balloon_status__free_unpacked(b, NULL);
	}
	/* As far as it does not bring the shortage back. */
	host_has(4000, 160);
	gw_memory_look(&agent);
	assert_false(agent.memory.low);
	assert_in_range(target("v1"), 128, 144);
	host_has(4000, 3000);
	gw_memory_look(&agent);
	assert_int_equal(target("v1"), 256);
	assert_int_equal(target("v2"), 200);
	assert_int_equal(target("v3"), 256);
	finish();
}

static void test_no_memory_to_spare(void **state)
{
	struct gw_error err = GW_ERROR_INIT;

	begin("reserve = 100M\n", "20");
	host_has(4000, 3900);
	assert_int_equal(start("v1", "256M", &err), 0);
	host_has(4000, 10);
	gw_memory_look(&agent);
	assert_int_equal(target("v1"), 256);
	finish();
}

/* A host that is short of memory refuses a VM that comes, and says why; it stays where it is. */
static void test_move_refused(void **state)
{
	struct agent_lab lab;
	char out[4096], now[32];

	unsetenv("GW_TEST_SPARE");
	agent_lab_init(&lab, 2);
	agent_host_conf(&lab, 1, "[share]\nenable = no\n[memory]\nreserve = 100T\n");
	agent_host_start(&lab, 0, NULL);
	agent_host_start(&lab, 1, NULL);
	assert_int_equal(agent_cli(&lab, 0, NULL, 0, "create %s", agent_vm_file(&lab, "v1", NULL)), 0);
	assert_int_equal(agent_cli(&lab, 0, NULL, 0, "start v1"), 0);
	assert_int_equal(agent_cli(&lab, 0, out, sizeof(out), "move v1 h2"), 1);
	assert_non_null(strstr(out, "host h2 is short of memory"));
	assert_non_null(strstr(out, "104857600 MiB are held in reserve"));
	agent_vm_state(&lab, 0, "v1", now);
	assert_string_equal(now, "running");
	agent_lab_release(&lab);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_available),  cmocka_unit_test(test_overcommit),
		cmocka_unit_test(test_low_and_ok), cmocka_unit_test(test_balloons),
		cmocka_unit_test(test_no_memory_to_spare), cmocka_unit_test(test_move_refused),
	};
	int status;

	if (agent_lab_role(argc, argv, &status))
		return status;
	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
