// SPDX-License-Identifier: Apache-2.0
/* libcurl's functions that are used, loaded when a bucket is first asked for by HTTP; see lib/late.h. */
#include "migrate/repo/late-curl.h"

#include <stdarg.h>

#include "lib/late.h"

/* Macros in front of the functions. */
#undef curl_easy_setopt

#define FUNCTIONS(F)                                                                                                       \
	F(CURLcode, curl_global_init, (long flags), (flags))                                                               \
	F(const char *, curl_easy_strerror, (CURLcode code), (code))                                                       \
	F(CURL *, curl_easy_init, (void), ())                                                                              \
	F(void, curl_easy_reset, (CURL * easy), (easy))                                                                    \
	F(void, curl_easy_cleanup, (CURL * easy), (easy))                                                                  \
	F(CURLM *, curl_multi_init, (void), ())                                                                            \
	F(CURLMcode, curl_multi_cleanup, (CURLM * multi), (multi))                                                         \
	F(CURLMcode, curl_multi_add_handle, (CURLM * multi, CURL * easy), (multi, easy))                                   \
	F(CURLMcode, curl_multi_remove_handle, (CURLM * multi, CURL * easy), (multi, easy))                                \
	F(CURLMcode, curl_multi_perform, (CURLM * multi, int *running), (multi, running))                                  \
	F(CURLMcode, curl_multi_poll, (CURLM * multi, struct curl_waitfd fds[], unsigned n, int ms, int *ret),             \
	  (multi, fds, n, ms, ret))                                                                                        \
	F(CURLMcode, curl_multi_wakeup, (CURLM * multi), (multi))                                                          \
	F(CURLMsg *, curl_multi_info_read, (CURLM * multi, int *left), (multi, left))                                      \
	F(struct curl_slist *, curl_slist_append, (struct curl_slist * list, const char *line), (list, line))              \
	F(void, curl_slist_free_all, (struct curl_slist * list), (list))

#define ALL(F)                                                                                                             \
	FUNCTIONS(F)                                                                                                       \
	F(CURLcode, curl_easy_setopt, (CURL * easy, CURLoption option, ...), ())                                           \
	F(time_t, curl_getdate, (const char *text, const time_t *unused), ())

GW_LATE_LIBRARY(FUNCTIONS, ALL, "libcurl.so.4")

/* A long, a pointer or a curl_off_t: by the x86-64 calling convention all are handed over alike. */
CURLcode curl_easy_setopt(CURL *easy, CURLoption option, ...)
{
	va_list args;
	void *value;

	va_start(args, option);
	value = va_arg(args, void *);
	va_end(args);
	return late_curl_easy_setopt(easy, option, value);
}

/* Also of a head that came by other ways. */
time_t curl_getdate(const char *text, const time_t *unused)
{
	return load(NULL) == 0 ? late_curl_getdate(text, unused) : -1;
}

int gw_late_curl(struct gw_error *err)
{
	return load(err);
}
