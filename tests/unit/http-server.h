// SPDX-License-Identifier: Apache-2.0
/* A small HTTP server on loopback whose answers, good and bad, a test writes itself. */
#ifndef GW_TESTS_UNIT_HTTP_SERVER_H
#define GW_TESTS_UNIT_HTTP_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct http_request {
	unsigned number;    /* of this server, from 1 on */
	char method[16];
	char target[4096];  /* path and query */
	char head[16384];   /* all lines, as they came */
	uint8_t *body;      /* the server's */
	size_t body_len;
};

/* In handlers, in place of cmocka's, which are for the test's own thread: ends the program. */
#define must(condition) \
	do { \
		if (!(condition)) \
			http_must_failed(__FILE__, __LINE__, #condition); \
	} while (0)
_Noreturn void http_must_failed(const char *file, int line, const char *condition);

/* The value of a header, "" when it was not sent. In a static buffer of the calling thread. */
const char *http_header(const struct http_request *r, const char *name);

/* Writes the answer; false: the connection is closed after it. Called by several threads at once. */
typedef bool http_handler(void *self, const struct http_request *r, int fd);

struct http_server;

struct http_server *http_server_new(http_handler *handler, void *self);
unsigned http_server_port(const struct http_server *s);
/* Requests so far. */
unsigned http_server_requests(const struct http_server *s);
/* True once the server is being freed: for handlers that wait. */
bool http_server_stopping(const struct http_server *s);
void http_server_free(struct http_server *s);

/* An answer with Content-Length; `headers` are lines ending in \r\n, or "". Always true. */
bool http_answer(int fd, const char *status, const char *headers, const void *body, size_t len);
/* Bytes as they are; what cannot be sent is left out. */
void http_raw(int fd, const void *data, size_t len);

#endif
