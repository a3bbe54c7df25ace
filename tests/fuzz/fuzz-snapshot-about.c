// SPDX-License-Identifier: Apache-2.0
/* A snapshot's part "about", which whoever has the repository's key can have written: an error, or a VM that passes a peer's checks. */
#include <stdint.h>
#include <stdlib.h>

#include "agent/snapshot.h"
#include "agent/vmconfig.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What was understood is understood again. */
static void again(const Godwit__SnapshotAbout *about)
{
	size_t len = godwit__snapshot_about__get_packed_size(about);
	uint8_t *packed = malloc(len);
	Godwit__SnapshotAbout *copy = NULL;

	if (!packed || godwit__snapshot_about__pack(about, packed) != len || gw_snapshot_about_decode(packed, len, &copy, NULL) < 0 ||
	    copy->suspended != about->suspended || copy->vm->epoch != about->vm->epoch)
		abort();
	godwit__snapshot_about__free_unpacked(copy, NULL);
	free(packed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct gw_error err = GW_ERROR_INIT;
	Godwit__SnapshotAbout *about = NULL;

	if (gw_snapshot_about_decode(data, size, &about, &err) < 0) {
		if (about || !err.msg[0])
			abort();
		return 0;
	}
	/* What resuming reaches for without looking. */
	if (!about->vm || !about->vm->config || !about->vm->features || !about->vm->kernel || !about->vm->initrd || about->vm->epoch + 1 == 0 ||
	    gw_vmconfig_check(about->vm->config, &err) < 0)
		abort();
	again(about);
	godwit__snapshot_about__free_unpacked(about, NULL);
	return 0;
}
