// SPDX-License-Identifier: Apache-2.0
/* Sharing of memory by the agent: who is attached to the page store, when, with which key, and what is told of it. */
#include "cmocka-all.h"

#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>

#include "agent-host.h"
#include "agent/keyfile.h"
#include "agent/share.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/util.h"
#include "repo-help.h"

static struct agent_lab lab;

#define check(cond) \
	do { \
		if (!(cond)) { \
			agent_lab_dump(&lab); \
			fail_msg("%s:%d: %s", __FILE__, __LINE__, #cond); \
		} \
	} while (0)

/* Sharing by the test's own daemon; the host's limits are left alone. */
static void conf(unsigned host, const char *more)
{
	char self[512], text[1024];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	assert_true(n > 0);
	snprintf(text, sizeof(text), "[share]\nmax-map-count = 0\ndaemon = %.*s\n%s\n[memory]\nreserve = 0%%\n", (int)n, self, more);
	agent_host_conf(&lab, host, text);
}

static int setup(void **state)
{
	agent_lab_init(&lab, 2);
	for (unsigned i = 0; i < 2; i++) {
		conf(i, "");
		agent_host_start(&lab, i, NULL);
	}
	return 0;
}

static int teardown(void **state)
{
	agent_lab_release(&lab);
	return 0;
}

static void start_vm(const char *name, const char *more)
{
	check(agent_cli(&lab, 0, NULL, 0, "create %s", agent_vm_file(&lab, name, more)) == 0);
	check(agent_cli(&lab, 0, NULL, 0, "start %s", name) == 0);
}

/* One line of GW_TEST_DIR/attached. */
struct attached {
	pid_t daemon;
	char vm[64], domain[64], key[65];
};

/* Waits until there are `n` and returns the last of them. */
static struct attached wait_attached(unsigned n)
{
	uint64_t deadline = gw_now_ns() + TEST_PATIENCE;
	struct attached last = { 0 };
	char path[128];
	unsigned have;

	snprintf(path, sizeof(path), "%s/attached", lab.dir);
	do {
		gw_autofile *f = fopen(path, "re");

		have = 0;
		while (f && have < n && fscanf(f, "%d %63s %63s %64s\n", &last.daemon, last.vm, last.domain, last.key) == 4)
			have++;
		if (have < n)
			usleep(20000);
	} while (have < n && gw_now_ns() < deadline);
	if (have < n) {
		agent_lab_dump(&lab);
		fail_msg("%u of %u attached", have, n);
	}
	return last;
}

static unsigned count_attached(void)
{
	gw_autofree char *text = NULL;
	char path[128];
	unsigned lines = 0;
	size_t len;

	snprintf(path, sizeof(path), "%s/attached", lab.dir);
	if (gw_read_file(path, 65536, &text, &len, NULL) < 0)
		return 0;
	for (size_t i = 0; i < len; i++)
		lines += text[i] == '\n';
	return lines;
}

static json_t *share_json(unsigned host, const char *options)
{
	gw_autofree char *out = calloc(1, 65536);
	json_t *o = NULL;

	if (agent_cli(&lab, host, out, 65536, "share --json %s", options) == 0)
		o = json_loads(out, 0, NULL);
	check(o);
	return o;
}

static json_t *entry(json_t *o, const char *list, const char *label, const char *name)
{
	json_t *array = json_object_get(o, list);

	for (size_t i = 0; i < json_array_size(array); i++) {
		json_t *e = json_array_get(array, i);

		if (!strcmp(json_string_value(json_object_get(e, label)) ?: "", name))
			return e;
	}
	return NULL;
}

static bool is_attached(const char *vm)
{
	json_t *o = share_json(0, "");
	bool is = json_is_true(json_object_get(entry(o, "vms", "vm", vm), "attached"));

	json_decref(o);
	return is;
}

static void wait_told(const char *vm)
{
	for (int i = 0; i < 3000 && !is_attached(vm); i++)
		usleep(20000);
	check(is_attached(vm));
}

static unsigned events(unsigned host, const char *kind)
{
	gw_autofree char *out = calloc(1, 65536);
	unsigned n = 0;

	check(agent_cli(&lab, host, out, 65536, "events --no-follow --last 200") == 0);
	for (char *p = out; (p = strstr(p, kind)); p++)
		n++;
	return n;
}

static void touch(const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", lab.dir, name);
	assert_int_equal(gw_write_file_atomic(path, "", 0, 0600, NULL), 0);
}

static void test_attach(void **state)
{
	struct attached a, b, c;

	/* None is needed before a VM runs. */
	check(events(0, "share-daemon") == 0);
	start_vm("v1", NULL);
	a = wait_attached(1);
	assert_string_equal(a.vm, "v1");
	assert_string_equal(a.domain, "default");
	start_vm("v2", "share = image\n");
	b = wait_attached(2);
	assert_string_equal(b.domain, "default");
	assert_string_equal(b.key, a.key);
	start_vm("v3", "tenant = other\n");
	c = wait_attached(3);
	assert_string_equal(c.domain, "other");
	assert_string_not_equal(c.key, a.key);
	check(a.daemon == b.daemon && b.daemon == c.daemon);
	start_vm("v4", "share = off\n");
	usleep(2500000);
	check(count_attached() == 3);
	/* Stopped and started, it is attached again. */
	check(agent_cli(&lab, 0, NULL, 0, "stop v1") == 0);
	check(agent_cli(&lab, 0, NULL, 0, "start v1") == 0);
	check(!strcmp(wait_attached(4).vm, "v1"));
}

static void test_restarts(void **state)
{
	struct attached a, b;
	struct stat st;
	char path[160];

	start_vm("v1", NULL);
	a = wait_attached(1);
	wait_told("v1");
	kill(a.daemon, SIGKILL);
	b = wait_attached(2);
	check(b.daemon != a.daemon && !strcmp(b.vm, "v1") && !strcmp(b.key, a.key));
	wait_told("v1");
	check(events(0, "killed by signal 9") == 1);

	/* The agent dies, and its daemon with it; the next one attaches the VM that it adopts, with the same key. */
	agent_host_kill(&lab, 0, SIGKILL);
	for (int i = 0; i < 3000 && kill(b.daemon, 0) == 0; i++)
		usleep(10000);
	agent_host_start(&lab, 0, NULL);
	a = wait_attached(3);
	check(a.daemon != b.daemon && !strcmp(b.key, a.key));
	snprintf(path, sizeof(path), "%s/share/default", lab.h[0].state);
	check(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600 && st.st_size == 32);

	/* It ends with the agent. */
	agent_host_kill(&lab, 0, SIGTERM);
	check(kill(a.daemon, 0) < 0);
	check(agent_vmms(&lab) == 1);
}

/* One that hangs is killed, and another one started. */
static void test_hang(void **state)
{
	struct attached a;
	char path[128];

	start_vm("v1", NULL);
	a = wait_attached(1);
	touch("ksmd-hangs");
	check(agent_cli(&lab, 0, NULL, 0, "share") == 0);
	snprintf(path, sizeof(path), "%s/ksmd-hangs", lab.dir);
	unlink(path);
	check(wait_attached(2).daemon != a.daemon);
	check(events(0, "did not answer") == 1);
}

static void test_move(void **state)
{
	char out[4096];

	start_vm("v1", "share = image\ntenant = t1\n");
	wait_attached(1);
	check(agent_cli(&lab, 0, NULL, 0, "move v1 h2") == 0);
	check(!strcmp(wait_attached(2).domain, "t1"));
	check(agent_cli(&lab, 1, out, sizeof(out), "show v1") == 0);
	check(strstr(out, "tenant     t1\nshare      image\n"));
	check(agent_cli(&lab, 1, out, sizeof(out), "show v1 --json") == 0);
	check(strstr(out, "\"share\": \"image\""));
}

/* Told once, and the VM runs on. */
static void test_refusal(void **state)
{
	char path[128], out[4096];

	touch("NO-USERFAULTFD");
	start_vm("v1", NULL);
	wait_attached(2);
	check(events(0, "share-refused") == 1);
	check(agent_wait_state(&lab, 0, "v1", "running"));
	check(agent_cli(&lab, 0, out, sizeof(out), "share --vm v1") == 0);
	check(strstr(out, "no userfaultfd for kernel faults"));
	/* Asked again now and then. */
	snprintf(path, sizeof(path), "%s/NO-USERFAULTFD", lab.dir);
	unlink(path);
	wait_told("v1");
	check(events(0, "share-refused") == 1);
}

static void test_no_daemon(void **state)
{
	char out[4096];

	agent_host_kill(&lab, 0, SIGTERM);
	agent_host_conf(&lab, 0, "[share]\nmax-map-count = 0\ndaemon = /nowhere/godwit-ksmd\n[memory]\nreserve = 0%\n");
	agent_host_start(&lab, 0, NULL);
	start_vm("v1", NULL);
	for (int i = 0; i < 3000 && !events(0, "share-daemon"); i++)
		usleep(10000);
	usleep(3000000);
	check(events(0, "share-daemon") == 1);
	check(events(0, "share-refused") == 0);
	check(agent_cli(&lab, 0, out, sizeof(out), "share") == 0);
	check(strstr(out, "no page store runs: cannot start the page-store daemon /nowhere/godwit-ksmd"));

	agent_host_kill(&lab, 0, SIGTERM);
	agent_host_conf(&lab, 0, "[share]\nenable = no\n[memory]\nreserve = 0%\n");
	agent_host_start(&lab, 0, NULL);
	check(agent_cli(&lab, 0, out, sizeof(out), "share") == 0);
	check(strstr(out, "does not share memory") && strstr(out, "off on this host"));
}

static json_int_t number(json_t *o, const char *key)
{
	check(json_is_integer(json_object_get(o, key)));
	return json_integer_value(json_object_get(o, key));
}

static void test_figures(void **state)
{
	char out[8192];
	json_t *o, *vm, *d;

	start_vm("v1", NULL);
	start_vm("v2", NULL);
	start_vm("v3", "tenant = other\n");
	start_vm("v4", "share = off\n");
	wait_attached(3);
	wait_told("v1");
	wait_told("v2");
	wait_told("v3");
	o = share_json(0, "");
	check(json_array_size(json_object_get(o, "vms")) == 4 && json_array_size(json_object_get(o, "domains")) == 2);
	d = entry(o, "domains", "domain", "default");
	check(number(d, "godwit_share_sharing_bytes") == 2000 * 4096 && number(d, "godwit_share_stored_bytes") == 1000 * 4096);
	check(number(d, "godwit_share_saved_bytes") == 1000 * 4096 && number(d, "godwit_share_zero_bytes") == 600 * 4096);
	check(number(d, "godwit_share_metadata_bytes") == 5000 + 2 * 4096);
	check(number(d, "godwit_share_profit_bytes") == 1600 * 4096 - 5000 - 2 * 4096);
	check(json_is_null(json_object_get(d, "godwit_share_within_vm_bytes")));
	/* With one VM in a domain nothing is between VMs. */
	d = entry(o, "domains", "domain", "other");
	check(number(d, "godwit_share_within_vm_bytes") == 0 && number(d, "godwit_share_between_vm_bytes") == 0);
	vm = entry(o, "vms", "vm", "v1");
	check(number(vm, "godwit_share_shared_bytes") == 1000 * 4096 && number(vm, "godwit_share_broken_bytes") == 7 * 4096);
	check(number(vm, "godwit_share_skipped_busy_pages_total") == 3 && number(vm, "godwit_share_mappings_budget") == 30000);
	check(json_real_value(json_object_get(vm, "godwit_share_stall_max_seconds")) == 0.0012);
	check(json_real_value(json_object_get(vm, "godwit_share_pass_age_seconds")) == 4.0);
	/* The profits of the VMs and what the domain's tables cost make the domain's. */
	check(number(vm, "godwit_share_profit_bytes") + number(entry(o, "vms", "vm", "v2"), "godwit_share_profit_bytes") - 5000 ==
	      number(entry(o, "domains", "domain", "default"), "godwit_share_profit_bytes"));
	vm = entry(o, "vms", "vm", "v4");
	check(!strcmp(json_string_value(json_object_get(vm, "reason")), "off for this VM"));
	check(!strcmp(json_string_value(json_object_get(entry(o, "vms", "vm", "v1"), "limit")), "limited by a test"));
	check(!json_object_get(vm, "godwit_share_zero_bytes"));
	json_decref(o);

	o = share_json(0, "--vm v3");
	check(json_array_size(json_object_get(o, "vms")) == 1 && json_array_size(json_object_get(o, "domains")) == 1);
	json_decref(o);
	o = share_json(0, "--domain default");
	check(json_array_size(json_object_get(o, "vms")) == 3 && json_array_size(json_object_get(o, "domains")) == 1);
	json_decref(o);
	check(agent_cli(&lab, 0, out, sizeof(out), "share --vm v9") == 3 && strstr(out, "no VM 'v9'"));
	check(agent_cli(&lab, 0, out, sizeof(out), "share --domain nobody") == 3);
	check(agent_cli(&lab, 0, out, sizeof(out), "share --vm v1") == 0);
	check(strstr(out, "limited by a test"));
	check(strstr(out, "DOMAIN") && strstr(out, "20/30000") && strstr(out, "40/90/1200 us") && strstr(out, "I/O in flight 3"));
}

static void test_watch(void **state)
{
	gw_autofree char *text = calloc(1, 65536);
	size_t len = 0;
	int p[2];
	pid_t pid;
	json_t *o;

	start_vm("v1", NULL);
	assert_int_equal(pipe(p), 0);
	pid = agent_cli_start_to(&lab, 0, p[1], "share --watch --json");
	close(p[1]);
	/* Two lines. */
	while (!strchr(text, '\n') || !strchr(strchr(text, '\n') + 1, '\n')) {
		ssize_t n = read(p[0], text + len, 65535 - len);

		check(n > 0);
		len += (size_t)n;
	}
	kill(pid, SIGTERM);
	agent_cli_wait(pid);
	close(p[0]);
	*strchr(text, '\n') = '\0';
	o = json_loads(text, 0, NULL);
	check(o && json_object_get(o, "vms"));
	json_decref(o);
}

/* Of a domain by the JSON of `godwit share`; -1: not told. */
static json_int_t domain_figure(const char *domain, const char *key)
{
	json_t *o = share_json(0, ""), *v = json_object_get(entry(o, "domains", "domain", domain), key);
	json_int_t n = json_is_integer(v) ? json_integer_value(v) : -1;

	json_decref(o);
	return n;
}

static void wait_saved(const char *domain, json_int_t least, json_int_t most)
{
	uint64_t deadline = gw_now_ns() + TEST_PATIENCE;
	json_int_t saved;

	do {
		saved = domain_figure(domain, "godwit_share_saved_bytes") / 4096;
		if (saved >= least && saved <= most)
			return;
		usleep(50000);
	} while (gw_now_ns() < deadline);
	agent_lab_dump(&lab);
	fail_msg("%lld pages are saved, not %lld to %lld", (long long)saved, (long long)least, (long long)most);
}

static int setup_real(void **state)
{
	setenv("GW_TEST_SHARING", "1", 1);
	return setup(state);
}

static int teardown_real(void **state)
{
	unsetenv("GW_TEST_SHARING");
	return teardown(state);
}

/* A VM that is resumed has its session before it loads: what it maps from then on is told. */
static void test_from_a_snapshot(void **state)
{
	char url[128], path[128];
	uint64_t deadline = gw_now_ns() + TEST_PATIENCE;
	FILE *f;

	snprintf(url, sizeof(url), "file://%s/repo", lab.dir);
	repo_init_url(url, 600);
	snprintf(path, sizeof(path), "%s/pass", lab.dir);
	f = fopen(path, "we");
	assert_non_null(f);
	fprintf(f, "%s\n", REPO_PASS);
	fclose(f);
	start_vm("v1", NULL);
	for (int i = 0; i < 100 && domain_figure("default", "godwit_share_vms") < 1; i++)
		usleep(20000);
	if (events(0, "share-refused")) {
		print_message("skipped: no safe merging here\n");
		skip();
	}
	check(domain_figure("default", "godwit_share_lineage_bytes") == 0);
	check(agent_cli(&lab, 0, NULL, 0, "suspend v1 --to %s --passphrase-file %s", url, path) == 0);
	check(agent_cli(&lab, 0, NULL, 0, "resume v1 --from %s --passphrase-file %s", url, path) == 0);
	while (domain_figure("default", "godwit_share_lineage_bytes") / 4096 < 1000 && gw_now_ns() < deadline)
		usleep(50000);
	check(domain_figure("default", "godwit_share_lineage_bytes") / 4096 >= 1000);
}

/* The real sharer where it gets no userfaultfd. */
static void test_refusal_real(void **state)
{
	char out[4096];

	touch("NO-USERFAULTFD");
	start_vm("v1", NULL);
	for (int i = 0; i < 500 && !events(0, "share-refused"); i++)
		usleep(20000);
	check(events(0, "vm.unprivileged_userfaultfd") == 1);
	check(agent_wait_state(&lab, 0, "v1", "running"));
	check(agent_cli(&lab, 0, out, sizeof(out), "share --vm v1") == 0);
	check(strstr(out, "vm.unprivileged_userfaultfd"));
}

/* The real page store, and VMs that all hold the same 1365 pages that are no zeros, of which each writes 16 now and then. */
static void test_real(void **state)
{
	json_t *o;

	start_vm("v1", NULL);
	start_vm("v2", NULL);
	start_vm("v3", "tenant = other\n");
	for (int i = 0; i < 100 && domain_figure("default", "godwit_share_vms") < 2; i++)
		usleep(20000);
	if (events(0, "share-refused")) {
		print_message("skipped: no safe merging here\n");
		skip();
	}
	wait_saved("default", 1300, 1365);
	wait_saved("other", -16, 0);
	o = share_json(0, "");
	kill((pid_t)json_integer_value(json_object_get(o, "daemon_pid")), SIGKILL);
	json_decref(o);
	wait_told("v1");
	wait_told("v2");
	wait_saved("default", 1300, 1365);
	/* A new agent, with a new daemon. */
	agent_host_kill(&lab, 0, SIGKILL);
	agent_host_start(&lab, 0, NULL);
	wait_saved("default", 1300, 1365);
	check(agent_cli(&lab, 0, NULL, 0, "stop v2 --force") == 0);
	/* Nothing; what it wrote is in the store for nobody, until that chunk is compacted. */
	wait_saved("default", -16, 0);
	wait_saved("other", -16, 0);
	check(agent_cli(&lab, 0, NULL, 0, "stop v1 --force") == 0);
	for (int i = 0; i < 250 && domain_figure("default", "godwit_share_stored_bytes") > 0; i++)
		usleep(20000);
	check(domain_figure("default", "godwit_share_stored_bytes") <= 0);
}

static void test_key(void **state)
{
	char dir[] = "/tmp/gwk-XXXXXX", path[64];
	uint8_t a[32], b[32], c[32];
	struct gw_error err = GW_ERROR_INIT;

	assert_non_null(mkdtemp(dir));
	assert_int_equal(gw_keyfile(dir, "share", "default", a, &err), 0);
	assert_int_equal(gw_keyfile(dir, "share", "other", b, &err), 0);
	assert_int_equal(gw_keyfile(dir, "share", "default", c, &err), 0);
	assert_memory_equal(a, c, 32);
	assert_memory_not_equal(a, b, 32);
	/* Cut short: not taken for a key, and not replaced. */
	snprintf(path, sizeof(path), "%s/share/other", dir);
	assert_int_equal(truncate(path, 31), 0);
	assert_int_equal(gw_keyfile(dir, "share", "other", b, &err), -EPROTO);
	unlink(path);
	snprintf(path, sizeof(path), "%s/share/default", dir);
	unlink(path);
	snprintf(path, sizeof(path), "%s/share", dir);
	rmdir(path);
	rmdir(dir);
}

/* vm.max_map_count is raised, never lowered; where that is not allowed it is told. */
static void test_map_count(void **state)
{
	static const struct {
		const char *before;
		uint64_t want;
		const char *after;
	} cases[] = { { "65530\n", 262144, "262144\n" }, { "300000\n", 262144, "300000\n" }, { "65530\n", 0, "65530\n" } };
	struct gw_conf c = { .share = true, .share_daemon = (char *)"/nowhere" };
	char path[] = "/tmp/gwm-XXXXXX";
	struct gw_sharing *s = NULL;

	close(mkstemp(path));
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		gw_autofree char *text = NULL;
		size_t len;

		assert_int_equal(gw_write_file_atomic(path, cases[i].before, strlen(cases[i].before), 0600, NULL), 0);
		c.share_map_count = cases[i].want;
		assert_int_equal(gw_sharing_new(&c, path, NULL, &s, NULL), 0);
		gw_sharing_free(s);
		assert_int_equal(gw_read_file(path, 64, &text, &len, NULL), 0);
		assert_string_equal(text, cases[i].after);
	}
	unlink(path);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_key),
		cmocka_unit_test(test_map_count),
		cmocka_unit_test_setup_teardown(test_attach, setup, teardown),
		cmocka_unit_test_setup_teardown(test_restarts, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hang, setup, teardown),
		cmocka_unit_test_setup_teardown(test_move, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refusal, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_daemon, setup, teardown),
		cmocka_unit_test_setup_teardown(test_figures, setup, teardown),
		cmocka_unit_test_setup_teardown(test_watch, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refusal_real, setup_real, teardown_real),
		cmocka_unit_test_setup_teardown(test_from_a_snapshot, setup_real, teardown_real),
		cmocka_unit_test_setup_teardown(test_real, setup_real, teardown_real),
	};
	int status;

	if (agent_lab_role(argc, argv, &status))
		return status;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
