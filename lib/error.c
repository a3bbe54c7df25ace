// SPDX-License-Identifier: Apache-2.0
/* The one error type; see error.h. */
#include "lib/error.h"

#include <errno.h>
#include <string.h>

#include "lib/util.h"

static int fill(struct gw_error *err, int code, const char *fmt, va_list ap)
{
	code = code < 0 ? -code : code;
	if (code == 0)
		code = EIO;
	if (err) {
		err->code = code;
		vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
	}
	return -code;
}

int gw_error_set(struct gw_error *err, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	code = fill(err, code, fmt, ap);
	va_end(ap);
	return code;
}

int gw_error_errno(struct gw_error *err, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	code = fill(err, code, fmt, ap);
	va_end(ap);
	if (err) {
		size_t used = strlen(err->msg);

		snprintf(err->msg + used, sizeof(err->msg) - used, ": %s", strerrordesc_np(-code) ?: "unknown error");
	}
	return code;
}

int gw_error_wrap(struct gw_error *err, const char *fmt, ...)
{
	char inner[GW_ERROR_MAX];
	size_t used;
	va_list ap;

	if (!err)
		return -EIO;
	memcpy(inner, err->msg, sizeof(inner));
	va_start(ap, fmt);
	vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
	va_end(ap);
	used = strlen(err->msg);
	snprintf(err->msg + used, sizeof(err->msg) - used, ": %s", inner);
	if (!err->code)
		err->code = EIO;
	return -err->code;
}

const char *gw_error_text(const struct gw_error *err)
{
	if (err->msg[0])
		return err->msg;
	return strerrordesc_np(err->code) ?: "unknown error";
}
