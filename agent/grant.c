// SPDX-License-Identifier: Apache-2.0
/* Grants; see grant.h. */
#include "agent/grant.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <string.h>

#include "agent/pki.h"
#include "lib/util.h"

/* The key also signs TLS handshakes, which begin otherwise (RFC 8446 section 4.4.3). */
#define SIGNED_FIRST "godwit grant 1\n"
#define SIGNATURE_MAX 512u
#define PEM_NAME "GODWIT GRANT"

static void free_cert(X509 **p)
{
	X509_free(*p);
}
static void free_digest(EVP_MD_CTX **p)
{
	EVP_MD_CTX_free(*p);
}
static void free_bio(BIO **p)
{
	BIO_free_all(*p);
}
static void free_grant(Godwit__Grant **p)
{
	if (*p)
		godwit__grant__free_unpacked(*p, NULL);
}
static void free_terms(Godwit__GrantTerms **p)
{
	if (*p)
		godwit__grant_terms__free_unpacked(*p, NULL);
}

/* ---- signing ---- */

static int signed_text(ProtobufCBinaryData terms, struct gw_buf *out)
{
	return gw_buf_append(out, SIGNED_FIRST, strlen(SIGNED_FIRST)) ?: gw_buf_append(out, terms.data, terms.len);
}

static int pack(const ProtobufCMessage *m, struct gw_buf *out)
{
	void *p = gw_buf_reserve(out, protobuf_c_message_get_packed_size(m) ?: 1);

	if (!p)
		return -ENOMEM;
	out->len += protobuf_c_message_pack(m, p);
	return 0;
}

int gw_grant_sign(SSL_CTX *tls, const Godwit__GrantTerms *terms, struct gw_buf *out, struct gw_error *err)
{
	gw_cleanup(free_digest) EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	gw_autobuf packed = GW_BUF_INIT, text = GW_BUF_INIT;
	Godwit__Grant grant = GODWIT__GRANT__INIT;
	uint8_t signature[SIGNATURE_MAX], *der = NULL;
	size_t len = sizeof(signature);
	int n, r = 0;

	if (!ctx || pack(&terms->base, &packed) < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	grant.version = 1;
	grant.terms = (ProtobufCBinaryData){ packed.len, packed.data };
	if (signed_text(grant.terms, &text) < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	if (EVP_DigestSignInit(ctx, NULL, EVP_sha256(), NULL, SSL_CTX_get0_privatekey(tls)) != 1 ||
	    EVP_DigestSign(ctx, signature, &len, text.data, text.len) != 1)
		return gw_ssl_error(err, EIO, "this host's key cannot sign");
	n = i2d_X509(SSL_CTX_get0_certificate(tls), &der);
	if (n <= 0)
		return gw_ssl_error(err, EIO, "this host's certificate cannot be encoded");
	grant.certificate = (ProtobufCBinaryData){ (size_t)n, der };
	grant.signature = (ProtobufCBinaryData){ len, signature };
	if (pack(&grant.base, out) < 0)
		r = gw_error_set(err, ENOMEM, "out of memory");
	OPENSSL_free(der);
	return r;
}

/* ---- checking ---- */

/* Nothing that a grant holds is looked at before it is known whose it is. */
static int check_signer(SSL_CTX *tls, X509 *cert, const char *name, struct gw_error *err)
{
	X509_STORE_CTX *ctx = X509_STORE_CTX_new();
	enum gw_role role;
	char signer[64];
	int r = 0;

	if (!ctx || X509_STORE_CTX_init(ctx, SSL_CTX_get_cert_store(tls), cert, NULL) != 1)
		r = gw_ssl_error(err, ENOMEM, "cannot check a certificate");
	else if (X509_verify_cert(ctx) != 1)
		r = gw_error_set(err, EACCES, "the grant's certificate is refused: %s",
				 X509_verify_cert_error_string(X509_STORE_CTX_get_error(ctx)));
	X509_STORE_CTX_free(ctx);
	ERR_clear_error();
	r = r ?: gw_pki_identify(cert, &role, signer, err);
	if (r == 0 && (role != GW_ROLE_HOST || strcmp(signer, name) != 0))
		r = gw_error_set(err, EACCES, "the grant was given by %s %s, and only host %s, which has suspended the VM, can give it",
				 gw_role_name(role), signer, name);
	return r;
}

static int check_signature(X509 *cert, const Godwit__Grant *grant, struct gw_error *err)
{
	gw_cleanup(free_digest) EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	gw_autobuf text = GW_BUF_INIT;
	bool ok;

	if (!ctx || signed_text(grant->terms, &text) < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	ok = EVP_DigestVerifyInit(ctx, NULL, EVP_sha256(), NULL, X509_get0_pubkey(cert)) == 1 &&
	     EVP_DigestVerify(ctx, grant->signature.data, grant->signature.len, text.data, text.len) == 1;
	ERR_clear_error();
	return ok ? 0 : gw_error_set(err, EACCES, "the grant was changed: its signature does not fit");
}

static int check_terms(const Godwit__GrantTerms *got, const Godwit__GrantTerms *want, struct gw_error *err)
{
	if (strcmp(got->from, want->from) != 0 || got->epoch == 0)
		return gw_error_set(err, EPROTO, "the grant contradicts itself");
	if (strcmp(got->to, want->to) != 0)
		return gw_error_set(err, EACCES, "the grant is for host %.63s, and this is %s", got->to, want->to);
	if (strcmp(got->vm, want->vm) != 0)
		return gw_error_set(err, EACCES, "the grant is for VM %.63s, not %s", got->vm, want->vm);
	if (got->snapshot.len != want->snapshot.len || memcmp(got->snapshot.data, want->snapshot.data, want->snapshot.len) != 0)
		return gw_error_set(err, EACCES, "the grant is for another snapshot of VM %s", want->vm);
	return 0;
}

int gw_grant_check(SSL_CTX *tls, ProtobufCBinaryData data, const Godwit__GrantTerms *want, uint64_t *epoch, struct gw_error *err)
{
	gw_cleanup(free_grant) Godwit__Grant *grant = NULL;
	gw_cleanup(free_terms) Godwit__GrantTerms *got = NULL;
	gw_cleanup(free_cert) X509 *cert = NULL;
	const uint8_t *at;
	int r;

	if (data.len <= GW_GRANT_MAX)
		grant = godwit__grant__unpack(NULL, data.len, data.data);
	if (!grant)
		return gw_error_set(err, EPROTO, "this is no grant, or a part of one");
	if (grant->version != 1)
		return gw_error_set(err, EPROTONOSUPPORT, "the grant has version %u, this agent reads 1", grant->version);
	at = grant->certificate.data;
	cert = d2i_X509(NULL, &at, (long)grant->certificate.len);
	ERR_clear_error();
	if (!cert)
		return gw_error_set(err, EPROTO, "the grant has no certificate");
	r = check_signer(tls, cert, want->from, err) ?: check_signature(cert, grant, err);
	if (r < 0)
		return r;
	got = godwit__grant_terms__unpack(NULL, grant->terms.len, grant->terms.data);
	r = got ? check_terms(got, want, err) : gw_error_set(err, EPROTO, "the grant says nothing");
	if (r == 0)
		*epoch = got->epoch;
	return r;
}

/* ---- as text ---- */

int gw_grant_print(ProtobufCBinaryData grant, char **ret, struct gw_error *err)
{
	gw_cleanup(free_bio) BIO *bio = BIO_new(BIO_s_mem());
	char *data;
	long len;

	if (!bio || PEM_write_bio(bio, PEM_NAME, "", grant.data, (long)grant.len) <= 0)
		return gw_ssl_error(err, ENOMEM, "the grant cannot be encoded");
	len = BIO_get_mem_data(bio, &data);
	*ret = strndup(data, (size_t)len);
	return *ret ? 0 : gw_error_set(err, ENOMEM, "out of memory");
}

int gw_grant_read(const char *path, struct gw_buf *out, struct gw_error *err)
{
	gw_cleanup(free_bio) BIO *bio = strcmp(path, "-") ? BIO_new_file(path, "r") : BIO_new_fp(stdin, BIO_NOCLOSE);
	char *name = NULL, *header = NULL;
	uint8_t *data = NULL;
	long len;
	int r = 0;

	if (!bio)
		return gw_error_errno(err, errno, "cannot read the grant %s", path);
	if (PEM_read_bio(bio, &name, &header, &data, &len) != 1 || strcmp(name, PEM_NAME) != 0 || len > (long)GW_GRANT_MAX)
		r = gw_error_set(err, EINVAL, "%s holds no grant, as 'godwit release' prints it", path);
	ERR_clear_error();
	if (r == 0 && gw_buf_append(out, data, (size_t)len) < 0)
		r = gw_error_set(err, ENOMEM, "out of memory");
	OPENSSL_free(name);
	OPENSSL_free(header);
	OPENSSL_free(data);
	return r;
}
