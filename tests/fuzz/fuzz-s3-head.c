// SPDX-License-Identifier: Apache-2.0
/* Headers of an S3 server's answer, line by line. */
#include <stdlib.h>
#include <string.h>

#include "migrate/repo/s3-http.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct gw_s3_head head;

	gw_s3_head_clear(&head);
	while (size) {
		const uint8_t *end = memchr(data, '\n', size);
		size_t len = end ? (size_t)(end - data) + 1 : size;

		gw_s3_head_line(&head, (const char *)data, len);
		data += len;
		size -= len;
	}
	/* A range is there whole or not at all; texts end. */
	if ((head.range_from == GW_S3_UNKNOWN) != (head.range_of == GW_S3_UNKNOWN) || (head.range_from == GW_S3_UNKNOWN) != (head.range_to == GW_S3_UNKNOWN) ||
	    strlen(head.etag) >= sizeof(head.etag) || strlen(head.mark) >= sizeof(head.mark) || strlen(head.region) >= sizeof(head.region) ||
	    head.status < 0 || head.status > 599 || head.retry_after_s > 3600)
		abort();
	return 0;
}
