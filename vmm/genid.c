// SPDX-License-Identifier: Apache-2.0
/* The generation ID; see genid.h. */
#include "vmm/genid.h"

#include <errno.h>
#include <sys/random.h>

#include "vmm/memmap.h"

static const struct gw_state_field fields[] = {
	GW_STATE_BYTES(struct gw_genid, id, 1),
	GW_STATE_UINT(struct gw_genid, shown, 1),
	{ }
};
static const struct gw_state_desc desc = { "vmgenid", 1, 1, fields };

static int draw(struct gw_genid *genid, struct gw_error *err)
{
	if (getrandom(genid->id, sizeof(genid->id), 0) != sizeof(genid->id))
		return gw_error_set(err, EIO, "cannot draw a generation ID");
	return 0;
}

int gw_genid_init(struct gw_genid *genid, struct gw_error *err)
{
	genid->shown = false;
	return draw(genid, err);
}

int gw_genid_show(struct gw_genid *genid, struct gw_ram *ram, struct gw_error *err)
{
	int r = gw_ram_write(ram, GW_GPA_GENID, genid->id, sizeof(genid->id));

	if (r < 0)
		return gw_error_errno(err, r, "cannot write the generation ID");
	genid->shown = true;
	return 0;
}

int gw_genid_renew(struct gw_genid *genid, struct gw_ram *ram, struct gw_error *err)
{
	int r = draw(genid, err);

	return r < 0 || !genid->shown ? r : gw_genid_show(genid, ram, err);
}

int gw_genid_save(const struct gw_genid *genid, struct gw_state_writer *w, struct gw_error *err)
{
	int r = gw_state_put(w, &desc, "0", genid);

	return r < 0 ? gw_error_errno(err, r, "cannot save the generation ID") : 0;
}

int gw_genid_load(struct gw_genid *genid, struct gw_state_reader *r, struct gw_error *err)
{
	struct gw_error why = GW_ERROR_INIT;
	struct gw_genid loaded = *genid;
	int ret = gw_state_get(r, &desc, "0", &loaded, &why);

	if (ret == -ENOENT)
		loaded.shown = false;
	else if (ret < 0)
		return gw_error_set(err, -ret, "%s", gw_error_text(&why));
	*genid = loaded;
	return 0;
}
