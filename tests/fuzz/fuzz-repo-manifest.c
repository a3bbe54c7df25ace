// SPDX-License-Identifier: Apache-2.0
/* Head, body and order of touches of a manifest, as they are after decryption. The first byte says which. */
#include <string.h>

#include "lib/util.h"
#include "migrate/repo/manifest.h"
#include "migrate/repo/touch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void head(const uint8_t *data, size_t size)
{
	static struct gw_snap_info info, again;
	struct gw_body_bind bind, bind_again;
	struct gw_buf out = GW_BUF_INIT;

	if (gw_manifest_decode_head(data, size, &info, &bind) < 0)
		return;
	/* What was understood is written as it was read. */
	if (gw_manifest_encode_head(&info, &bind, &out) < 0 || out.len != size || memcmp(out.data, data, size) ||
	    gw_manifest_decode_head(out.data, out.len, &again, &bind_again) < 0)
		__builtin_trap();
	gw_buf_release(&out);
}

static void body(const uint8_t *data, size_t size)
{
	struct gw_manifest *m = calloc(1, sizeof(*m));
	struct gw_buf out = GW_BUF_INIT;

	/* So that both numbers of the input are near to its runs. */
	m->info.pages = 1 << 20;
	m->info.used = size > 2 ? data[0] | data[1] << 8 : 0;
	if (size > 2 && gw_manifest_decode_body(data + 2, size - 2, m) == 0) {
		for (uint64_t i = 0; i < m->nruns; i++) {
			if (!gw_places_at(&m->places, m->runs[i].segment, m->runs[i].slot + m->runs[i].count - 1))
				__builtin_trap();
		}
		gw_manifest_encode_body(m, &out);
	}
	gw_buf_release(&out);
	gw_manifest_release(m);
	free(m);
}

static void touches(const uint8_t *data, size_t size)
{
	struct gw_snap_range *ranges;
	size_t n;

	if (gw_touch_decode(data, size, 100000, &ranges, &n) == 0)
		free(ranges);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size == 0)
		return 0;
	switch (data[0] % 3) {
	case 0:
		head(data + 1, size - 1);
		break;
	case 1:
		body(data + 1, size - 1);
		break;
	default:
		touches(data + 1, size - 1);
	}
	return 0;
}
