// SPDX-License-Identifier: Apache-2.0
/* A channel of a move; see channel.h. */
#include "migrate/channel.h"

#include <errno.h>
#include <openssl/err.h>
#include <string.h>
#include <unistd.h>

#include "lib/util.h"
#include "migrate/tls.h"

/* Full size of a TLS record: what is smaller is gathered first, since each record costs a header, a tag and a set-up. */
#define RECORD 16384u
/*
 * Bytes under one key before it is changed: far below the 2^24.5 full records that AES-GCM bears (RFC 8446 §5.5).
 */
#define REKEY_BYTES (64ull << 30)

struct gw_channel {
	struct gw_wire wire;
	struct gw_tls_key key;
	SSL *ssl;             /* NULL in the clear */
	uint64_t under_key;   /* bytes written since the last key update */
	size_t gathered;      /* bytes in `gather` */
	size_t staged, taken; /* clear reads: bytes in `gather_in`, and how many of them were used */
	uint8_t gather[RECORD];
	uint8_t gather_in[RECORD];
};

int gw_channel_new(const struct gw_channel_config *config, struct gw_channel **ret, struct gw_error *err)
{
	struct gw_channel *ch;
	int r = 0;

#ifndef GW_BENCH_SWITCHES
	if (config->clear) {
		close(config->fd);
		return gw_error_set(err, EPERM, "this build moves VMs encrypted only");
	}
#endif
	ch = calloc(1, sizeof(*ch));
	if (!ch) {
		close(config->fd);
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	if (gw_wire_init(&ch->wire, config->fd, config->wake_fd) < 0) {
		free(ch);
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	if (!config->clear) {
		gw_tls_key_init(&ch->key, config->what ?: "move", config->secret, config->move_id, config->number);
		ch->wire.read_deadline = config->deadline_ns;
		r = gw_tls_handshake(&ch->wire, &ch->key, config->client, &ch->ssl, err);
		OPENSSL_cleanse(ch->key.secret, sizeof(ch->key.secret));
	}
	if (r < 0) {
		gw_channel_free(ch);
		return r;
	}
	*ret = ch;
	return 0;
}

void gw_channel_free(struct gw_channel *ch)
{
	if (!ch)
		return;
	SSL_free(ch->ssl);
	gw_wire_release(&ch->wire);
	OPENSSL_cleanse(ch, sizeof(*ch));
	free(ch);
}

/* What went wrong below TLS explains it best; a failure of TLS itself means that the bytes were changed on their way. */
static int tls_error(struct gw_channel *ch, int n)
{
	int e = SSL_get_error(ch->ssl, n);

	ERR_clear_error();
	if (ch->wire.error)
		return ch->wire.error;
	ch->wire.error = e == SSL_ERROR_ZERO_RETURN ? -EPIPE : -EBADMSG;
	return ch->wire.error;
}

static int put(struct gw_channel *ch, const void *data, size_t len)
{
	size_t done;
	int n;

	if (len == 0)
		return 0;
	if (!ch->ssl)
		return len >= RECORD ? gw_wire_direct(&ch->wire, data, len) : gw_wire_put(&ch->wire, data, len);
	if (ch->under_key > REKEY_BYTES) {
		ch->under_key = 0;
		if (SSL_key_update(ch->ssl, SSL_KEY_UPDATE_NOT_REQUESTED) != 1)
			return tls_error(ch, 0);
	}
	ch->under_key += len;
	n = SSL_write_ex(ch->ssl, data, len, &done);
	return n == 1 ? 0 : tls_error(ch, n);
}

static int put_gathered(struct gw_channel *ch)
{
	size_t len = ch->gathered;

	ch->gathered = 0;
	return put(ch, ch->gather, len);
}

int gw_channel_write(struct gw_channel *ch, const void *data, size_t len)
{
	const uint8_t *p = data;
	int r;

	/* Long runs go as they are: full records straight from the caller's memory. */
	if (len >= RECORD) {
		r = put_gathered(ch);
		return r < 0 ? r : put(ch, p, len);
	}
	if (ch->gathered + len > RECORD) {
		size_t n = RECORD - ch->gathered;

		memcpy(ch->gather + ch->gathered, p, n);
		ch->gathered = RECORD;
		r = put_gathered(ch);
		if (r < 0)
			return r;
		p += n;
		len -= n;
	}
	memcpy(ch->gather + ch->gathered, p, len);
	ch->gathered += len;
	return ch->wire.error;
}

int gw_channel_flush(struct gw_channel *ch)
{
	int r = put_gathered(ch);

	return r < 0 ? r : gw_wire_flush(&ch->wire);
}

static int read_tls(struct gw_channel *ch, uint8_t *p, size_t len)
{
	while (len > 0) {
		size_t n;
		int r = SSL_read_ex(ch->ssl, p, len, &n);

		if (r != 1)
			return tls_error(ch, r);
		p += n;
		len -= n;
	}
	return 0;
}

static int read_clear(struct gw_channel *ch, uint8_t *p, size_t len)
{
	while (len > 0) {
		size_t n = GW_MIN(len, ch->staged - ch->taken);
		ssize_t got;

		memcpy(p, ch->gather_in + ch->taken, n);
		ch->taken += n;
		p += n;
		len -= n;
		if (len == 0)
			break;
		if (len >= RECORD) {
			got = gw_wire_get(&ch->wire, p, len);
			if (got < 0)
				return (int)got;
			p += got;
			len -= (size_t)got;
			continue;
		}
		got = gw_wire_get(&ch->wire, ch->gather_in, RECORD);
		if (got < 0)
			return (int)got;
		ch->staged = (size_t)got;
		ch->taken = 0;
	}
	return 0;
}

int gw_channel_read(struct gw_channel *ch, void *data, size_t len, uint64_t deadline_ns)
{
	if (ch->wire.error)
		return ch->wire.error;
	ch->wire.read_deadline = deadline_ns;
	return ch->ssl ? read_tls(ch, data, len) : read_clear(ch, data, len);
}

int gw_channel_wait(struct gw_channel *ch, uint64_t deadline_ns)
{
	if (ch->wire.error)
		return ch->wire.error;
	if (ch->ssl ? SSL_has_pending(ch->ssl) : ch->staged > ch->taken)
		return 0;
	return gw_wire_wait_readable(&ch->wire, deadline_ns);
}

void gw_channel_ignore_wake(struct gw_channel *ch)
{
	ch->wire.ignore_wake = true;
	/* A read that was woken has lost no byte: the stream is whole and may be used on. */
	if (ch->wire.error == -ECANCELED && !ch->wire.torn)
		ch->wire.error = 0;
}

void gw_channel_set_stall(struct gw_channel *ch, uint64_t ns)
{
	ch->wire.stall_ns = ns;
}

uint64_t gw_channel_sent(const struct gw_channel *ch)
{
	return atomic_load_explicit(&ch->wire.sent, memory_order_relaxed);
}

uint64_t gw_channel_received(const struct gw_channel *ch)
{
	return atomic_load_explicit(&ch->wire.received, memory_order_relaxed);
}

const char *gw_channel_cipher(const struct gw_channel *ch)
{
	return ch->ssl ? SSL_get_cipher_name(ch->ssl) : NULL;
}

static int broken(struct gw_error *err, int r, const char *what)
{
	switch (r) {
	case -EPIPE:
		return gw_error_set(err, r, "the connection to the other side was lost while %s", what);
	case -ETIMEDOUT:
		return gw_error_set(err, r, "the other side did not answer in time while %s", what);
	case -EBADMSG:
		return gw_error_set(err, r, "the stream was corrupted on its way while %s", what);
	case -ECANCELED:
		return gw_error_set(err, r, "cancelled");
	default:
		return gw_error_errno(err, r, "%s", what);
	}
}

int gw_channel_send(struct gw_channel *ch, uint16_t type, const ProtobufCMessage *msg, struct gw_error *err)
{
	gw_autobuf buf = GW_BUF_INIT;
	int r;

	r = gw_frame_pack(&buf, type, msg);
	if (r == 0)
		r = gw_channel_write(ch, buf.data, buf.len);
	if (r == 0)
		r = gw_channel_flush(ch);
	return r < 0 ? broken(err, r, "sending a control message") : 0;
}

int gw_channel_receive(struct gw_channel *ch, struct gw_frame_header *h, uint8_t **body, uint64_t deadline_ns,
		       struct gw_error *err)
{
	gw_autofree uint8_t *data = NULL;
	uint8_t raw[GW_FRAME_HEADER];
	int r;

	r = gw_channel_read(ch, raw, sizeof(raw), deadline_ns);
	if (r < 0)
		return broken(err, r, "waiting for a control message");
	if (gw_frame_parse_header(raw, h) < 0)
		return gw_error_set(err, EPROTO, "malformed control message");
	data = malloc((size_t)h->len + 1);
	if (!data)
		return gw_error_set(err, ENOMEM, "out of memory");
	r = gw_channel_read(ch, data, h->len, deadline_ns);
	if (r < 0)
		return broken(err, r, "reading a control message");
	*body = gw_steal_ptr(&data);
	return 0;
}
