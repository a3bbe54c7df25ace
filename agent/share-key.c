// SPDX-License-Identifier: Apache-2.0
/* Keys of sharing domains; see share-key.h. */
#include "agent/share-key.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "lib/io.h"
#include "lib/util.h"

static int make_key(const char *dir, const char *path, uint8_t key[GW_SHARE_KEY_LEN], struct gw_error *err)
{
	int r = gw_mkdir_p(dir, 0700);

	if (r < 0)
		return gw_error_errno(err, r, "cannot make %s", dir);
	if (getrandom(key, GW_SHARE_KEY_LEN, 0) != GW_SHARE_KEY_LEN)
		return gw_error_set(err, EIO, "no randomness");
	return gw_write_file_atomic(path, key, GW_SHARE_KEY_LEN, 0600, err);
}

int gw_share_key(const char *state, const char *domain, uint8_t key[GW_SHARE_KEY_LEN], struct gw_error *err)
{
	gw_autofree char *dir = NULL, *path = NULL, *data = NULL;
	size_t len = 0;
	int r;

	if (asprintf(&dir, "%s/share", state) < 0 || asprintf(&path, "%s/%s", dir, domain) < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_read_file(path, GW_SHARE_KEY_LEN, &data, &len, err);
	if (r == -ENOENT)
		return make_key(dir, path, key, err);
	if (r == 0 && len == GW_SHARE_KEY_LEN)
		memcpy(key, data, GW_SHARE_KEY_LEN);
	else if (r == 0)
		r = gw_error_set(err, EPROTO, "%s is not the key of a sharing domain", path);
	if (data)
		explicit_bzero(data, len);
	return r;
}
