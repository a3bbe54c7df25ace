// SPDX-License-Identifier: Apache-2.0
/* Named failpoints; see failpoint.h. */
#include "lib/failpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>

#include "lib/clock.h"
#include "lib/log.h"
#include "lib/parse.h"
#include "lib/util.h"

#define MAX_POINTS 64

struct point {
	char name[48];
	char action[160];
};

/* Written by gw_failpoint_init() before threads start, read-only afterwards. */
static struct point points[MAX_POINTS];
static unsigned count;

static int add_point(const char *text, size_t len, struct gw_error *err)
{
	const char *eq = memchr(text, '=', len);
	struct point *p = &points[count];

	if (!eq || eq == text || (size_t)(eq - text) >= sizeof(p->name) || len - (size_t)(eq - text) > sizeof(p->action))
		return gw_error_set(err, EINVAL, "GODWIT_FAILPOINTS: '%.*s' is not name=action", (int)len, text);
	if (count == MAX_POINTS)
		return gw_error_set(err, E2BIG, "GODWIT_FAILPOINTS holds more than %d entries", MAX_POINTS);
	memcpy(p->name, text, (size_t)(eq - text));
	memcpy(p->action, eq + 1, len - (size_t)(eq - text) - 1);
	count++;
	gw_warn("failpoint %s=%s is armed", p->name, p->action);
	return 0;
}

int gw_failpoint_init(struct gw_error *err)
{
	const char *text = getenv("GODWIT_FAILPOINTS");

	while (text && *text) {
		size_t len = strcspn(text, ",");
		int r = add_point(text, len, err);

		if (r < 0)
			return r;
		text += len + (text[len] == ',');
	}
	return 0;
}

static void wait_for_file(const char *path)
{
	uint64_t deadline = gw_now_ns() + 60 * GW_NS_PER_SEC;
	char hit[sizeof(points[0].action) + 8];
	int fd;

	snprintf(hit, sizeof(hit), "%s.hit", path);
	fd = open(hit, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd >= 0)
		close(fd);
	while (access(path, F_OK) < 0 && gw_now_ns() < deadline)
		usleep(1000);
}

static int act(const struct point *p)
{
	uint64_t ms;

	gw_warn("failpoint %s: %s", p->name, p->action);
	if (!strcmp(p->action, "kill"))
		raise(SIGKILL);
	else if (!strcmp(p->action, "stop"))
		raise(SIGSTOP);
	else if (!strcmp(p->action, "exit"))
		_exit(1);
	else if (!strcmp(p->action, "error"))
		return -EIO;
	else if (!strncmp(p->action, "wait:", 5))
		wait_for_file(p->action + 5);
	else if (!strncmp(p->action, "delay:", 6) && gw_parse_uint(p->action + 6, p->name, 0, 600000, &ms, NULL) == 0)
		usleep((useconds_t)(ms * 1000));
	else
		gw_warn("failpoint %s: no such action '%s'", p->name, p->action);
	return 0;
}

int gw_failpoint(const char *name)
{
	for (unsigned i = 0; i < count; i++) {
		if (!strcmp(points[i].name, name))
			return act(&points[i]);
	}
	return 0;
}
