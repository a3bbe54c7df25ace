// SPDX-License-Identifier: Apache-2.0
/* VMM processes; see process.h. */
#include "agent/process.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "lib/clock.h"
#include "lib/io.h"
#include "lib/parse.h"
#include "lib/util.h"

#define LOG_MAX (1 << 20)   /* bytes */
#define LOG_KEEP (64 << 10) /* of its end, when it is cut */

static struct flock whole_file(void)
{
	return (struct flock){ .l_type = F_WRLCK, .l_whence = SEEK_SET };
}

int gw_process_alive(const char *path)
{
	gw_autofd fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	struct flock l = whole_file();

	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	/* Only asks: taking it for a moment could make another thread's start fail. */
	if (fcntl(fd, F_OFD_GETLK, &l) < 0)
		return -errno;
	return l.l_type != F_UNLCK;
}

static int open_pidfd(pid_t pid)
{
	int fd = (int)syscall(SYS_pidfd_open, pid, 0);

	return fd < 0 ? -errno : fd;
}

static int take_lock(const char *path, int *ret, struct gw_error *err)
{
	gw_autofd fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	struct flock l = whole_file();
	int high;

	if (fd < 0)
		return gw_error_errno(err, errno, "cannot open %s", path);
	/* Above the numbers that the child's descriptors get. */
	high = fcntl(fd, F_DUPFD_CLOEXEC, 64);
	if (high < 0)
		return gw_error_errno(err, errno, "cannot open %s", path);
	if (fcntl(high, F_OFD_SETLK, &l) < 0) {
		int e = errno;

		close(high);
		if (e == EAGAIN || e == EACCES)
			return gw_error_set(err, EBUSY, "a VMM of this VM is still alive");
		return gw_error_errno(err, e, "cannot lock %s", path);
	}
	*ret = high;
	return 0;
}

static int spawn(const struct gw_process_spec *spec, int lock, pid_t *pid)
{
	extern char **environ;
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attr;
	sigset_t none, all;
	int r;

	sigemptyset(&none);
	sigfillset(&all);
	posix_spawn_file_actions_init(&files);
	posix_spawnattr_init(&attr);
	posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, spec->log, O_WRONLY | O_CREAT | O_APPEND, 0640);
	posix_spawn_file_actions_adddup2(&files, STDOUT_FILENO, STDERR_FILENO);
	posix_spawn_file_actions_adddup2(&files, lock, GW_VMM_LOCK_FD);
	/* A session of its own: no terminal's or service manager's signal to us reaches it. */
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setsigdefault(&attr, &all);
	r = posix_spawn(pid, spec->program, &files, &attr, spec->argv, environ);
	posix_spawnattr_destroy(&attr);
	posix_spawn_file_actions_destroy(&files);
	return -r;
}

int gw_process_start(const struct gw_process_spec *spec, pid_t *pid, int *pidfd, struct gw_error *err)
{
	gw_autofd lock = -1;
	pid_t child;
	int fd, r;

	r = take_lock(spec->lock, &lock, err);
	if (r < 0)
		return r;
	r = spawn(spec, lock, &child);
	if (r < 0)
		return gw_error_errno(err, r, "cannot start %s", spec->program);
	fd = open_pidfd(child);
	if (fd < 0) {
		/* Our unreaped child: the number is still its own. */
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
		return gw_error_errno(err, fd, "cannot watch %s", spec->program);
	}
	*pid = child;
	*pidfd = fd;
	return 0;
}

/* Whether GW_VMM_LOCK_FD of process `pid` is the file `lock`. */
static bool holds(pid_t pid, const struct stat *lock)
{
	char path[64];
	struct stat st;

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, GW_VMM_LOCK_FD);
	return stat(path, &st) == 0 && st.st_dev == lock->st_dev && st.st_ino == lock->st_ino;
}

int gw_process_find(const char *lock, pid_t *pid, int *pidfd)
{
	struct stat st;
	struct dirent *d;
	DIR *proc;
	int r = -ESRCH;

	if (stat(lock, &st) < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	proc = opendir("/proc");
	if (!proc)
		return -errno;
	while (r == -ESRCH && (d = readdir(proc))) {
		uint64_t n;
		int fd;

		if (!isdigit((unsigned char)d->d_name[0]) || gw_parse_uint(d->d_name, "pid", 1, INT32_MAX, &n, NULL) < 0 ||
		    (pid_t)n == getpid() || !holds((pid_t)n, &st))
			continue;
		fd = open_pidfd((pid_t)n);
		/* Looked at again: the number may have passed to another process before we held on to it. */
		if (fd >= 0 && holds((pid_t)n, &st)) {
			*pid = (pid_t)n;
			*pidfd = fd;
			r = 0;
		} else if (fd >= 0) {
			close(fd);
		}
	}
	closedir(proc);
	return r;
}

int gw_process_kill(int pidfd, const char *lock, uint64_t deadline_ns)
{
	if (pidfd >= 0) {
		syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
		if (gw_wait_fd(pidfd, POLLIN, deadline_ns) < 0)
			return -ETIMEDOUT;
	}
	/* The last thread of a process in a core dump or in an uninterruptible wait keeps the lock. */
	while (gw_process_alive(lock) != 0) {
		if (gw_now_ns() >= deadline_ns)
			return -ETIMEDOUT;
		usleep(1000);
	}
	return 0;
}

bool gw_process_reap(int pidfd, char *how, size_t size)
{
	siginfo_t info = { 0 };

	how[0] = '\0';
	if (pidfd < 0 || waitid((idtype_t)P_PIDFD, (id_t)pidfd, &info, WEXITED | WNOHANG) < 0 || info.si_pid == 0)
		return false;
	if (info.si_code == CLD_EXITED)
		snprintf(how, size, "exited with status %d", info.si_status);
	else
		snprintf(how, size, "killed by signal %d", info.si_status);
	return info.si_code == CLD_EXITED && info.si_status == 0;
}

void gw_process_last_words(const char *log, char *out, size_t size)
{
	gw_autofd fd = open(log, O_RDONLY | O_CLOEXEC);
	char tail[2048];
	char *start;
	off_t end;
	ssize_t n;

	out[0] = '\0';
	if (fd < 0)
		return;
	end = lseek(fd, 0, SEEK_END);
	n = pread(fd, tail, sizeof(tail) - 1, end > (off_t)sizeof(tail) - 1 ? end - ((off_t)sizeof(tail) - 1) : 0);
	while (n > 0 && isspace((unsigned char)tail[n - 1]))
		n--;
	if (n <= 0)
		return;
	tail[n] = '\0';
	start = strrchr(tail, '\n');
	snprintf(out, size, "%s", start ? start + 1 : tail);
	for (char *p = out; *p; p++) {
		if (!isprint((unsigned char)*p))
			*p = '?';
	}
}

void gw_process_trim_log(const char *log)
{
	gw_autofree char *tail = NULL, *older = NULL;
	gw_autofd fd = open(log, O_RDWR | O_CLOEXEC);
	struct stat st;
	ssize_t n;

	if (fd < 0 || fstat(fd, &st) < 0 || st.st_size < LOG_MAX)
		return;
	tail = malloc(LOG_KEEP);
	if (!tail || asprintf(&older, "%s.1", log) < 0)
		return;
	n = pread(fd, tail, LOG_KEEP, st.st_size - LOG_KEEP);
	if (n > 0)
		gw_write_file_atomic(older, tail, (size_t)n, 0640, NULL);
	/* The VMM appends, so it goes on at the new end. */
	if (ftruncate(fd, 0) < 0)
		return;
}
