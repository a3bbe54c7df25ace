// SPDX-License-Identifier: Apache-2.0
/* The page-store daemon's process and its answers; see share-daemon.h. */
#include "agent/share-daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "agent/process.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/util.h"
#include "proto/frame.h"

#define FRAME_REQUEST 32
#define FRAME_REPLY 33
#define CONTROL_FD 3
#define ANSWER_TIMEOUT (5 * GW_NS_PER_SEC)
#define END_TIMEOUT (2 * GW_NS_PER_SEC)
/* Between its death and the next start; doubled each time that it lived for less than STEADY. */
#define PAUSE_MIN GW_NS_PER_SEC
#define PAUSE_MAX (60 * GW_NS_PER_SEC)
#define STEADY (60 * GW_NS_PER_SEC)

struct gw_share_daemon {
	const char *program;
	struct gw_events *events;
	pthread_mutex_t lock; /* all below; held while it is asked */
	pid_t pid;            /* 0: none runs, and the descriptors are -1 */
	int pidfd, control;
	unsigned starts;      /* also the number of the one that runs */
	uint64_t started_ns, next_start_ns, pause_ns;
	char reason[256];
};

int gw_share_daemon_new(const char *program, struct gw_events *events, struct gw_share_daemon **ret, struct gw_error *err)
{
	struct gw_share_daemon *d = calloc(1, sizeof(*d));

	if (!d)
		return gw_error_set(err, ENOMEM, "out of memory");
	d->program = program;
	d->events = events;
	d->pidfd = d->control = -1;
	pthread_mutex_init(&d->lock, NULL);
	*ret = d;
	return 0;
}

/* An event only when it is another reason than the last. */
static void note_reason(struct gw_share_daemon *d, const char *reason)
{
	char before[sizeof(d->reason)];

	memcpy(before, d->reason, sizeof(before));
	snprintf(d->reason, sizeof(d->reason), "%s", reason);
	if (strcmp(before, d->reason) != 0)
		gw_events_emit(d->events, "share-daemon", NULL, "%s", d->reason);
}

static void pause_starts(struct gw_share_daemon *d)
{
	bool steady = d->started_ns && gw_now_ns() - d->started_ns >= STEADY;

	d->pause_ns = steady || !d->pause_ns ? PAUSE_MIN : GW_MIN(2 * d->pause_ns, PAUSE_MAX);
	d->next_start_ns = gw_now_ns() + d->pause_ns;
}

/* It is dead, or to be killed. `why` NULL: as it ended tells. */
static void end(struct gw_share_daemon *d, const char *why)
{
	char how[64], reason[256];

	gw_closep(&d->control);
	syscall(SYS_pidfd_send_signal, d->pidfd, SIGKILL, NULL, 0);
	(void)gw_wait_fd(d->pidfd, POLLIN, gw_now_ns() + END_TIMEOUT);
	gw_process_reap(d->pidfd, how, sizeof(how));
	gw_closep(&d->pidfd);
	d->pid = 0;
	pause_starts(d);
	snprintf(reason, sizeof(reason), "the page-store daemon %s%s; VMs keep what they share", why ?: "ended: ", why ? "" : how);
	note_reason(d, reason);
}

/* With d->lock held, like the rest: notices its death. */
static bool runs(struct gw_share_daemon *d)
{
	if (d->pid && gw_wait_fd(d->pidfd, POLLIN, 0) == 0)
		end(d, NULL);
	return d->pid != 0;
}

static int spawn(struct gw_share_daemon *d, int fd)
{
	extern char **environ;
	char *argv[] = { (char *)"godwit-ksmd", (char *)"--control-fd", (char *)"3", NULL };
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attr;
	sigset_t none, all;
	int r;

	sigemptyset(&none);
	sigfillset(&all);
	posix_spawn_file_actions_init(&files);
	posix_spawnattr_init(&attr);
	posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&files, fd, CONTROL_FD);
	/* A session of its own: what a terminal sends to us does not reach it. It ends with its socket. */
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setsigdefault(&attr, &all);
	r = posix_spawn(&d->pid, d->program, &files, &attr, argv, environ);
	posix_spawnattr_destroy(&attr);
	posix_spawn_file_actions_destroy(&files);
	return -r;
}

static int start(struct gw_share_daemon *d, struct gw_error *err)
{
	int pair[2], high, r;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return gw_error_errno(err, errno, "cannot make a socket pair");
	/* Another number than the one that it gets there: dup2() onto itself would leave it close-on-exec. */
	high = fcntl(pair[1], F_DUPFD_CLOEXEC, 64);
	close(pair[1]);
	r = high < 0 ? -errno : spawn(d, high);
	gw_closep(&high);
	if (r < 0) {
		close(pair[0]);
		d->pid = 0;
		return gw_error_errno(err, r, "cannot start the page-store daemon %s", d->program);
	}
	d->pidfd = (int)syscall(SYS_pidfd_open, d->pid, 0);
	if (d->pidfd < 0) {
		r = -errno;
		close(pair[0]);
		/* Our unreaped child: the number is still its own. */
		kill(d->pid, SIGKILL);
		waitpid(d->pid, NULL, 0);
		d->pid = 0;
		return gw_error_errno(err, r, "cannot watch the page-store daemon");
	}
	d->control = pair[0];
	d->starts++;
	d->started_ns = gw_now_ns();
	return 0;
}

static int need(struct gw_share_daemon *d, struct gw_error *err)
{
	int r;

	if (runs(d))
		return 0;
	if (gw_now_ns() < d->next_start_ns)
		return gw_error_set(err, EAGAIN, "%s", d->reason);
	r = start(d, err);
	if (r < 0) {
		d->started_ns = 0;
		pause_starts(d);
		note_reason(d, gw_error_text(err));
		return r;
	}
	gw_events_emit(d->events, "share-daemon", NULL, "the page-store daemon runs, process %d", (int)d->pid);
	d->reason[0] = '\0';
	return 0;
}

static int ask(struct gw_share_daemon *d, const Godwit__ShareRequest *req, const int *fds, unsigned nfds, Godwit__ShareReply **ret,
	       struct gw_error *err)
{
	uint64_t deadline = gw_now_ns() + ANSWER_TIMEOUT;
	ProtobufCMessage *m = NULL;
	Godwit__ShareReply *reply;
	int r = gw_frame_send(d->control, FRAME_REQUEST, &req->base, fds, nfds, deadline);

	r = r ?: gw_frame_recv(d->control, FRAME_REPLY, &godwit__share_reply__descriptor, &m, NULL, NULL, deadline);
	if (r < 0) {
		/* It died; or a late answer would be taken for that to another question. */
		end(d, gw_wait_fd(d->pidfd, POLLIN, gw_now_ns() + GW_NS_PER_SEC / 10) == 0 ? NULL : "did not answer");
		return gw_error_set(err, -r, "%s", d->reason);
	}
	reply = (Godwit__ShareReply *)m;
	if (reply->error) {
		r = gw_error_set(err, reply->error < 0 || reply->error > 4095 ? EIO : reply->error, "the page-store daemon: %.300s",
				 *reply->message ? reply->message : "refuses");
		godwit__share_reply__free_unpacked(reply, NULL);
		return r;
	}
	*ret = reply;
	return 0;
}

void gw_share_daemon_free(struct gw_share_daemon *d)
{
	char how[64];

	if (!d)
		return;
	if (d->pid) {
		gw_closep(&d->control);
		if (gw_wait_fd(d->pidfd, POLLIN, gw_now_ns() + END_TIMEOUT) < 0)
			syscall(SYS_pidfd_send_signal, d->pidfd, SIGKILL, NULL, 0);
		(void)gw_wait_fd(d->pidfd, POLLIN, gw_now_ns() + END_TIMEOUT);
		gw_process_reap(d->pidfd, how, sizeof(how));
		gw_closep(&d->pidfd);
	}
	pthread_mutex_destroy(&d->lock);
	free(d);
}

bool gw_share_daemon_due(struct gw_share_daemon *d, unsigned number)
{
	bool due;

	if (pthread_mutex_trylock(&d->lock) != 0)
		return false;
	due = runs(d) ? d->starts != number : gw_now_ns() >= d->next_start_ns;
	pthread_mutex_unlock(&d->lock);
	return due;
}

int gw_share_daemon_attach(struct gw_share_daemon *d, const Godwit__ShareAttach *attach, int fd, unsigned *number,
			   struct gw_error *err)
{
	Godwit__ShareRequest req = GODWIT__SHARE_REQUEST__INIT;
	Godwit__ShareReply *reply = NULL;
	int r;

	req.op_case = GODWIT__SHARE_REQUEST__OP_ATTACH;
	req.attach = (Godwit__ShareAttach *)attach;
	pthread_mutex_lock(&d->lock);
	r = need(d, err);
	r = r ?: ask(d, &req, &fd, 1, &reply, err);
	if (r == 0)
		*number = d->starts;
	pthread_mutex_unlock(&d->lock);
	if (reply)
		godwit__share_reply__free_unpacked(reply, NULL);
	return r;
}

int gw_share_daemon_stats(struct gw_share_daemon *d, Godwit__ShareReply **ret, struct gw_error *err)
{
	Godwit__ShareRequest req = GODWIT__SHARE_REQUEST__INIT;
	Godwit__ShareStatsRequest stats = GODWIT__SHARE_STATS_REQUEST__INIT;
	int r;

	req.op_case = GODWIT__SHARE_REQUEST__OP_STATS;
	req.stats = &stats;
	pthread_mutex_lock(&d->lock);
	r = runs(d) ? ask(d, &req, NULL, 0, ret, err) : gw_error_set(err, ESRCH, "%s", *d->reason ? d->reason : "no VM has needed it");
	pthread_mutex_unlock(&d->lock);
	return r;
}

void gw_share_daemon_info(struct gw_share_daemon *d, struct gw_share_daemon_info *ret)
{
	pthread_mutex_lock(&d->lock);
	runs(d);
	*ret = (struct gw_share_daemon_info){ .pid = d->pid, .starts = d->starts };
	snprintf(ret->reason, sizeof(ret->reason), "%s", d->reason);
	pthread_mutex_unlock(&d->lock);
}
