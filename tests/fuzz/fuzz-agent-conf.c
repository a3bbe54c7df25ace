// SPDX-License-Identifier: Apache-2.0
/* godwitd's configuration and host addresses. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "agent/conf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct gw_error err = GW_ERROR_INIT;
	char host[256], port[6], address[280], name[256];
	struct gw_conf conf;
	char *text;

	gw_conf_parse("fuzz", (const char *)data, size, &conf, &err);
	gw_conf_release(&conf);
	text = strndup((const char *)data, size);
	if (text) {
		gw_parse_address(text, "1", host, port, &err);
		gw_split_host(text, address, name, &err);
	}
	free(text);
	return 0;
}
