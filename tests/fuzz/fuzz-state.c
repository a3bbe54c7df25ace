// SPDX-License-Identifier: Apache-2.0
/* Device state of a hostile peer: any bytes, read by a table with every kind of field. */
#include <stdint.h>
#include <string.h>

#include "lib/buf.h"
#include "lib/util.h"
#include "vmm/state.h"

struct dev {
	bool flag;
	uint64_t wide;
	uint8_t bytes[8];
	struct gw_buf buf;
};

static const struct gw_state_field fields[] = {
	GW_STATE_UINT(struct dev, flag, 1),
	GW_STATE_UINT(struct dev, wide, 2),
	GW_STATE_BYTES(struct dev, bytes, 1),
	GW_STATE_BUF(struct dev, buf, 64, 1),
	{},
};
static const struct gw_state_desc desc = { "dev", 2, 1, fields };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct gw_state_reader *r = NULL;
	struct gw_error err = GW_ERROR_INIT;
	struct dev d;

	memset(&d, 0, sizeof(d));
	if (gw_state_reader_new(data, len, &r, &err) < 0)
		return 0;
	gw_state_get(r, &desc, "0", &d, &err);
	gw_state_reader_done(r, &err);
	gw_state_reader_free(r);
	gw_buf_release(&d.buf);
	return 0;
}
