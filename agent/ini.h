// SPDX-License-Identifier: Apache-2.0
/*
 * INI files by table: [kind] or [kind NAME] headers and "key = value" lines, '#' or ';' starting comment lines. Every error
 * names file and line and what is allowed. Our own and not libinih, whose Debian build cuts lines at 200 bytes without a
 * word (kernel command lines are longer), takes " ;" for a comment, keeps line numbers to itself and does not tell of
 * sections without keys.
 */
#ifndef GW_AGENT_INI_H
#define GW_AGENT_INI_H

#include <stdbool.h>
#include <stddef.h>

#include "lib/error.h"

#define GW_INI_FILE_MAX (256u << 10) /* bytes */
#define GW_INI_LINE_MAX 8192u        /* bytes */

struct gw_ini_key {
	const char *name;
	/* Stores `value` (not empty) into the object that open() gave. */
	int (*set)(void *object, const char *value, struct gw_error *err);
};

struct gw_ini_section {
	const char *kind;
	bool named;                    /* [kind NAME], may come several times; else once */
	const struct gw_ini_key *keys; /* at most 32 */
	unsigned nkeys;
	/* Instead of keys: takes any key. */
	int (*any)(void *object, const char *key, const char *value, struct gw_error *err);
	/* Called at the header; name is NULL when not `named`. *object goes to set() and any(). */
	int (*open)(void *ctx, const char *name, void **object, struct gw_error *err);
};

/*
 * Parses `len` bytes of `text`; `file` is for messages. -EINVAL and others with "FILE:LINE: ..." in err; what was stored before
 * the error stays in ctx.
 */
int gw_ini_parse(const char *file, const char *text, size_t len, const struct gw_ini_section *sections, unsigned nsections,
		 void *ctx, struct gw_error *err);

#endif
