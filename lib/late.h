// SPDX-License-Identifier: Apache-2.0
/*
 * Libraries that few runs need, loaded when something first needs them: libcurl and libnbd bring forty more, which cost each process 6 ms of its start and
 * each VMM 1.4 MiB of memory of its own.
 *
 * A file for the library (migrate/repo/late-curl.c, vmm/late-nbd.c) defines the functions of it that are used, under their own names, by a list
 *
 *   #define FUNCTIONS(F) F(CURL *, curl_easy_init, (void), ()) ...
 *   GW_LATE_LIBRARY(FUNCTIONS, FUNCTIONS, "libcurl.so.4")
 *
 * so that who calls them does so as ever, once load() has returned 0. The second list has those too that the file defines itself, by late_NAME. Programs are not
 * linked with the library: ldd does not name it.
 */
#ifndef GW_LIB_LATE_H
#define GW_LIB_LATE_H

#include <pthread.h>
#include <stddef.h>

#include "lib/error.h"

struct gw_late_function {
	const char *name;
	void **at;
};

/* Loads it and finds all functions. 0, or -ENOENT when the library or a function of it is not there; for as long as the process lives then. */
int gw_late_load(const char *library, const struct gw_late_function *functions, size_t count, struct gw_error *err);

#define GW_LATE_POINTER(type, name, params, args) static type(*late_##name) params;
#define GW_LATE_CALL(type, name, params, args) type name params { return late_##name args; }
#define GW_LATE_ENTRY(type, name, params, args) { #name, (void **)&late_##name },

/* The functions, and load(), which may be called by any thread and as often as one likes. */
#define GW_LATE_LIBRARY(functions, all, library)                                                                 \
	all(GW_LATE_POINTER)                                                                                      \
	functions(GW_LATE_CALL)                                                                                   \
	static struct gw_error late_error;                                                                        \
	static void late_once(void)                                                                               \
	{                                                                                                         \
		static const struct gw_late_function list[] = { all(GW_LATE_ENTRY) };                             \
                                                                                                                  \
		gw_late_load(library, list, sizeof(list) / sizeof(list[0]), &late_error);                         \
	}                                                                                                         \
	static int load(struct gw_error *err)                                                                     \
	{                                                                                                         \
		static pthread_once_t once = PTHREAD_ONCE_INIT;                                                   \
                                                                                                                  \
		pthread_once(&once, late_once);                                                                   \
		if (late_error.code && err)                                                                       \
			*err = late_error;                                                                        \
		return -late_error.code;                                                                          \
	}

#endif
