// SPDX-License-Identifier: Apache-2.0
/* Keys in files; see keyfile.h. */
#include "agent/keyfile.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "lib/io.h"
#include "lib/util.h"

static int make_key(const char *dir, const char *path, uint8_t key[GW_KEYFILE_LEN], struct gw_error *err)
{
	int r = gw_mkdir_p(dir, 0700);

	if (r < 0)
		return gw_error_errno(err, r, "cannot make %s", dir);
	if (getrandom(key, GW_KEYFILE_LEN, 0) != GW_KEYFILE_LEN)
		return gw_error_set(err, EIO, "no randomness");
	return gw_write_file_atomic(path, key, GW_KEYFILE_LEN, 0600, err);
}

int gw_keyfile(const char *state, const char *folder, const char *name, uint8_t key[GW_KEYFILE_LEN], struct gw_error *err)
{
	gw_autofree char *dir = NULL, *path = NULL, *data = NULL;
	size_t len = 0;
	int r;

	if (asprintf(&dir, "%s/%s", state, folder) < 0 || asprintf(&path, "%s/%s", dir, name) < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_read_file(path, GW_KEYFILE_LEN, &data, &len, err);
	if (r == -ENOENT)
		return make_key(dir, path, key, err);
	if (r == 0 && len == GW_KEYFILE_LEN)
		memcpy(key, data, GW_KEYFILE_LEN);
	else if (r == 0)
		r = gw_error_set(err, EPROTO, "%s is not a key of this agent", path);
	if (data)
		explicit_bzero(data, len);
	return r;
}
