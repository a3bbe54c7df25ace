// SPDX-License-Identifier: Apache-2.0
/* Work on a repository that takes long: a bar on the terminal, and Ctrl-C; see cli-repo.h. One thread looks after both. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>

#include "agent/cli-repo.h"
#include "lib/clock.h"
#include "lib/thread.h"
#include "lib/util.h"

#define REDRAW_MS 200
#define BAR_WIDTH 20u

/* No wider than the terminal: a wrapped line could not be redrawn. */
static void draw(const struct gw_cli_work *w)
{
	uint64_t total = atomic_load(&w->upkeep.total), done = GW_MIN(atomic_load(&w->upkeep.done), total);
	double seconds = (double)(gw_now_ns() - w->began_ns) / (double)GW_NS_PER_SEC;
	char text[160], bar[BAR_WIDTH + 1], now[24], all[24], rate[24];
	struct winsize size = { .ws_col = 0 };
	unsigned columns;

	ioctl(STDERR_FILENO, TIOCGWINSZ, &size);
	columns = size.ws_col > 20 ? size.ws_col : 80;
	if (total == 0) {
		fprintf(stderr, "\r%.*s\033[K", (int)columns - 1, w->what);
		return;
	}
	gw_format_size(done, now, sizeof(now));
	gw_format_size(total, all, sizeof(all));
	gw_format_size((uint64_t)((double)done / GW_MAX(seconds, 0.001)), rate, sizeof(rate));
	memset(bar, '-', BAR_WIDTH);
	memset(bar, '#', (size_t)((double)done / (double)total * BAR_WIDTH));
	bar[BAR_WIDTH] = '\0';
	snprintf(text, sizeof(text), "[%s] %3u%% %s: %s of %s, %s/s", bar, (unsigned)((double)done * 100 / (double)total), w->what, now, all,
		 rate);
	fprintf(stderr, "\r%.*s\033[K", (int)columns - 1, text);
}

static void cancel(struct gw_cli_work *w)
{
	atomic_store(&w->upkeep.stop, true);
	for (size_t i = 0; i < ARRAY_SIZE(w->repos); i++) {
		if (w->repos[i])
			gw_repo_cancel(w->repos[i]);
	}
}

static void *look_after(void *arg)
{
	struct gw_cli_work *w = arg;
	bool cancelled = false;

	for (;;) {
		struct pollfd fds[] = { { w->end, POLLIN, 0 }, { w->signals, POLLIN, 0 } };
		struct signalfd_siginfo info;
		int n = poll(fds, 2, w->bar ? REDRAW_MS : -1);

		if (n > 0 && fds[0].revents)
			return NULL;
		if (n > 0 && fds[1].revents && read(w->signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
			if (cancelled)
				_exit(GW_CLI_CANCELLED);
			cancelled = true;
			cancel(w);
		}
		if (w->bar)
			draw(w);
	}
}

int gw_cli_work_begin(struct gw_cli_work *w, const struct gw_cli_repo *c, const char *what, struct gw_repo *other, struct gw_error *err)
{
	sigset_t set;
	int r;

	memset(w, 0, sizeof(*w));
	w->what = what;
	w->bar = !c->json && isatty(STDERR_FILENO);
	w->repos[0] = c->repo;
	w->repos[1] = other;
	w->began_ns = gw_now_ns();
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	w->signals = signalfd(-1, &set, SFD_CLOEXEC);
	w->end = eventfd(0, EFD_CLOEXEC);
	r = w->signals < 0 || w->end < 0 ? -errno : 0;
	if (r == 0) {
		/* Threads that the work begins have all signals blocked: they come to the descriptor. */
		pthread_sigmask(SIG_BLOCK, &set, &w->before);
		r = gw_thread_create(&w->thread, look_after, w);
		if (r < 0)
			pthread_sigmask(SIG_SETMASK, &w->before, NULL);
	}
	if (r < 0) {
		gw_closep(&w->signals);
		gw_closep(&w->end);
		return gw_error_errno(err, r, "cannot begin");
	}
	return 0;
}

void gw_cli_work_clear(const struct gw_cli_work *w)
{
	if (w->bar)
		fputs("\r\033[K", stderr);
}

void gw_cli_work_end(struct gw_cli_work *w)
{
	const uint64_t one = 1;
	ssize_t n = write(w->end, &one, sizeof(one));

	/* An eventfd that is zero takes it. */
	(void)n;
	pthread_join(w->thread, NULL);
	gw_cli_work_clear(w);
	gw_closep(&w->signals);
	gw_closep(&w->end);
	pthread_sigmask(SIG_SETMASK, &w->before, NULL);
}
