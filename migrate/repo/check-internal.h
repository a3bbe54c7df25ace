// SPDX-License-Identifier: Apache-2.0
/* What check.c and check-data.c share. */
#ifndef GW_MIGRATE_REPO_CHECK_INTERNAL_H
#define GW_MIGRATE_REPO_CHECK_INTERNAL_H

#include <pthread.h>

#include "migrate/repo/survey.h"
#include "migrate/repo/upkeep.h"

struct checking {
	struct gw_repo *repo;
	const struct gw_repo_check_params *params;
	struct gw_repo_check_result *result;
	pthread_mutex_t lock; /* for result and the callback */
};
void gw_check_problem(void *checking, const char *object, const char *text);
/* Reads every blob that an index of the survey tells of. */
int gw_check_data(struct checking *c, const struct gw_survey *s, struct gw_error *err);

#endif
