// SPDX-License-Identifier: Apache-2.0
/* Agents for tests; see agent-host.h. */
#include "agent-host.h"

#include "cmocka-all.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <jansson.h>
#include <libgen.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "agent-ksmd.h"
#include "agent-vmm.h"
#include "agent/cli.h"
#include "agent/daemon.h"
#include "agent/pki.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/parse.h"
#include "lib/util.h"

#define NOBODYS_PORT 1u

bool agent_lab_role(int argc, char **argv, int *status)
{
	const char *slash = strrchr(argv[0], '/');
	const char *name = slash ? slash + 1 : argv[0];

	if (!strcmp(name, "godwitd"))
		*status = gw_daemon_main(argc, argv);
	else if (!strcmp(name, "godwit"))
		*status = gw_cli_main(argc, argv);
	else if (!strcmp(name, "godwit-vmm"))
		*status = agent_vmm_main(argc, argv);
	else if (!strcmp(name, "godwit-ksmd"))
		*status = agent_ksmd_main(argc, argv);
	else
		return false;
	return true;
}

static void write_text(const char *path, const char *text)
{
	assert_int_equal(gw_write_file_atomic(path, text, strlen(text), 0600, NULL), 0);
}

/*
 * A port that is free, and stays ours while an agent is killed and started again, whatever the test beside this one looks for: *held is bound to
 * it. Both that and the agent's socket have SO_REUSEADDR, so the agent may listen (socket(7)); whoever looks for a port has not. Below the
 * range from which the kernel takes the local ports of outgoing connections (ip_local_port_range, 32768 and up).
 */
static unsigned hold_port(int *held)
{
	static unsigned next;

	if (!next)
		next = (unsigned)getpid() * 16;
	for (;;) {
		struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
		gw_autofd fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		unsigned port = 16384 + next++ % 16384;
		int one = 1;

		assert_true(fd >= 0);
		a.sin_port = htons((uint16_t)port);
		if (bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0)
			continue;
		assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)), 0);
		*held = gw_steal_fd(&fd);
		return port;
	}
}

static void write_conf(struct agent_lab *lab, struct agent_host *h, const char *self, const char *more)
{
	char text[8192];
	int n = snprintf(text, sizeof(text),
			 "[agent]\nname = %s\nlisten = 127.0.0.1:%u\ndata-listen = 127.0.0.1:%u\nsocket = %s\nstate = %s\n"
			 "run = %s/%s.run\nvmm = %s\n[tls]\nca = %s/pki/ca.crt\ncert = %s/pki/%s.crt\nkey = %s/pki/%s.key\n[peers]\n",
			 h->name, h->port, h->data_port, h->socket, h->state, lab->dir, h->name, self, lab->dir, lab->dir, h->name,
			 lab->dir, h->name);

	for (unsigned i = 0; i < lab->nhosts; i++) {
		if (&lab->h[i] != h)
			n += snprintf(text + n, sizeof(text) - (size_t)n, "%s = 127.0.0.1:%u\n", lab->h[i].name,
				      lab->apart ? NOBODYS_PORT : lab->h[i].port);
	}
	snprintf(text + n, sizeof(text) - (size_t)n, "%s", more);
	write_text(h->conf, text);
}

static void self_path(char path[512])
{
	ssize_t n = readlink("/proc/self/exe", path, 511);

	assert_true(n > 0);
	path[n] = '\0';
}

void agent_host_conf(struct agent_lab *lab, unsigned host, const char *more)
{
	char self[512];

	self_path(self);
	write_conf(lab, &lab->h[host], self, more);
}

void agent_lab_init(struct agent_lab *lab, unsigned nhosts)
{
	static const char *const ip[] = { "127.0.0.1" };
	char pki[80], kernel[80];

	memset(lab, 0, sizeof(*lab));
	lab->nhosts = nhosts;
	snprintf(lab->dir, sizeof(lab->dir), "/tmp/gwt-XXXXXX");
	assert_non_null(mkdtemp(lab->dir));
	snprintf(pki, sizeof(pki), "%s/pki", lab->dir);
	assert_int_equal(gw_pki_init(pki, "test", 10, NULL), 0);
	for (unsigned i = 0; i < nhosts; i++) {
		struct agent_host *h = &lab->h[i];
		struct gw_pki_request req = { .name = h->name, .role = GW_ROLE_HOST, .ip = ip, .nip = 1, .days = 5 };

		snprintf(h->name, sizeof(h->name), "h%u", i + 1);
		snprintf(h->conf, sizeof(h->conf), "%s/%s.conf", lab->dir, h->name);
		snprintf(h->socket, sizeof(h->socket), "%s/%s.sock", lab->dir, h->name);
		snprintf(h->state, sizeof(h->state), "%s/%s.state", lab->dir, h->name);
		snprintf(h->log, sizeof(h->log), "%s/%s.log", lab->dir, h->name);
		h->port = hold_port(&h->held[0]);
		h->data_port = hold_port(&h->held[1]);
		assert_int_equal(gw_pki_issue(pki, pki, &req, NULL), 0);
	}
	for (unsigned i = 0; i < nhosts; i++)
		agent_host_conf(lab, i, "[share]\nenable = no\n[memory]\nreserve = 0%\n");
	snprintf(kernel, sizeof(kernel), "%s/kernel", lab->dir);
	write_text(kernel, "no kernel at all");
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

/* Calls `fn` for each VMM of the lab: its command line names the lab's folder. Returns how many there are. */
static unsigned each_vmm(struct agent_lab *lab, void (*fn)(pid_t, const char *cmdline, size_t len, void *), void *arg)
{
	DIR *proc = opendir("/proc");
	unsigned count = 0;
	struct dirent *d;

	while (proc && (d = readdir(proc))) {
		gw_autofree char *text = NULL;
		char path[300];
		size_t len;

		if (d->d_name[0] < '1' || d->d_name[0] > '9')
			continue;
		snprintf(path, sizeof(path), "/proc/%s/cmdline", d->d_name);
		if (gw_read_file(path, 65535, &text, &len, NULL) < 0 || strcmp(text, "godwit-vmm") != 0 ||
		    !memmem(text, len, lab->dir, strlen(lab->dir)))
			continue;
		count++;
		if (fn)
			fn((pid_t)strtol(d->d_name, NULL, 10), text, len, arg);
	}
	if (proc)
		closedir(proc);
	return count;
}

static void kill_one(pid_t pid, const char *cmdline, size_t len, void *arg)
{
	kill(pid, SIGKILL);
}

static bool sanitizer_spoke;

/* What a sanitizer found in an agent or a VMM stands in its log alone. */
static int check_log(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	gw_autofree char *text = NULL;
	size_t len;

	if (type != FTW_F || !strstr(path, ".log") || gw_read_file(path, 8 << 20, &text, &len, NULL) < 0)
		return 0;
	/*
	 * The receivers of a move's destination are ordered by rounds, through the other process: what the thread sanitizer cannot see. The
	 * engine's own tests, both ends in one process, look at its threads.
	 */
	if (strstr(path, "vmm.log") && strstr(text, "ThreadSanitizer"))
		return 0;
	/* Whole reports only: an agent quotes its VMMs' last words. */
	if (strstr(text, "WARNING: ThreadSanitizer") || strstr(text, "ERROR: AddressSanitizer") ||
	    strstr(text, "ERROR: LeakSanitizer") || strstr(text, "runtime error:")) {
		printf("---- %s\n%s\n", path, text);
		sanitizer_spoke = true;
	}
	return 0;
}

void agent_lab_release(struct agent_lab *lab)
{
	for (unsigned i = 0; i < lab->nhosts; i++)
		agent_host_kill(lab, i, SIGTERM);
	each_vmm(lab, kill_one, NULL);
	for (int i = 0; i < 6000 && each_vmm(lab, NULL, NULL) > 0; i++)
		usleep(10000);
	for (unsigned i = 0; i < lab->nhosts; i++) {
		close(lab->h[i].held[0]);
		close(lab->h[i].held[1]);
	}
	sanitizer_spoke = false;
	nftw(lab->dir, check_log, 16, FTW_PHYS);
	nftw(lab->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	assert_false(sanitizer_spoke);
}

unsigned agent_vmms(struct agent_lab *lab)
{
	return each_vmm(lab, NULL, NULL);
}

struct wanted {
	char control[200];
	bool found;
};

static void kill_wanted(pid_t pid, const char *cmdline, size_t len, void *arg)
{
	struct wanted *w = arg;

	if (memmem(cmdline, len, w->control, strlen(w->control))) {
		gw_autofd pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
		struct pollfd p = { .fd = pidfd, .events = POLLIN };

		kill(pid, SIGKILL);
		/* An agent that starts now finds none, not one that is dying. */
		assert_true(pidfd < 0 || poll(&p, 1, 60000) == 1);
		w->found = true;
	}
}

bool agent_kill_vmm(struct agent_lab *lab, unsigned host, const char *vm)
{
	struct wanted w = { .found = false };

	snprintf(w.control, sizeof(w.control), "%s.run/vms/%s.sock", lab->h[host].name, vm);
	each_vmm(lab, kill_wanted, &w);
	return w.found;
}

bool agent_two_ran(struct agent_lab *lab, const char *vm)
{
	char path[160];

	snprintf(path, sizeof(path), "%s/%s.two", lab->dir, vm);
	return access(path, F_OK) == 0;
}

static pid_t spawn(struct agent_lab *lab, const char *role, char **argv, const char *failpoints, int out)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid > 0)
		return pid;
	dup2(out, STDOUT_FILENO);
	dup2(out, STDERR_FILENO);
	setenv("GW_TEST_DIR", lab->dir, 1);
	if (failpoints)
		setenv("GODWIT_FAILPOINTS", failpoints, 1);
	else
		unsetenv("GODWIT_FAILPOINTS");
	argv[0] = (char *)role;
	execv("/proc/self/exe", argv);
	_exit(127);
}

void agent_host_start(struct agent_lab *lab, unsigned host, const char *failpoints)
{
	struct agent_host *h = &lab->h[host];
	char *argv[] = { NULL, (char *)"--config", h->conf, NULL };
	gw_autofd log = open(h->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

	assert_int_equal(h->pid, 0);
	h->pid = spawn(lab, "godwitd", argv, failpoints, log);
	for (int i = 0; i < 6000; i++) {
		int fd;

		if (gw_unix_connect(h->socket, &fd, NULL) == 0) {
			close(fd);
			return;
		}
		if (agent_host_dead(lab, host))
			break;
		usleep(10000);
	}
	agent_lab_dump(lab);
	fail_msg("agent %s does not start", h->name);
}

void agent_host_kill(struct agent_lab *lab, unsigned host, int sig)
{
	struct agent_host *h = &lab->h[host];

	if (!h->pid)
		return;
	kill(h->pid, sig);
	waitpid(h->pid, NULL, 0);
	h->pid = 0;
}

bool agent_host_dead(struct agent_lab *lab, unsigned host)
{
	struct agent_host *h = &lab->h[host];

	if (h->pid && waitpid(h->pid, NULL, WNOHANG) == h->pid)
		h->pid = 0;
	return h->pid == 0;
}

static pid_t cli(struct agent_lab *lab, unsigned host, int out, const char *fmt, va_list ap)
{
	char text[1024];
	char *argv[40] = { NULL, (char *)"--socket", lab->h[host].socket };
	char *save = NULL;
	int n = 3;

	vsnprintf(text, sizeof(text), fmt, ap);
	for (char *w = strtok_r(text, " ", &save); w && n < 39; w = strtok_r(NULL, " ", &save))
		argv[n++] = w;
	argv[n] = NULL;
	return spawn(lab, "godwit", argv, NULL, out);
}

int agent_cli_wait(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int agent_cli(struct agent_lab *lab, unsigned host, char *out, size_t size, const char *fmt, ...)
{
	char drop[1024];
	size_t used = 0;
	int p[2];
	va_list ap;
	pid_t pid;
	ssize_t n;

	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	va_start(ap, fmt);
	pid = cli(lab, host, p[1], fmt, ap);
	va_end(ap);
	close(p[1]);
	while ((n = out && used < size - 1 ? read(p[0], out + used, size - 1 - used) : read(p[0], drop, sizeof(drop))) > 0)
		used += out && used < size - 1 ? (size_t)n : 0;
	if (out)
		out[used] = '\0';
	close(p[0]);
	return agent_cli_wait(pid);
}

pid_t agent_cli_start_to(struct agent_lab *lab, unsigned host, int out, const char *fmt, ...)
{
	va_list ap;
	pid_t pid;

	va_start(ap, fmt);
	pid = cli(lab, host, out, fmt, ap);
	va_end(ap);
	return pid;
}

pid_t agent_cli_start(struct agent_lab *lab, unsigned host, const char *fmt, ...)
{
	gw_autofd null = open("/dev/null", O_RDWR | O_CLOEXEC);
	va_list ap;
	pid_t pid;

	va_start(ap, fmt);
	pid = cli(lab, host, null, fmt, ap);
	va_end(ap);
	return pid;
}

const char *agent_vm_file(struct agent_lab *lab, const char *name, const char *more)
{
	static char path[128];
	char text[2048];

	snprintf(path, sizeof(path), "%s/%s.vm", lab->dir, name);
	snprintf(text, sizeof(text), "[vm]\nname = %s\nmemory = 64M\nkernel = %s/kernel\n%s", name, lab->dir, more ? more : "");
	write_text(path, text);
	return path;
}

void agent_vm_state(struct agent_lab *lab, unsigned host, const char *vm, char state[32])
{
	gw_autofree char *out = calloc(1, 65536);
	json_t *o;
	int rc = agent_cli(lab, host, out, 65536, "show %s --json", vm);

	snprintf(state, 32, "%s", rc == 3 ? "none" : "?");
	o = rc == 0 ? json_loads(out, 0, NULL) : NULL;
	if (o)
		snprintf(state, 32, "%s", json_string_value(json_object_get(o, "state")) ?: "?");
	json_decref(o);
}

bool agent_wait_state(struct agent_lab *lab, unsigned host, const char *vm, const char *state)
{
	uint64_t deadline = gw_now_ns() + TEST_PATIENCE;
	char now[32];

	do {
		agent_vm_state(lab, host, vm, now);
		if (!strcmp(now, state))
			return true;
		usleep(20000);
	} while (gw_now_ns() < deadline);
	printf("VM %s on %s is %s, not %s\n", vm, lab->h[host].name, now, state);
	return false;
}

void agent_lab_dump(struct agent_lab *lab)
{
	for (unsigned i = 0; i < lab->nhosts; i++) {
		gw_autofree char *text = NULL;
		size_t len;

		if (gw_read_file(lab->h[i].log, 1 << 20, &text, &len, NULL) == 0)
			printf("---- log of %s\n%s", lab->h[i].name, text);
	}
	fflush(stdout);
}
