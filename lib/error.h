// SPDX-License-Identifier: Apache-2.0
/*
 * Errors: functions return 0 or a negative errno; where a person must learn why, the last parameter is a
 * struct gw_error that the callee fills and callers wrap with context on the way up. Outputs other than the
 * error are left untouched on failure.
 */
#ifndef GW_LIB_ERROR_H
#define GW_LIB_ERROR_H

#include <stdarg.h>

#define GW_ERROR_MAX 512

struct gw_error {
	int code;                /* positive errno, 0 when unset */
	char msg[GW_ERROR_MAX];  /* one line, no final full stop */
};

/* Initialise with `struct gw_error err = GW_ERROR_INIT;`. */
#define GW_ERROR_INIT { 0, "" }

/*
 * Sets `err` (may be NULL) to errno value `code` (either sign) and the formatted message. Returns -|code|, so that
 * `return gw_error_set(err, EINVAL, "...")` is the usual form.
 */
int gw_error_set(struct gw_error *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Like gw_error_set() with ": <strerror(code)>" appended. */
int gw_error_errno(struct gw_error *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Puts "<formatted>: " before the message of `err` (may be NULL). Returns -err->code, or -EIO if unset. */
int gw_error_wrap(struct gw_error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The message, or the text of the code when no message was set; never NULL. */
const char *gw_error_text(const struct gw_error *err);

#endif
