// SPDX-License-Identifier: Apache-2.0
/*
 * What is at the other end of the serial line: any number of attached terminals, logs and sockets. The guest's output goes to a ring of
 * the last 64 KiB; each attached one reads it at its own pace from its own place, so that a slow or stuck one delays nobody
 * and merely misses what has left the ring. A thread does all reading and writing: a vCPU never waits for a console.
 */
#ifndef GW_VMM_TTY_H
#define GW_VMM_TTY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/error.h"

#define GW_TTY_RING 65536u

struct gw_tty;

struct gw_tty_ops {
	/* How many bytes of input are welcome now. On the console thread. */
	size_t (*room)(void *arg);
	/* Takes input, at most as much as there is room for. On the console thread. */
	void (*input)(void *arg, const uint8_t *data, size_t len);
};

struct gw_tty_client {
	int in;      /* -1: none. Its end ends only the input, unless `socket`. */
	int out;     /* -1: none */
	bool owned;  /* the descriptors are closed when it is detached */
	bool socket; /* in and out are one socket: its end detaches */
	bool replay; /* begins with what the ring holds, else with what comes from now on */
	/* May change what was read (never longer) before it goes on; may be NULL. On the console thread. */
	size_t (*filter)(void *arg, uint8_t *data, size_t len);
	void *arg;
};

int gw_tty_new(const struct gw_tty_ops *ops, void *arg, struct gw_tty **ret, struct gw_error *err);
/* Gives what is still to be written a moment (half a second), then ends the thread. Takes NULL. */
void gw_tty_free(struct gw_tty *tty);

/* Any thread. Takes owned descriptors in every case. -ENOSPC past 16 clients. */
int gw_tty_attach(struct gw_tty *tty, const struct gw_tty_client *client, struct gw_error *err);
/* Output of the guest. */
void gw_tty_put(struct gw_tty *tty, uint8_t byte);
/* There is room for input again. */
void gw_tty_kick(struct gw_tty *tty);

#endif
