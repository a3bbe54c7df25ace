// SPDX-License-Identifier: Apache-2.0
/* Log lines on standard error; see log.h. */
#include "lib/log.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "lib/clock.h"
#include "lib/util.h"

/* Set once before threads start, read-only afterwards. */
static struct {
	const char *program;
	const char *context;
	enum gw_log_level max;
} log_to = { "godwit", NULL, GW_LOG_INFO };

void gw_log_init(const char *program, const char *context, enum gw_log_level max)
{
	log_to.program = program;
	log_to.context = context;
	log_to.max = max;
}

void gw_log(enum gw_log_level level, const char *fmt, ...)
{
	static const char *const word[] = { "error: ", "warning: ", "", "debug: " };
	int saved = errno;
	char line[1024];
	size_t used;
	va_list ap;

	if (level > log_to.max)
		return;
	used = (size_t)snprintf(line, sizeof(line), "%s%s%s%s: %s", log_to.program, log_to.context ? "[" : "",
				log_to.context ?: "", log_to.context ? "]" : "", word[level]);
	if (used < sizeof(line) - 1) {
		va_start(ap, fmt);
		vsnprintf(line + used, sizeof(line) - 1 - used, fmt, ap);
		va_end(ap);
	}
	used = strnlen(line, sizeof(line) - 2);
	line[used++] = '\n';
	/* One write a line, so that lines of several threads and processes do not mix. */
	if (write(STDERR_FILENO, line, used) < 0) {
		/* Nowhere left to tell it. */
	}
	errno = saved;
}

int gw_ratelimit_pass(struct gw_ratelimit *rl, uint32_t burst)
{
	uint64_t now = gw_now_ns();
	uint64_t start = __atomic_load_n(&rl->window_ns, __ATOMIC_RELAXED);

	if (now - start >= GW_NS_PER_SEC &&
	    __atomic_compare_exchange_n(&rl->window_ns, &start, now, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
		uint32_t lost = __atomic_exchange_n(&rl->suppressed, 0, __ATOMIC_RELAXED);

		__atomic_store_n(&rl->passed, 0, __ATOMIC_RELAXED);
		if (lost)
			gw_log(GW_LOG_WARN, "%u similar lines suppressed", lost);
	}
	if (__atomic_fetch_add(&rl->passed, 1, __ATOMIC_RELAXED) < burst)
		return 1;
	__atomic_fetch_add(&rl->suppressed, 1, __ATOMIC_RELAXED);
	return 0;
}
