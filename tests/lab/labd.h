// SPDX-License-Identifier: Apache-2.0
/* What the parts of labd share: the frames of its protocol (labd.c tells it) and the services. */
#ifndef GW_LAB_LABD_H
#define GW_LAB_LABD_H

#include <stddef.h>
#include <stdint.h>

#define LABD_FRAME_MAX (256 * 1024)

/* Whole buffers; 0 or a negative errno, -ECONNRESET at the end of the stream. */
int labd_write_all(int fd, const void *data, size_t len);
int labd_read_all(int fd, void *data, size_t len);

int labd_send_frame(int sock, char type, const void *data, uint32_t len);
int labd_send_exit(int sock, uint32_t status);

/* Tells the client why its request failed; the connection ends with it. */
void labd_send_failure(int sock, const char *what, int error);

/* Each serves one request whose body (len bytes, then a NUL) was read. Commands run in the network namespace given. */
void labd_serve_exec(int sock, char *args, size_t len, int netns);
void labd_serve_put(int sock, const char *request, size_t len);
void labd_serve_get(int sock, const char *path);

#endif
