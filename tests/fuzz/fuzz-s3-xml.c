// SPDX-License-Identifier: Apache-2.0
/* What an S3 server may answer in XML: listings, errors, the two answers around an upload. */
#include <stdlib.h>
#include <string.h>

#include "migrate/repo/s3-xml.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static char id[GW_S3_MAX_TOKEN + 1];
	struct gw_error err = GW_ERROR_INIT;
	struct gw_s3_fault fault;
	struct gw_s3_list list;

	if (gw_s3_parse_list(data, size, &list, &err) == 0) {
		/* What a caller relies on. */
		if (list.count > GW_S3_PAGE || (list.truncated && !list.token[0]))
			abort();
		for (unsigned i = 0; i < list.count; i++) {
			if (!list.entries[i].key[0] || strlen(list.entries[i].key) > GW_S3_MAX_KEY)
				abort();
		}
		gw_s3_list_release(&list);
	}
	gw_s3_parse_fault(data, size, &fault);
	for (const char *p = fault.message; *p; p++) {
		if (*p < ' ' || *p > '~')
			abort();
	}
	if (gw_s3_parse_upload(data, size, id, &err) == 0 && !id[0])
		abort();
	gw_s3_parse_complete(data, size, &fault, &err);
	return 0;
}
