// SPDX-License-Identifier: Apache-2.0
/* Libraries that are loaded late; see late.h. */
#include "lib/late.h"

#include <dlfcn.h>
#include <errno.h>

int gw_late_load(const char *library, const struct gw_late_function *functions, size_t count, struct gw_error *err)
{
	void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);

	for (size_t i = 0; handle && i < count; i++) {
		*functions[i].at = dlsym(handle, functions[i].name);
		if (!*functions[i].at)
			handle = NULL;
	}
	return handle ? 0 : gw_error_set(err, ENOENT, "%s is not installed, or too old: %s", library, dlerror() ?: "?");
}
