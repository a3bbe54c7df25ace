// SPDX-License-Identifier: Apache-2.0
/* Connections between CLI and agents; see chan.h. */
#include "agent/chan.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "agent/conf.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/tcp.h"
#include "lib/util.h"
#include "proto/frame.h"

struct gw_chan {
	int fd;
	SSL *ssl; /* NULL on a UNIX socket */
	enum gw_role role;
	char peer[64];
};

int gw_tls_new(const char *ca, const char *cert, const char *key, bool server, SSL_CTX **ret, struct gw_error *err)
{
	SSL_CTX *ctx = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
	int r = 0;

	if (!ctx)
		return gw_ssl_error(err, ENOMEM, "cannot start TLS");
	SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
	SSL_CTX_set_mode(ctx, SSL_MODE_AUTO_RETRY | SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_num_tickets(ctx, 0);
	/* Also checks the purpose: a client's certificate has no serverAuth and cannot answer as a host. */
	SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	SSL_CTX_set_verify_depth(ctx, 3);
	if (SSL_CTX_load_verify_file(ctx, ca) != 1)
		r = gw_ssl_error(err, EINVAL, "cannot read the CA certificate %s", ca);
	else if (SSL_CTX_use_certificate_chain_file(ctx, cert) != 1)
		r = gw_ssl_error(err, EINVAL, "cannot read the certificate %s", cert);
	else if (SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM) != 1)
		r = gw_ssl_error(err, EINVAL, "cannot read the key %s", key);
	else if (SSL_CTX_check_private_key(ctx) != 1)
		r = gw_ssl_error(err, EINVAL, "%s and %s do not belong together", cert, key);
	if (r < 0) {
		SSL_CTX_free(ctx);
		return r;
	}
	*ret = ctx;
	return 0;
}

static int new_chan(int fd, struct gw_chan **ret, struct gw_error *err)
{
	struct gw_chan *c = calloc(1, sizeof(*c));

	if (!c) {
		close(fd);
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	c->fd = fd;
	*ret = c;
	return 0;
}

int gw_chan_from_unix(int fd, struct gw_chan **ret, struct gw_error *err)
{
	struct gw_chan *c = NULL;
	int r = new_chan(fd, &c, err);

	if (r < 0)
		return r;
	c->role = GW_ROLE_LOCAL;
	snprintf(c->peer, sizeof(c->peer), "local");
	*ret = c;
	return 0;
}

int gw_chan_connect_unix(const char *path, struct gw_chan **ret, struct gw_error *err)
{
	int fd, r = gw_unix_connect(path, &fd, err);

	return r < 0 ? r : gw_chan_from_unix(fd, ret, err);
}

/*
 * What the failed TLS call with result `n` waits for: waits for it and returns 0, or says why there is no going on.
 * OpenSSL's error queue is left for the caller.
 */
static int tls_wait(struct gw_chan *c, int n, uint64_t deadline_ns)
{
	int saved = errno;

	switch (SSL_get_error(c->ssl, n)) {
	case SSL_ERROR_WANT_READ:
		return gw_wait_fd(c->fd, POLLIN, deadline_ns);
	case SSL_ERROR_WANT_WRITE:
		return gw_wait_fd(c->fd, POLLOUT, deadline_ns);
	case SSL_ERROR_ZERO_RETURN:
		return -EPIPE;
	case SSL_ERROR_SYSCALL:
		return saved > 0 ? -saved : -EPIPE;
	default:
		/* An end without good-bye is how a killed peer looks. */
		return ERR_GET_REASON(ERR_peek_error()) == SSL_R_UNEXPECTED_EOF_WHILE_READING ? -EPIPE : -EPROTO;
	}
}

static int handshake_error(struct gw_chan *c, int r, const char *who, struct gw_error *err)
{
	long verify = SSL_get_verify_result(c->ssl);

	if (verify != X509_V_OK) {
		ERR_clear_error();
		return gw_error_set(err, EACCES, "the certificate of %s is refused: %s", who, X509_verify_cert_error_string(verify));
	}
	if (r == -EPROTO)
		return gw_ssl_error(err, EPROTO, "TLS handshake with %s", who);
	ERR_clear_error();
	return gw_error_errno(err, r, "TLS handshake with %s", who);
}

static int handshake(struct gw_chan *c, bool server, const char *who, uint64_t deadline_ns, struct gw_error *err)
{
	int one = 1;
	X509 *cert;
	int r;

	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	for (;;) {
		int n;

		ERR_clear_error();
		errno = 0;
		n = server ? SSL_accept(c->ssl) : SSL_connect(c->ssl);
		if (n == 1)
			break;
		r = tls_wait(c, n, deadline_ns);
		if (r < 0)
			return handshake_error(c, r, who, err);
	}
	cert = SSL_get1_peer_certificate(c->ssl);
	if (!cert)
		return gw_error_set(err, EACCES, "%s shows no certificate", who);
	r = gw_pki_identify(cert, &c->role, c->peer, err);
	X509_free(cert);
	return r < 0 ? gw_error_wrap(err, "%s", who) : 0;
}

static int new_tls(SSL_CTX *tls, int fd, struct gw_chan **ret, struct gw_error *err)
{
	struct gw_chan *c = NULL;
	int r;

	if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0) {
		r = gw_error_errno(err, errno, "cannot make a socket non-blocking");
		close(fd);
		return r;
	}
	r = new_chan(fd, &c, err);
	if (r < 0)
		return r;
	c->ssl = SSL_new(tls);
	if (!c->ssl || SSL_set_fd(c->ssl, fd) != 1) {
		gw_chan_free(c);
		return gw_ssl_error(err, ENOMEM, "cannot start TLS");
	}
	*ret = c;
	return 0;
}

static int expect_name(SSL *ssl, const char *name, struct gw_error *err)
{
	uint8_t addr[16];
	bool ip = inet_pton(AF_INET, name, addr) == 1 || inet_pton(AF_INET6, name, addr) == 1;
	int ok = ip ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), name) : SSL_set1_host(ssl, name);

	SSL_set_hostflags(ssl, X509_CHECK_FLAG_NO_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT);
	return ok == 1 ? 0 : gw_ssl_error(err, EINVAL, "'%s' is no name for a host", name);
}

int gw_chan_connect_tls(SSL_CTX *tls, const char *address, const char *name, uint64_t deadline_ns, struct gw_chan **ret,
			struct gw_error *err)
{
	gw_cleanup(gw_chan_freep) struct gw_chan *c = NULL;
	char host[256], port[6];
	int fd = -1;
	int r = gw_parse_address(address, GW_PEER_PORT, host, port, err);

	r = r ?: gw_tcp_connect(host, port, deadline_ns, &fd, err);
	r = r ?: new_tls(tls, fd, &c, err);
	r = r ?: expect_name(c->ssl, name, err);
	r = r ?: handshake(c, false, name, deadline_ns, err);
	if (r < 0)
		return r;
	if (c->role != GW_ROLE_HOST)
		return gw_error_set(err, EACCES, "%s at %s shows a certificate that is not a host's", name, address);
	*ret = gw_steal_ptr(&c);
	return 0;
}

int gw_chan_accept_tls(SSL_CTX *tls, int fd, uint64_t deadline_ns, struct gw_chan **ret, struct gw_error *err)
{
	gw_cleanup(gw_chan_freep) struct gw_chan *c = NULL;
	int r = new_tls(tls, fd, &c, err);

	r = r ?: handshake(c, true, "the caller", deadline_ns, err);
	if (r < 0)
		return r;
	*ret = gw_steal_ptr(&c);
	return 0;
}

void gw_chan_free(struct gw_chan *c)
{
	if (!c)
		return;
	if (c->ssl) {
		ERR_clear_error();
		if (SSL_is_init_finished(c->ssl))
			SSL_shutdown(c->ssl);
		SSL_free(c->ssl);
		ERR_clear_error();
	}
	close(c->fd);
	free(c);
}

enum gw_role gw_chan_role(const struct gw_chan *c)
{
	return c->role;
}

const char *gw_chan_peer(const struct gw_chan *c)
{
	return c->peer;
}

int gw_chan_fd(const struct gw_chan *c)
{
	return c->fd;
}

bool gw_chan_pending(const struct gw_chan *c)
{
	return c->ssl && SSL_has_pending(c->ssl);
}

bool gw_chan_closed(struct gw_chan *c)
{
	struct pollfd p = { .fd = c->fd, .events = POLLIN };
	char byte;
	ssize_t n;

	if (gw_chan_pending(c) || poll(&p, 1, 0) <= 0)
		return false;
	if (p.revents & (POLLERR | POLLHUP))
		return true;
	n = recv(c->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
	/* A TLS peer announces its end with an alert record (RFC 8446 section 6.1), type 23 outside: it says nothing else here. */
	return n == 0 || (n > 0 && c->ssl != NULL);
}

static int read_some(struct gw_chan *c, void *data, size_t len, size_t *got, uint64_t deadline_ns)
{
	int r;

	for (;;) {
		int n;

		ERR_clear_error();
		errno = 0;
		n = SSL_read_ex(c->ssl, data, len, got);
		if (n == 1)
			return 0;
		r = tls_wait(c, n, deadline_ns);
		if (r < 0)
			return r;
	}
}

static int read_full(struct gw_chan *c, void *data, size_t len, uint64_t deadline_ns)
{
	uint8_t *p = data;

	if (!c->ssl)
		return gw_read_full(c->fd, data, len, deadline_ns);
	while (len > 0) {
		size_t got = 0;
		int r = read_some(c, p, len, &got, deadline_ns);

		if (r < 0)
			return r;
		p += got;
		len -= got;
	}
	return 0;
}

int gw_chan_write(struct gw_chan *c, const void *data, size_t len, uint64_t deadline_ns)
{
	const uint8_t *p = data;

	if (!c->ssl)
		return gw_write_full(c->fd, data, len, deadline_ns);
	while (len > 0) {
		size_t put = 0;
		int n, r;

		ERR_clear_error();
		errno = 0;
		n = SSL_write_ex(c->ssl, p, len, &put);
		if (n != 1) {
			r = tls_wait(c, n, deadline_ns);
			if (r < 0)
				return r;
			continue;
		}
		p += put;
		len -= put;
	}
	return 0;
}

ssize_t gw_chan_read(struct gw_chan *c, void *data, size_t len)
{
	size_t got = 0;
	ssize_t n;
	int r;

	if (c->ssl) {
		r = read_some(c, data, len, &got, 0);
		return r == -ETIMEDOUT ? -EAGAIN : r < 0 ? r : (ssize_t)got;
	}
	n = recv(c->fd, data, len, MSG_DONTWAIT);
	if (n < 0)
		return errno == EINTR ? -EAGAIN : -errno;
	return n == 0 ? -EPIPE : n;
}

int gw_chan_send(struct gw_chan *c, uint16_t type, const ProtobufCMessage *msg, uint64_t deadline_ns)
{
	gw_autobuf buf = GW_BUF_INIT;
	int r = gw_frame_pack(&buf, type, msg);

	return r < 0 ? r : gw_chan_write(c, buf.data, buf.len, deadline_ns);
}

int gw_chan_recv(struct gw_chan *c, uint16_t *type, struct gw_buf *body, size_t max, uint64_t deadline_ns)
{
	uint8_t raw[GW_FRAME_HEADER];
	struct gw_frame_header h;
	int r = read_full(c, raw, sizeof(raw), deadline_ns);

	if (r < 0)
		return r;
	r = gw_frame_parse_header(raw, &h);
	if (r < 0)
		return r;
	if (h.len > max)
		return -EPROTO;
	body->len = 0;
	if (!gw_buf_reserve(body, (size_t)h.len + 1))
		return -ENOMEM;
	r = read_full(c, body->data, h.len, deadline_ns);
	if (r < 0)
		return r;
	body->len = h.len;
	*type = h.type;
	return 0;
}
