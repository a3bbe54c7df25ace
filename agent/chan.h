// SPDX-License-Identifier: Apache-2.0
/*
 * One connection between CLI and agent or between two agents: a UNIX socket, or TLS 1.3 over TCP with certificates on both
 * sides. Frames (proto/frame.h) and, for the serial console, plain bytes. A channel is used by one thread at a time.
 */
#ifndef GW_AGENT_CHAN_H
#define GW_AGENT_CHAN_H

#include <openssl/ssl.h>
#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stdint.h>

#include "agent/pki.h"
#include "lib/buf.h"
#include "lib/error.h"

#define GW_FRAME_AGENT_REQUEST 16
#define GW_FRAME_AGENT_REPLY 17
#define GW_FRAME_AGENT_EVENT 18
/* Longest body that agents take; the largest there is holds a piece of a boot file. */
#define GW_AGENT_FRAME_MAX (2u << 20)
#define GW_BOOT_PIECE (1u << 20)

struct gw_chan;

/* TLS 1.3 only, no tickets, the other side's certificate required. `server` says which end. */
int gw_tls_new(const char *ca, const char *cert, const char *key, bool server, SSL_CTX **ret, struct gw_error *err);

int gw_chan_connect_unix(const char *path, struct gw_chan **ret, struct gw_error *err);
/* Takes fd, also on failure. */
int gw_chan_from_unix(int fd, struct gw_chan **ret, struct gw_error *err);
/*
 * Connects to "HOST:PORT" and requires that the other side is a host whose certificate has the name `name`, which may be
 * an IP address.
 */
int gw_chan_connect_tls(SSL_CTX *tls, const char *address, const char *name, uint64_t deadline_ns, struct gw_chan **ret,
			struct gw_error *err);
/* Takes fd, also on failure. */
int gw_chan_accept_tls(SSL_CTX *tls, int fd, uint64_t deadline_ns, struct gw_chan **ret, struct gw_error *err);
/* Says good-bye where TLS has it. Takes NULL. */
void gw_chan_free(struct gw_chan *c);
static inline void gw_chan_freep(struct gw_chan **p)
{
	gw_chan_free(*p);
}

enum gw_role gw_chan_role(const struct gw_chan *c); /* of the other side */
const char *gw_chan_peer(const struct gw_chan *c);  /* its name; "local" on a UNIX socket */
int gw_chan_fd(const struct gw_chan *c);
/* Whether bytes wait inside TLS, which poll() on the descriptor does not see. */
bool gw_chan_pending(const struct gw_chan *c);
/* True when the other side has gone; false also when bytes are there. */
bool gw_chan_closed(struct gw_chan *c);

int gw_chan_send(struct gw_chan *c, uint16_t type, const ProtobufCMessage *msg, uint64_t deadline_ns);
/* Reads one frame; the body replaces what `body` held. -EPROTO past `max` bytes or malformed, -EPIPE at the end. */
int gw_chan_recv(struct gw_chan *c, uint16_t *type, struct gw_buf *body, size_t max, uint64_t deadline_ns);

/* Plain bytes. gw_chan_read() gives at least one, or -EAGAIN when there is none now, -EPIPE at the end. */
ssize_t gw_chan_read(struct gw_chan *c, void *data, size_t len);
int gw_chan_write(struct gw_chan *c, const void *data, size_t len, uint64_t deadline_ns);

#endif
