// SPDX-License-Identifier: Apache-2.0
/* TLS 1.3 with an external key; see tls.h. */
#include "migrate/tls.h"

#include <errno.h>
#include <openssl/err.h>
#include <pthread.h>
#include <string.h>

#include "lib/clock.h"
#include "lib/log.h"
#include "lib/parse.h"
#include "lib/util.h"

/* Record bytes read from the socket at a time; a multiple of the largest record. */
#define READ_AHEAD (512u << 10)
#define ROUNDS 16u /* of measuring ciphers: less than a millisecond with instructions for them, 15 ms without */

struct suite {
	const char *name;
	const EVP_CIPHER *(*cipher)(void);
	bool sha256; /* hash of the suite: a key belongs to one hash (RFC 8446 §4.2.11) */
};
static const struct suite suites[] = {
	{ "TLS_AES_256_GCM_SHA384", EVP_aes_256_gcm, false },
	{ "TLS_AES_128_GCM_SHA256", EVP_aes_128_gcm, true },
	{ "TLS_CHACHA20_POLY1305_SHA256", EVP_chacha20_poly1305, true },
};

/* Set once under suites_once. */
static char suite_list[128];
static pthread_once_t suites_once = PTHREAD_ONCE_INIT;

/* Nanoseconds for a record of 16 KiB. UINT64_MAX when the cipher does not work here. */
static uint64_t measure(const EVP_CIPHER *cipher)
{
	static uint8_t record[16384 + 64];
	uint8_t key[32] = { 1 }, iv[12] = { 2 };
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	uint64_t spent = UINT64_MAX, from;
	int n;

	if (ctx && EVP_EncryptInit_ex(ctx, cipher, NULL, key, iv) == 1) {
		from = gw_now_ns();
		EVP_EncryptUpdate(ctx, record, &n, record, 16384);
		EVP_EncryptFinal_ex(ctx, record + 16384, &n);
		spent = gw_now_ns() - from;
	}
	EVP_CIPHER_CTX_free(ctx);
	return spent;
}

/* The fastest leads; AES-256 does already when it is within a tenth of it. Suites of the other hash cannot follow. */
static void choose_suites(void)
{
	uint64_t ns[ARRAY_SIZE(suites)];
	size_t best = 0;

	/*
	 * The best of many, by turns: others' work between two looks at the clock is no property of a cipher, and lasts for longer than one measurement. The
	 * first ones bring code and tables in, and have an emulator translate them.
	 */
	memset(ns, 0xff, sizeof(ns));
	for (unsigned round = 0; round < ROUNDS; round++) {
		for (size_t i = 0; i < ARRAY_SIZE(suites); i++)
			ns[i] = GW_MIN(ns[i], measure(suites[i].cipher()));
	}
	for (size_t i = 1; i < ARRAY_SIZE(suites); i++) {
		if (ns[i] < (best == 0 ? ns[best] / 10 * 9 : ns[best]))
			best = i;
	}
	gw_debug("ns a TLS record: AES-256-GCM %llu, AES-128-GCM %llu, ChaCha20-Poly1305 %llu", (unsigned long long)ns[0],
		 (unsigned long long)ns[1], (unsigned long long)ns[2]);
	snprintf(suite_list, sizeof(suite_list), "%s", suites[best].name);
	for (size_t i = 0; i < ARRAY_SIZE(suites); i++) {
		size_t used = strlen(suite_list);

		if (i != best && suites[i].sha256 == suites[best].sha256)
			snprintf(suite_list + used, sizeof(suite_list) - used, ":%s", suites[i].name);
	}
}

const char *gw_tls_suites(void)
{
	pthread_once(&suites_once, choose_suites);
	return suite_list;
}

void gw_tls_key_init(struct gw_tls_key *key, const char *what, const uint8_t secret[GW_MOVE_SECRET_LEN], const uint8_t move_id[16],
		     unsigned number)
{
	char hex[33];

	memset(key, 0, sizeof(*key));
	memcpy(key->secret, secret, GW_MOVE_SECRET_LEN);
	key->what = what;
	gw_format_hex(move_id, 16, hex);
	snprintf(key->identity, sizeof(key->identity), "godwit %.16s %s channel %u", what, hex, number);
}

/* A session object is how OpenSSL 3.0 takes an external key for TLS 1.3 (SSL_CTX_set_psk_use_session_callback(3)). */
static SSL_SESSION *session_of(const struct gw_tls_key *key, const SSL_CIPHER *cipher)
{
	SSL_SESSION *s = cipher ? SSL_SESSION_new() : NULL;

	if (s && SSL_SESSION_set1_master_key(s, key->secret, sizeof(key->secret)) == 1 &&
	    SSL_SESSION_set_cipher(s, cipher) == 1 && SSL_SESSION_set_protocol_version(s, TLS1_3_VERSION) == 1)
		return s;
	SSL_SESSION_free(s);
	return NULL;
}

static int use_key(SSL *ssl, const EVP_MD *md, const unsigned char **id, size_t *idlen, SSL_SESSION **sess)
{
	struct gw_tls_key *key = SSL_get_app_data(ssl);
	const SSL_CIPHER *cipher = sk_SSL_CIPHER_value(SSL_get_ciphers(ssl), 0);

	*sess = session_of(key, cipher);
	if (!*sess)
		return 0;
	/* `md` is set when the server asked for a retry with a hash that we may not have: then no key fits. */
	if (md && md != SSL_CIPHER_get_handshake_digest(cipher)) {
		SSL_SESSION_free(*sess);
		*sess = NULL;
		return 1;
	}
	*id = (const unsigned char *)key->identity;
	*idlen = strlen(key->identity);
	return 1;
}

static int find_key(SSL *ssl, const unsigned char *id, size_t idlen, SSL_SESSION **sess)
{
	struct gw_tls_key *key = SSL_get_app_data(ssl);

	*sess = NULL;
	if (idlen != strlen(key->identity) || memcmp(id, key->identity, idlen)) {
		key->unknown = true;
		return 1;
	}
	/* The suite is chosen by now; the key is good for each of them. */
	*sess = session_of(key, SSL_get_pending_cipher(ssl));
	return *sess != NULL;
}

static int bio_write(BIO *bio, const char *data, int len)
{
	if (len <= 0)
		return 0;
	return gw_wire_put(BIO_get_data(bio), data, (size_t)len) < 0 ? -1 : len;
}

static int bio_read(BIO *bio, char *data, int len)
{
	ssize_t n = len > 0 ? gw_wire_get(BIO_get_data(bio), data, (size_t)len) : 0;

	return n < 0 ? -1 : (int)n;
}

static long bio_ctrl(BIO *bio, int cmd, long num, void *ptr)
{
	if (cmd == BIO_CTRL_FLUSH)
		return gw_wire_flush(BIO_get_data(bio)) < 0 ? -1 : 1;
	return cmd == BIO_CTRL_PUSH || cmd == BIO_CTRL_POP;
}

static BIO_METHOD *bio_method; /* set once under bio_once */
static pthread_once_t bio_once = PTHREAD_ONCE_INIT;

static void make_bio_method(void)
{
	BIO_METHOD *m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "godwit wire");

	if (m && BIO_meth_set_write(m, bio_write) && BIO_meth_set_read(m, bio_read) && BIO_meth_set_ctrl(m, bio_ctrl))
		bio_method = m;
}

static BIO *wire_bio(struct gw_wire *w)
{
	BIO *bio;

	pthread_once(&bio_once, make_bio_method);
	bio = bio_method ? BIO_new(bio_method) : NULL;
	if (bio) {
		BIO_set_data(bio, w);
		BIO_set_init(bio, 1);
	}
	return bio;
}

static SSL_CTX *make_ctx(bool client)
{
	/* Suites of both hashes at the server: the client says which. */
	static const char all[] = "TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256";
	SSL_CTX *ctx = SSL_CTX_new(client ? TLS_client_method() : TLS_server_method());

	if (!ctx)
		return NULL;
	if (SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) != 1 || SSL_CTX_set_ciphersuites(ctx, client ? gw_tls_suites() : all) != 1 ||
	    SSL_CTX_set1_groups_list(ctx, "X25519:P-256") != 1 || SSL_CTX_set_num_tickets(ctx, 0) != 1) {
		SSL_CTX_free(ctx);
		return NULL;
	}
	SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_psk_use_session_callback(ctx, use_key);
	SSL_CTX_set_psk_find_session_callback(ctx, find_key);
	SSL_CTX_set_mode(ctx, SSL_MODE_AUTO_RETRY);
	SSL_CTX_set_read_ahead(ctx, 1);
	SSL_CTX_set_default_read_buffer_len(ctx, READ_AHEAD);
	return ctx;
}

static int explain(const struct gw_wire *w, const struct gw_tls_key *key, bool client, struct gw_error *err)
{
	unsigned long e = ERR_peek_error();
	int reason = ERR_GET_LIB(e) == ERR_LIB_SSL ? ERR_GET_REASON(e) : 0;

	if (w->error == -ECANCELED)
		return gw_error_set(err, ECANCELED, "cancelled");
	if (w->error == -EPIPE)
		return gw_error_set(err, EPIPE, "the other side closed the connection during the TLS handshake");
	if (w->error)
		return gw_error_errno(err, w->error, "TLS handshake");
	if (!client && key->unknown)
		return gw_error_set(err, EACCES, "the other side means another %s or another channel", key->what);
	if (reason == SSL_R_BINDER_DOES_NOT_VERIFY)
		return gw_error_set(err, EACCES, "the other side does not know the secret of this %s", key->what);
	if (client && reason > SSL_AD_REASON_OFFSET)
		return gw_error_set(err, EACCES, "the other side refused the secret of this %s (TLS alert %d)", key->what,
				    reason - SSL_AD_REASON_OFFSET);
	return gw_error_set(err, EPROTO, "TLS handshake failed: %s", e ? ERR_reason_error_string(e) ?: "unknown" : "no TLS");
}

int gw_tls_handshake(struct gw_wire *w, struct gw_tls_key *key, bool client, SSL **ret, struct gw_error *err)
{
	SSL_CTX *ctx = make_ctx(client);
	SSL *ssl = ctx ? SSL_new(ctx) : NULL;
	BIO *bio = ssl ? wire_bio(w) : NULL;
	int r = 0;

	ERR_clear_error();
	if (!bio) {
		SSL_free(ssl);
		SSL_CTX_free(ctx);
		return gw_error_set(err, ENOMEM, "cannot set up TLS");
	}
	SSL_set_bio(ssl, bio, bio);
	SSL_set_app_data(ssl, key);
	if ((client ? SSL_connect(ssl) : SSL_accept(ssl)) != 1) {
		r = explain(w, key, client, err);
		/* The alert that tells the other side why. */
		(void)gw_wire_flush(w);
	} else if (!SSL_session_reused(ssl)) {
		r = gw_error_set(err, EACCES, "TLS without the secret of this %s", key->what); /* cannot be: no certificate is set */
	}
	SSL_CTX_free(ctx);
	ERR_clear_error();
	if (r < 0) {
		SSL_free(ssl);
		return r;
	}
	*ret = ssl;
	return 0;
}
