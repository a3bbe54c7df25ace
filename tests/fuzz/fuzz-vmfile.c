// SPDX-License-Identifier: Apache-2.0
/* VM files: whatever the bytes, an error or a configuration that passes the check, is stored and comes back the same. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "agent/vmconfig.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct gw_error err = GW_ERROR_INIT;
	Godwit__VmConfig *c = NULL, *copy;

	if (gw_vmconfig_parse("fuzz", (const char *)data, size, &c, &err) < 0) {
		if (c || !err.msg[0])
			abort();
		return 0;
	}
	if (gw_vmconfig_check(c, &err) < 0)
		abort();
	copy = gw_vmconfig_copy(c);
	if (!copy || gw_vmconfig_check(copy, &err) < 0 || strcmp(copy->cmdline, c->cmdline) != 0)
		abort();
	gw_vmconfig_free(copy);
	gw_vmconfig_free(c);
	return 0;
}
