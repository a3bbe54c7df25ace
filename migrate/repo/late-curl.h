// SPDX-License-Identifier: Apache-2.0
/* libcurl, which is loaded when it is needed (lib/late.h). */
#ifndef GW_MIGRATE_REPO_LATE_CURL_H
#define GW_MIGRATE_REPO_LATE_CURL_H

/* Its checks of types are macros around functions that are defined here. */
#define CURL_DISABLE_TYPECHECK
#include <curl/curl.h>

#include "lib/error.h"

/* Before any of its functions is called. 0 or -ENOENT: it is not installed. */
int gw_late_curl(struct gw_error *err);

#endif
