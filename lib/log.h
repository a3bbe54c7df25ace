// SPDX-License-Identifier: Apache-2.0
/* Log lines on standard error: "<priority>program[vm]: message", the form that journald and syslog readers take. */
#ifndef GW_LIB_LOG_H
#define GW_LIB_LOG_H

#include <stdint.h>

enum gw_log_level { GW_LOG_ERROR, GW_LOG_WARN, GW_LOG_INFO, GW_LOG_DEBUG };

/* `program` and `context` (e.g. the VM's name, may be NULL) are borrowed for the life of the process. */
void gw_log_init(const char *program, const char *context, enum gw_log_level max);

void gw_log(enum gw_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define gw_error_log(...) gw_log(GW_LOG_ERROR, __VA_ARGS__)
#define gw_warn(...) gw_log(GW_LOG_WARN, __VA_ARGS__)
#define gw_info(...) gw_log(GW_LOG_INFO, __VA_ARGS__)
#define gw_debug(...) gw_log(GW_LOG_DEBUG, __VA_ARGS__)

/*
 * For what a guest or a peer can provoke at will: at most `burst` lines a second pass, the others are counted and told of
 * with the next that passes. Zero-initialise; thread-safe.
 */
struct gw_ratelimit {
	uint64_t window_ns; /* start of the present second */
	uint32_t passed;
	uint32_t suppressed;
};
/* True when a line may be logged now. */
int gw_ratelimit_pass(struct gw_ratelimit *rl, uint32_t burst);

#define gw_warn_limited(rl, ...) \
	do { \
		if (gw_ratelimit_pass((rl), 5)) \
			gw_log(GW_LOG_WARN, __VA_ARGS__); \
	} while (0)

#endif
