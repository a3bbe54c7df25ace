// SPDX-License-Identifier: Apache-2.0
/* Agents and a VM that is suspended to a repository: who may resume it, and that it never runs twice. */
#include "cmocka-all.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "agent-host.h"
#include "agent/cli-repo.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/parse.h"
#include "lib/util.h"
#include "migrate/repo/repo.h"
#include "patience.h"
#include "repo-help.h"

static struct agent_lab lab;
static char url[100], to[300], from[300];

#define check(cond) \
	do { \
		if (!(cond)) { \
			agent_lab_dump(&lab); \
			fail_msg("%s:%d: %s", __FILE__, __LINE__, #cond); \
		} \
	} while (0)

static void write_passphrase(const char *name, const char *text)
{
	char path[128];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", lab.dir, name);
	f = fopen(path, "we");
	assert_non_null(f);
	fprintf(f, "%s\n", text);
	fclose(f);
}

static int setup(void **state)
{
	agent_lab_init(&lab, 3);
	snprintf(url, sizeof(url), "file://%s/repo", lab.dir);
	repo_init_url(url, 600);
	write_passphrase("right", REPO_PASS);
	write_passphrase("wrong", "no horse");
	write_passphrase("lines", REPO_PASS "\nand more");
	snprintf(to, sizeof(to), "--to %s --passphrase-file %s/right", url, lab.dir);
	snprintf(from, sizeof(from), "--from %s --passphrase-file %s/right", url, lab.dir);
	return 0;
}

static int teardown(void **state)
{
	agent_lab_release(&lab);
	return 0;
}

static int begin(void **state)
{
	agent_host_start(&lab, 0, NULL);
	agent_host_start(&lab, 1, NULL);
	check(agent_cli(&lab, 0, NULL, 0, "create %s", agent_vm_file(&lab, "v", NULL)) == 0);
	check(agent_cli(&lab, 0, NULL, 0, "start v") == 0);
	return 0;
}

static int end(void **state)
{
	for (unsigned i = 0; i < 2; i++) {
		agent_host_kill(&lab, i, SIGKILL);
		agent_host_start(&lab, i, NULL);
		agent_cli(&lab, i, NULL, 0, "stop v --force");
		agent_cli(&lab, i, NULL, 0, "rm v");
		agent_host_kill(&lab, i, SIGKILL);
	}
	check(!agent_two_ran(&lab, "v"));
	return 0;
}

static void suspends_and_resumes_here(void **state)
{
	char out[2048];

	/* The same file is a passphrase to godwit repo, or none. */
	check(agent_cli(&lab, 0, out, sizeof(out), "suspend v --to %s --passphrase-file %s/lines", url, lab.dir) == 1 && strstr(out, "more than one line"));
	check(agent_cli(&lab, 0, out, sizeof(out), "suspend v --live %s", to) == 0);
	check(strstr(out, "suspended as v generation 1"));
	check(agent_wait_state(&lab, 0, "v", "suspended") && agent_vmms(&lab) == 0);
	check(agent_cli(&lab, 0, out, sizeof(out), "start v") == 4 && strstr(out, "godwit resume v --from"));
	check(agent_cli(&lab, 0, out, sizeof(out), "resume v") == 4 && strstr(out, "--from"));
	check(agent_cli(&lab, 0, out, sizeof(out), "suspend v %s", to) == 4);
	/* An agent that is restarted knows it. */
	agent_host_kill(&lab, 0, SIGKILL);
	agent_host_start(&lab, 0, NULL);
	check(agent_wait_state(&lab, 0, "v", "suspended"));
	check(agent_cli(&lab, 0, out, sizeof(out), "resume v --from %s --passphrase-file %s/wrong", url, lab.dir) == 9 && strstr(out, "passphrase"));
	check(agent_cli(&lab, 0, out, sizeof(out), "resume v %s", from) == 0);
	check(agent_wait_state(&lab, 0, "v", "running"));
	check(agent_cli(&lab, 0, out, sizeof(out), "resume v %s", from) == 4);
	/* Nor is it handed to another host any more. */
	check(agent_cli(&lab, 1, out, sizeof(out), "resume v %s", from) == 4 && strstr(out, "not suspended in this snapshot on h1 any more"));
	check(agent_wait_state(&lab, 1, "v", "none") && agent_wait_state(&lab, 0, "v", "running"));
	/* What is old by now must not come back by mistake. */
	check(agent_cli(&lab, 0, NULL, 0, "stop v --force") == 0);
	check(agent_cli(&lab, 0, out, sizeof(out), "resume v %s", from) == 4 && strstr(out, "--force"));
	check(agent_cli(&lab, 0, out, sizeof(out), "resume v@1 --force %s", from) == 0);
	check(agent_wait_state(&lab, 0, "v", "running"));
}

static void another_host_asks_for_it(void **state)
{
	char out[2048];

	check(agent_cli(&lab, 0, out, sizeof(out), "suspend v %s --name nightly", to) == 0);
	check(agent_cli(&lab, 0, out, sizeof(out), "resume nightly --on h2 %s", from) == 0);
	check(agent_wait_state(&lab, 1, "v", "running") && agent_wait_state(&lab, 0, "v", "moved"));
	check(agent_cli(&lab, 0, out, sizeof(out), "resume nightly %s", from) == 4);
	check(agent_cli(&lab, 0, out, sizeof(out), "start v") == 4);
	check(agent_wait_state(&lab, 1, "v", "running") && agent_vmms(&lab) == 1);
	/* And it moves back, to its tombstone. */
	check(agent_cli(&lab, 1, out, sizeof(out), "move v h1") == 0);
	check(agent_wait_state(&lab, 0, "v", "running"));
}

/* The host that hands it over dies before it can answer: it is the other's all the same, and only that one's. */
static void handed_over_and_not_told(void **state)
{
	char out[2048];

	check(agent_cli(&lab, 0, NULL, 0, "suspend v %s", to) == 0);
	agent_host_kill(&lab, 0, SIGKILL);
	agent_host_start(&lab, 0, "release-journalled=kill");
	check(agent_cli(&lab, 1, NULL, 0, "resume v %s", from) != 0);
	for (unsigned i = 0; i < 6000 && !agent_host_dead(&lab, 0); i++)
		usleep(10000);
	check(agent_host_dead(&lab, 0));
	agent_host_start(&lab, 0, NULL);
	check(agent_wait_state(&lab, 0, "v", "moved") && agent_cli(&lab, 0, NULL, 0, "resume v %s", from) == 4);
	check(agent_cli(&lab, 1, out, sizeof(out), "resume v %s", from) == 0 && agent_wait_state(&lab, 1, "v", "running"));
}

/* It runs on the third host, where the second one, that had it, moves it. What the first host said or did does not bring the old snapshot back there. */
static void moved_on_for_good(void)
{
	char out[2048];

	check(agent_cli(&lab, 1, NULL, 0, "move v h3") == 0 && agent_wait_state(&lab, 2, "v", "running") && agent_wait_state(&lab, 1, "v", "moved"));
	for (int forgotten = 0; forgotten < 2; forgotten++) {
		check(agent_cli(&lab, 1, out, sizeof(out), "resume v %s", from) == 4 && strstr(out, "--force"));
		check(agent_vmms(&lab) == 1 && agent_wait_state(&lab, 2, "v", "running"));
		if (!forgotten)
			check(agent_cli(&lab, 1, NULL, 0, "rm v") == 0);
	}
	check(agent_cli(&lab, 2, NULL, 0, "stop v --force") == 0 && agent_cli(&lab, 2, NULL, 0, "rm v") == 0);
	agent_host_kill(&lab, 2, SIGKILL);
}

static void taken_over_once(void **state)
{
	agent_host_start(&lab, 2, NULL);
	check(agent_cli(&lab, 0, NULL, 0, "suspend v %s", to) == 0);
	check(agent_cli(&lab, 1, NULL, 0, "resume v %s", from) == 0 && agent_wait_state(&lab, 1, "v", "running"));
	moved_on_for_good();
}

static void resumed_here_and_moved_on(void **state)
{
	agent_host_start(&lab, 2, NULL);
	check(agent_cli(&lab, 0, NULL, 0, "suspend v %s", to) == 0);
	check(agent_cli(&lab, 0, NULL, 0, "resume v %s", from) == 0);
	check(agent_cli(&lab, 0, NULL, 0, "move v h2") == 0 && agent_wait_state(&lab, 1, "v", "running"));
	moved_on_for_good();
}

/* The host that suspended it does not answer: then nobody knows whether it runs there again. */
static void nobody_is_asked(void **state)
{
	char out[2048];

	check(agent_cli(&lab, 0, out, sizeof(out), "suspend v %s", to) == 0);
	agent_host_kill(&lab, 0, SIGKILL);
	check(agent_cli(&lab, 1, out, sizeof(out), "resume v %s", from) != 0 && strstr(out, "--force"));
	check(agent_wait_state(&lab, 1, "v", "none") && agent_vmms(&lab) == 0);
	agent_host_start(&lab, 0, NULL);
	check(agent_cli(&lab, 1, out, sizeof(out), "resume v %s", from) == 0);
	check(agent_wait_state(&lab, 1, "v", "running") && agent_wait_state(&lab, 0, "v", "moved"));
}

static void a_snapshot_goes_on(void **state)
{
	char out[2048];

	check(agent_cli(&lab, 0, out, sizeof(out), "snapshot v %s", to) == 0 && strstr(out, "saved as v"));
	check(agent_wait_state(&lab, 0, "v", "running"));
	check(agent_cli(&lab, 1, out, sizeof(out), "resume v %s", from) == 4 && strstr(out, "went on"));
	check(agent_cli(&lab, 0, out, sizeof(out), "snapshot v --to file:///nowhere --passphrase-file %s/right", lab.dir) == 1);
	check(agent_wait_state(&lab, 0, "v", "running"));
	check(agent_cli(&lab, 0, NULL, 0, "pause v") == 0 && agent_cli(&lab, 0, NULL, 0, "suspend v %s", to) == 0);
	check(agent_cli(&lab, 0, NULL, 0, "resume v %s", from) == 0 && agent_wait_state(&lab, 0, "v", "paused"));
}

/* Started again with failpoints that its VMMs take along. */
static void restart_vm(const char *failpoints)
{
	agent_cli(&lab, 0, NULL, 0, "stop v --force");
	agent_host_kill(&lab, 0, SIGKILL);
	agent_host_start(&lab, 0, failpoints);
	check(agent_cli(&lab, 0, NULL, 0, "start v") == 0);
}

static void cancelled_it_runs_on(void **state)
{
	char out[2048];
	pid_t pid;

	restart_vm("save-state=delay:2000");
	pid = agent_cli_start(&lab, 0, "suspend v %s", to);
	check(agent_wait_state(&lab, 0, "v", "saving"));
	check(agent_cli(&lab, 0, out, sizeof(out), "start v") == 4);
	usleep(500000);
	check(agent_cli(&lab, 0, NULL, 0, "cancel v") == 0);
	check(agent_cli_wait(pid) == 7);
	check(agent_wait_state(&lab, 0, "v", "running"));
	check(agent_cli(&lab, 0, NULL, 0, "cancel v") == 4);
}

static void move_packs(const char *source, const char *target)
{
	char a[128], b[128];

	snprintf(a, sizeof(a), "%s/repo/%s", lab.dir, source);
	snprintf(b, sizeof(b), "%s/repo/%s", lab.dir, target);
	assert_int_equal(rename(a, b), 0);
}

/* Resumed, and what its guest touches cannot be read. */
static void resume_stalled(void)
{
	char out[4096];

	check(agent_cli(&lab, 0, out, sizeof(out), "suspend v %s", to) == 0);
	move_packs("packs", "gone");
	check(agent_cli(&lab, 0, out, sizeof(out), "resume v %s", from) == 0);
}

static void wait_shown(const char *text)
{
	uint64_t deadline = gw_now_ns() + TEST_PATIENCE;
	char out[16384];

	do {
		check(gw_now_ns() < deadline);
		usleep(20000);
	} while (agent_cli(&lab, 0, out, sizeof(out), "show v --json") != 0 || !strstr(out, text));
}

/* Begun, and found to wait. */
static pid_t start_waiting(int log, const char *what)
{
	pid_t pid = agent_cli_start_to(&lab, 0, log, "%s", what);

	wait_shown("waiting for memory: ");
	return pid;
}

static void what_needs_all_of_its_memory_waits_for_it(void **state)
{
	char out[4096], words[400], path[128];
	gw_autofree char *said = NULL;
	gw_autofd log = -1;
	size_t len;
	pid_t pid;

	snprintf(path, sizeof(path), "%s/said", lab.dir);
	log = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	snprintf(words, sizeof(words), "suspend v %s", to);
	resume_stalled();
	check(agent_cli(&lab, 0, out, sizeof(out), "%s --no-wait", words) == 4 && strstr(out, "still on its way") && strstr(out, "% of it is here"));
	check(agent_cli(&lab, 0, out, sizeof(out), "move v h2 --no-wait") == 4 && strstr(out, "still on its way"));
	pid = start_waiting(log, words);
	check(agent_cli(&lab, 0, out, sizeof(out), "pause v") == 4 && strstr(out, "'suspend' is under way"));
	check(agent_cli(&lab, 0, out, sizeof(out), "cancel v") == 0 && agent_cli_wait(pid) == 7);
	check(agent_wait_state(&lab, 0, "v", "running"));
	pid = start_waiting(log, words);
	move_packs("gone", "packs");
	check(agent_cli_wait(pid) == 0 && agent_wait_state(&lab, 0, "v", "suspended"));
	assert_int_equal(gw_read_file(path, 65536, &said, &len, NULL), 0);
	check(strstr(said, "waiting for memory: ") && strstr(said, "cancelled") && strstr(said, "suspended as v"));
	check(agent_cli(&lab, 0, out, sizeof(out), "resume v %s", from) == 0);
	resume_stalled();
	pid = start_waiting(log, "move v h2");
	move_packs("gone", "packs");
	check(agent_cli_wait(pid) == 0 && agent_wait_state(&lab, 1, "v", "running"));
}

/* Whose VMM dies meanwhile is waited for no longer; one that is started anew has all of its memory. */
static void its_vmm_dies_while_it_is_waited_for(void **state)
{
	gw_autofd null = open("/dev/null", O_WRONLY | O_CLOEXEC);
	char words[400];
	pid_t pid;

	snprintf(words, sizeof(words), "suspend v %s", to);
	resume_stalled();
	pid = start_waiting(null, words);
	check(agent_kill_vmm(&lab, 0, "v"));
	check(agent_cli_wait(pid) == 1 && agent_wait_state(&lab, 0, "v", "crashed"));
	move_packs("gone", "packs");
	check(agent_cli(&lab, 0, NULL, 0, "start v") == 0 && agent_cli(&lab, 0, NULL, 0, "suspend v --no-wait %s", to) == 0);
}

static void it_is_paused_while_its_memory_comes(void **state)
{
	char out[4096];

	resume_stalled();
	wait_shown("\"phase\": \"stall\"");
	check(agent_cli(&lab, 0, out, sizeof(out), "pause v") == 0);
	check(agent_wait_state(&lab, 0, "v", "paused"));
	/* An agent that is restarted finds it so. */
	agent_host_kill(&lab, 0, SIGKILL);
	agent_host_start(&lab, 0, NULL);
	check(agent_wait_state(&lab, 0, "v", "paused"));
	move_packs("gone", "packs");
	wait_shown("\"phase\": \"done\"");
	check(agent_wait_state(&lab, 0, "v", "paused"));
	check(agent_cli(&lab, 0, out, sizeof(out), "resume v") == 0 && agent_wait_state(&lab, 0, "v", "running"));
	/* Taken back before the repository is there again. */
	resume_stalled();
	wait_shown("\"phase\": \"stall\"");
	check(agent_cli(&lab, 0, out, sizeof(out), "pause v") == 0 && agent_cli(&lab, 0, out, sizeof(out), "resume v") == 0);
	move_packs("gone", "packs");
	wait_shown("\"phase\": \"done\"");
	check(agent_wait_state(&lab, 0, "v", "running"));
}

/* Its VMM, or its agent, is killed at each step: it is in the snapshot or crashed here, never both and never neither. */
static void killed_on_the_way(void **state)
{
	static const struct {
		const char *step, *state;
	} cases[] = { { "save-opened", "crashed" }, { "save-stopped", "crashed" }, { "save-committed", "crashed" }, { "save-suspended", "suspended" } };
	char points[64], out[2048];

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		bool suspended = !strcmp(cases[i].state, "suspended");

		snprintf(points, sizeof(points), "%s=kill", cases[i].step);
		restart_vm(points);
		check((agent_cli(&lab, 0, out, sizeof(out), "suspend v %s", to) == 0) == suspended);
		check(agent_wait_state(&lab, 0, "v", cases[i].state));
		agent_host_kill(&lab, 0, SIGKILL);
		agent_host_start(&lab, 0, NULL);
		check(agent_wait_state(&lab, 0, "v", cases[i].state));
		check(agent_cli(&lab, 0, out, sizeof(out), suspended ? "resume v %s" : "start v%.0s", from) == 0);
	}
	/* Resumed, it dies before it owns the VM: it is suspended as before. After: it is gone. */
	for (int owned = 0; owned < 2; owned++) {
		check(agent_cli(&lab, 0, NULL, 0, "suspend v %s", to) == 0);
		agent_host_kill(&lab, 0, SIGKILL);
		agent_host_start(&lab, 0, owned ? "load-owned=kill" : "load-state=kill");
		check(agent_cli(&lab, 0, out, sizeof(out), "resume v %s", from) == 1);
		check(agent_wait_state(&lab, 0, "v", owned ? "crashed" : "suspended"));
		agent_host_kill(&lab, 0, SIGKILL);
		agent_host_start(&lab, 0, NULL);
		if (!owned)
			check(agent_cli(&lab, 0, out, sizeof(out), "resume v %s", from) == 0);
	}
}

/* The VMM gets as far as that step; then it dies, and its agent before it, which is started anew. */
static void dies_while_resuming(const char *step, const char *command)
{
	char failpoints[256], hit[160];
	pid_t pid;

	agent_host_kill(&lab, 0, SIGKILL);
	snprintf(hit, sizeof(hit), "%s/%s.hit", lab.dir, step);
	snprintf(failpoints, sizeof(failpoints), "%s=wait:%s/%s", step, lab.dir, step);
	agent_host_start(&lab, 0, failpoints);
	pid = agent_cli_start(&lab, 0, "%s %s", command, from);
	for (unsigned i = 0; i < 6000 && access(hit, F_OK) < 0; i++)
		usleep(10000);
	check(access(hit, F_OK) == 0);
	agent_host_kill(&lab, 0, SIGKILL);
	agent_cli_wait(pid);
	check(agent_kill_vmm(&lab, 0, "v"));
	agent_host_start(&lab, 0, NULL);
}

/* Agent and VMM die, one after the other, when the VM has been resumed and nobody has told yet: it is not suspended any more. */
static void nobody_saw_it_run(void **state)
{
	char out[2048];

	check(agent_cli(&lab, 0, NULL, 0, "suspend v %s", to) == 0);
	dies_while_resuming("load-owned", "resume v");
	check(agent_wait_state(&lab, 0, "v", "stopped"));
	for (unsigned i = 0; i < 2; i++)
		check(agent_cli(&lab, i, out, sizeof(out), "resume v %s", from) == 4 && strstr(out, "--force"));
	check(agent_cli(&lab, 0, NULL, 0, "resume v --force %s", from) == 0);
}

/* Resumed by force, it dies with the agent before it owns the VM: whoever resumes it then without knows still that it may have gone on before. */
static void what_was_forced_stays_so(void **state)
{
	char out[4096];

	restart_vm("");
	check(agent_cli(&lab, 0, NULL, 0, "suspend v %s", to) == 0);
	check(agent_cli(&lab, 0, NULL, 0, "resume v %s", from) == 0 && agent_wait_state(&lab, 0, "v", "running"));
	check(agent_cli(&lab, 0, out, sizeof(out), "show v --json") == 0 && strstr(out, "\"forced\": false"));
	check(agent_cli(&lab, 0, NULL, 0, "stop v --force") == 0);
	dies_while_resuming("load-opened", "resume v --force");
	check(agent_wait_state(&lab, 0, "v", "suspended"));
	check(agent_cli(&lab, 0, NULL, 0, "resume v %s", from) == 0 && agent_wait_state(&lab, 0, "v", "running"));
	check(agent_cli(&lab, 0, out, sizeof(out), "show v --json") == 0 && strstr(out, "\"forced\": true"));
	/* Saved anew it is nobody else's. */
	check(agent_cli(&lab, 0, NULL, 0, "suspend v %s", to) == 0);
	check(agent_cli(&lab, 0, out, sizeof(out), "show v --json") == 0 && strstr(out, "\"forced\": false"));
	check(agent_cli(&lab, 0, NULL, 0, "resume v %s", from) == 0 && agent_wait_state(&lab, 0, "v", "running"));
}

/* Holds the lock of a VM as a process does that is dying, by no descriptor that an agent could find, until the agent says that it waits. */
static pid_t hold_lock(void)
{
	struct flock whole = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	uint64_t deadline = gw_now_ns() + 60 * GW_NS_PER_SEC;
	bool waits = false;
	char path[240];
	pid_t pid;
	int fd;

	snprintf(path, sizeof(path), "%s/vms/v/lock", lab.h[0].state);
	fd = open(path, O_RDWR | O_CLOEXEC);
	check(fd >= 0 && fcntl(fd, F_OFD_SETLK, &whole) == 0);
	pid = fork();
	check(pid >= 0);
	while (pid == 0 && !waits && gw_now_ns() < deadline) {
		gw_autofree char *text = NULL;
		size_t len;

		usleep(1000);
		waits = gw_read_file(lab.h[0].log, 8 << 20, &text, &len, NULL) == 0 && strstr(text, "waiting for its end");
	}
	if (pid == 0)
		_exit(waits ? 0 : 1);
	close(fd);
	return pid;
}

/* The agent starts when the VMM is dead and the kernel has not let go of its lock: it waits for that. */
static void a_lock_outlives_its_vmm(void **state)
{
	char out[2048];
	int status;
	pid_t pid;

	agent_host_kill(&lab, 0, SIGKILL);
	check(agent_kill_vmm(&lab, 0, "v"));
	pid = hold_lock();
	agent_host_start(&lab, 0, NULL);
	check(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
	check(agent_wait_state(&lab, 0, "v", "stopped"));
	check(agent_cli(&lab, 0, out, sizeof(out), "start v") == 0);
}

static void the_agent_dies_meanwhile(void **state)
{
	restart_vm("save-state=delay:1500");
	agent_cli_wait(agent_cli_start(&lab, 0, "suspend v --detach %s", to));
	check(agent_wait_state(&lab, 0, "v", "saving"));
	usleep(300000);
	agent_host_kill(&lab, 0, SIGKILL);
	agent_host_start(&lab, 0, NULL);
	check(agent_wait_state(&lab, 0, "v", "suspended") && agent_vmms(&lab) == 0);
	check(agent_cli(&lab, 0, NULL, 0, "resume v %s", from) == 0);
}

/* Lets the host in; its repository's fingerprint goes to `hex`. */
static void add_host(const char *host, char hex[2 * GW_REPO_ID_LEN + 1])
{
	struct gw_repo_secret secret = { .passphrase = REPO_PASS }, new = { 0 };
	const struct gw_repo_params params = { .label = host };
	char cert[128], cn[64], name[48];
	struct gw_repo *repo;

	snprintf(cert, sizeof(cert), "%s/pki/%s.crt", lab.dir, host);
	assert_int_equal(gw_cli_public_key_read(cert, &new.host, cn, NULL), 0);
	assert_int_equal(gw_repo_open(url, &secret, &repo, NULL), 0);
	assert_int_equal(gw_repo_add_key(repo, &new, &params, name, NULL), 0);
	gw_format_hex(gw_repo_fingerprint(repo), GW_REPO_ID_LEN, hex);
	gw_repo_free(repo);
	EVP_PKEY_free(new.host);
}

static void hosts_open_it_by_their_own_keys(void **state)
{
	char out[2048], hex[2 * GW_REPO_ID_LEN + 1], wrong[sizeof(hex)];

	add_host("h1", hex);
	memcpy(wrong, hex, sizeof(wrong));
	wrong[0] = hex[0] == '0' ? '1' : '0';
	check(agent_cli(&lab, 0, out, sizeof(out), "suspend v --to %s --fingerprint %s", url, wrong) == 9);
	check(agent_cli(&lab, 0, out, sizeof(out), "suspend v --to %s --fingerprint 12", url) == 1 && strstr(out, "no fingerprint"));
	check(agent_wait_state(&lab, 0, "v", "running"));
	check(agent_cli(&lab, 0, out, sizeof(out), "suspend v --to %s --fingerprint %s", url, hex) == 0);
	check(agent_cli(&lab, 1, out, sizeof(out), "resume v --from %s --fingerprint %s", url, hex) == 9);
	add_host("h2", hex);
	check(agent_cli(&lab, 0, out, sizeof(out), "resume v --on h2 --from %s --fingerprint %s", url, hex) == 0);
	check(agent_wait_state(&lab, 1, "v", "running") && agent_wait_state(&lab, 0, "v", "moved"));
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(suspends_and_resumes_here, begin, end),
		cmocka_unit_test_setup_teardown(another_host_asks_for_it, begin, end),
		cmocka_unit_test_setup_teardown(hosts_open_it_by_their_own_keys, begin, end),
		cmocka_unit_test_setup_teardown(handed_over_and_not_told, begin, end),
		cmocka_unit_test_setup_teardown(taken_over_once, begin, end),
		cmocka_unit_test_setup_teardown(resumed_here_and_moved_on, begin, end),
		cmocka_unit_test_setup_teardown(nobody_is_asked, begin, end),
		cmocka_unit_test_setup_teardown(a_snapshot_goes_on, begin, end),
		cmocka_unit_test_setup_teardown(cancelled_it_runs_on, begin, end),
		cmocka_unit_test_setup_teardown(what_needs_all_of_its_memory_waits_for_it, begin, end),
		cmocka_unit_test_setup_teardown(its_vmm_dies_while_it_is_waited_for, begin, end),
		cmocka_unit_test_setup_teardown(it_is_paused_while_its_memory_comes, begin, end),
		cmocka_unit_test_setup_teardown(killed_on_the_way, begin, end),
		cmocka_unit_test_setup_teardown(nobody_saw_it_run, begin, end),
	cmocka_unit_test_setup_teardown(what_was_forced_stays_so, begin, end),
		cmocka_unit_test_setup_teardown(a_lock_outlives_its_vmm, begin, end),
		cmocka_unit_test_setup_teardown(the_agent_dies_meanwhile, begin, end),
	};
	int status;

	if (agent_lab_role(argc, argv, &status))
		return status;
	return cmocka_run_group_tests(tests, setup, teardown);
}
