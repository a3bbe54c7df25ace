// SPDX-License-Identifier: Apache-2.0
/* The certificate authority; see pki.h. RFC 5280 names the extensions. */
#include "agent/pki.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <string.h>

#include "lib/buf.h"
#include "lib/io.h"
#include "lib/parse.h"
#include "lib/util.h"

#define OU_HOST "godwit host"
#define OU_CLIENT "godwit client"
#define OU_CA "godwit ca"

static void free_x509(X509 **p)
{
	X509_free(*p);
}
static void free_pkey(EVP_PKEY **p)
{
	EVP_PKEY_free(*p);
}
static void free_bio(BIO **p)
{
	BIO_free_all(*p);
}

const char *gw_role_name(enum gw_role role)
{
	static const char *const names[] = { "nobody", "client", "host", "local" };

	return (unsigned)role < ARRAY_SIZE(names) ? names[role] : "unknown";
}

int gw_ssl_error(struct gw_error *err, int code, const char *fmt, ...)
{
	unsigned long e = ERR_get_error();
	const char *reason = e ? ERR_reason_error_string(e) : NULL;
	char text[256];
	va_list ap;

	ERR_clear_error();
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return gw_error_set(err, code, "%s: %s", text, reason ?: "OpenSSL gives no reason");
}

static int add_ext(X509 *cert, X509 *issuer, int nid, const char *value, struct gw_error *err)
{
	X509_EXTENSION *ext;
	X509V3_CTX ctx;
	int ok;

	X509V3_set_ctx_nodb(&ctx);
	X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
	ext = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
	if (!ext)
		return gw_ssl_error(err, EINVAL, "certificate extension '%s'", value);
	ok = X509_add_ext(cert, ext, -1);
	X509_EXTENSION_free(ext);
	return ok ? 0 : gw_ssl_error(err, ENOMEM, "certificate extension '%s'", value);
}

static int add_name(X509_NAME *name, const char *field, const char *value)
{
	return X509_NAME_add_entry_by_txt(name, field, MBSTRING_UTF8, (const unsigned char *)value, -1, -1, 0) ? 0 : -ENOMEM;
}

/* A certificate for `key` with everything but extensions and signature. issuer NULL: itself. */
static int new_cert(EVP_PKEY *key, const char *cn, const char *ou, X509 *issuer, int days, X509 **ret, struct gw_error *err)
{
	gw_cleanup(free_x509) X509 *cert = X509_new();
	unsigned char serial[16];
	BIGNUM *bn;
	long start = days < 0 ? (long)days * 86400 - 86400 : -300; /* clocks of hosts differ a little */

	if (!cert || RAND_bytes(serial, sizeof(serial)) != 1)
		return gw_ssl_error(err, ENOMEM, "cannot make a certificate");
	serial[0] &= 0x7f;
	bn = BN_bin2bn(serial, sizeof(serial), NULL);
	if (!bn || !BN_to_ASN1_INTEGER(bn, X509_get_serialNumber(cert))) {
		BN_free(bn);
		return gw_ssl_error(err, ENOMEM, "cannot make a certificate");
	}
	BN_free(bn);
	if (!X509_set_version(cert, X509_VERSION_3) || !X509_gmtime_adj(X509_getm_notBefore(cert), start) ||
	    !X509_gmtime_adj(X509_getm_notAfter(cert), (long)days * 86400) || !X509_set_pubkey(cert, key) ||
	    add_name(X509_get_subject_name(cert), "O", "godwit") < 0 || add_name(X509_get_subject_name(cert), "OU", ou) < 0 ||
	    add_name(X509_get_subject_name(cert), "CN", cn) < 0 ||
	    !X509_set_issuer_name(cert, X509_get_subject_name(issuer ?: cert)))
		return gw_ssl_error(err, EINVAL, "cannot make a certificate for %s", cn);
	*ret = gw_steal_ptr(&cert);
	return 0;
}

static int write_pem(const char *path, X509 *cert, EVP_PKEY *key, struct gw_error *err)
{
	gw_cleanup(free_bio) BIO *bio = BIO_new(BIO_s_mem());
	char *data;
	long len;
	int ok;

	if (!bio)
		return gw_error_set(err, ENOMEM, "out of memory");
	ok = cert ? PEM_write_bio_X509(bio, cert) : PEM_write_bio_PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL);
	len = BIO_get_mem_data(bio, &data);
	if (!ok || len <= 0)
		return gw_ssl_error(err, EIO, "cannot encode %s", path);
	return gw_write_file_atomic(path, data, (size_t)len, cert ? 0644 : 0600, err);
}

/* Both paths, owned by the caller; -EEXIST when either file is there. */
static int new_paths(const char *dir, const char *name, char **crt, char **key, struct gw_error *err)
{
	if (asprintf(crt, "%s/%s.crt", dir, name) < 0 || asprintf(key, "%s/%s.key", dir, name) < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	if (access(*crt, F_OK) == 0 || access(*key, F_OK) == 0)
		return gw_error_set(err, EEXIST, "%s exists already; remove it first if you mean to replace it",
				    access(*crt, F_OK) == 0 ? *crt : *key);
	return 0;
}

int gw_pki_init(const char *dir, const char *name, unsigned days, struct gw_error *err)
{
	gw_cleanup(free_pkey) EVP_PKEY *key = NULL;
	gw_cleanup(free_x509) X509 *cert = NULL;
	gw_autofree char *crt = NULL, *keyfile = NULL;
	int r = gw_mkdir_p(dir, 0700);

	if (r < 0)
		return gw_error_errno(err, r, "cannot make %s", dir);
	r = new_paths(dir, "ca", &crt, &keyfile, err);
	if (r < 0)
		return r;
	key = EVP_EC_gen("P-256");
	if (!key)
		return gw_ssl_error(err, EIO, "cannot make a key");
	r = new_cert(key, name, OU_CA, NULL, (int)days, &cert, err);
	r = r ?: add_ext(cert, cert, NID_basic_constraints, "critical,CA:TRUE,pathlen:0", err);
	r = r ?: add_ext(cert, cert, NID_key_usage, "critical,keyCertSign,cRLSign", err);
	r = r ?: add_ext(cert, cert, NID_subject_key_identifier, "hash", err);
	if (r < 0)
		return r;
	if (!X509_sign(cert, key, EVP_sha256()))
		return gw_ssl_error(err, EIO, "cannot sign");
	/* The key first: a certificate without a key would be in the way of another try. */
	return write_pem(keyfile, NULL, key, err) ?: write_pem(crt, cert, NULL, err);
}

static int read_ca(const char *dir, X509 **cert, EVP_PKEY **key, struct gw_error *err)
{
	gw_autofree char *crt = NULL, *keyfile = NULL;
	gw_cleanup(free_bio) BIO *cb = NULL;
	gw_cleanup(free_bio) BIO *kb = NULL;

	if (asprintf(&crt, "%s/ca.crt", dir) < 0 || asprintf(&keyfile, "%s/ca.key", dir) < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	cb = BIO_new_file(crt, "r");
	if (!cb)
		return gw_ssl_error(err, ENOENT, "no CA in %s (make one with 'godwit pki init')", dir);
	kb = BIO_new_file(keyfile, "r");
	if (!kb)
		return gw_ssl_error(err, ENOENT, "cannot read %s", keyfile);
	*cert = PEM_read_bio_X509(cb, NULL, NULL, NULL);
	*key = PEM_read_bio_PrivateKey(kb, NULL, NULL, NULL);
	if (!*cert || !*key)
		return gw_ssl_error(err, EINVAL, "%s holds no usable CA", dir);
	if (X509_check_private_key(*cert, *key) != 1)
		return gw_ssl_error(err, EINVAL, "%s and %s do not belong together", crt, keyfile);
	return 0;
}

/* "DNS:h1,DNS:h1.example,IP:10.0.0.1" for subjectAltName; owned. */
static int alt_names(const struct gw_pki_request *req, char **ret, struct gw_error *err)
{
	gw_autobuf b = GW_BUF_INIT;
	uint8_t addr[16];
	int r = 0;

	r = gw_buf_append(&b, "DNS:", 4) ?: gw_buf_append(&b, req->name, strlen(req->name));
	for (unsigned i = 0; i < req->ndns && r == 0; i++) {
		r = gw_parse_name(req->dns[i], "DNS name", err);
		if (r < 0)
			return r;
		r = gw_buf_append(&b, ",DNS:", 5) ?: gw_buf_append(&b, req->dns[i], strlen(req->dns[i]));
	}
	for (unsigned i = 0; i < req->nip && r == 0; i++) {
		if (inet_pton(AF_INET, req->ip[i], addr) != 1 && inet_pton(AF_INET6, req->ip[i], addr) != 1)
			return gw_error_set(err, EINVAL, "'%.64s' is not an IP address", req->ip[i]);
		r = gw_buf_append(&b, ",IP:", 4) ?: gw_buf_append(&b, req->ip[i], strlen(req->ip[i]));
	}
	r = r ?: gw_buf_append(&b, "", 1);
	if (r < 0)
		return gw_error_set(err, ENOMEM, "out of memory");
	*ret = (char *)gw_steal_ptr(&b.data);
	return 0;
}

int gw_pki_issue(const char *dir, const char *out, const struct gw_pki_request *req, struct gw_error *err)
{
	gw_cleanup(free_pkey) EVP_PKEY *ca_key = NULL;
	gw_cleanup(free_pkey) EVP_PKEY *key = NULL;
	gw_cleanup(free_x509) X509 *ca = NULL;
	gw_cleanup(free_x509) X509 *cert = NULL;
	gw_autofree char *crt = NULL, *keyfile = NULL, *san = NULL;
	bool host = req->role == GW_ROLE_HOST;
	int r = gw_parse_name(req->name, host ? "host name" : "client name", err);

	if (r < 0)
		return r;
	if (!strcmp(req->name, "ca"))
		return gw_error_set(err, EINVAL, "'ca' is the authority's own name");
	r = alt_names(req, &san, err);
	r = r ?: read_ca(dir, &ca, &ca_key, err);
	if (r < 0)
		return r;
	r = gw_mkdir_p(out, 0700);
	if (r < 0)
		return gw_error_errno(err, r, "cannot make %s", out);
	r = new_paths(out, req->name, &crt, &keyfile, err);
	if (r < 0)
		return r;
	key = EVP_EC_gen("P-256");
	if (!key)
		return gw_ssl_error(err, EIO, "cannot make a key");
	r = new_cert(key, req->name, host ? OU_HOST : OU_CLIENT, ca, req->days, &cert, err);
	r = r ?: add_ext(cert, ca, NID_basic_constraints, "critical,CA:FALSE", err);
	r = r ?: add_ext(cert, ca, NID_key_usage, "critical,digitalSignature", err);
	r = r ?: add_ext(cert, ca, NID_ext_key_usage, host ? "serverAuth,clientAuth" : "clientAuth", err);
	r = r ?: add_ext(cert, ca, NID_subject_key_identifier, "hash", err);
	r = r ?: add_ext(cert, ca, NID_authority_key_identifier, "keyid", err);
	/* A client must not answer to a name at all. */
	if (r == 0 && host)
		r = add_ext(cert, ca, NID_subject_alt_name, san, err);
	if (r < 0)
		return r;
	if (!X509_sign(cert, ca_key, EVP_sha256()))
		return gw_ssl_error(err, EIO, "cannot sign");
	return write_pem(keyfile, NULL, key, err) ?: write_pem(crt, cert, NULL, err);
}

/* The one value of a field of the subject; -EACCES when it comes never or twice, or is too long. */
static int subject_field(X509 *cert, int nid, char *out, size_t size)
{
	X509_NAME *name = X509_get_subject_name(cert);
	int at = X509_NAME_get_index_by_NID(name, nid, -1);
	const ASN1_STRING *s;
	size_t len;

	if (at < 0 || X509_NAME_get_index_by_NID(name, nid, at) >= 0)
		return -EACCES;
	s = X509_NAME_ENTRY_get_data(X509_NAME_get_entry(name, at));
	len = (size_t)ASN1_STRING_length(s);
	if (len >= size || memchr(ASN1_STRING_get0_data(s), '\0', len))
		return -EACCES;
	memcpy(out, ASN1_STRING_get0_data(s), len);
	out[len] = '\0';
	return 0;
}

int gw_pki_identify(X509 *cert, enum gw_role *role, char name[64], struct gw_error *err)
{
	uint32_t usage = X509_get_extended_key_usage(cert);
	bool server = usage != UINT32_MAX && usage & XKU_SSL_SERVER;
	bool client = usage != UINT32_MAX && usage & XKU_SSL_CLIENT;
	char ou[32], cn[64];

	if (subject_field(cert, NID_organizationalUnitName, ou, sizeof(ou)) < 0 ||
	    subject_field(cert, NID_commonName, cn, sizeof(cn)) < 0 || gw_parse_name(cn, "name", NULL) < 0)
		return gw_error_set(err, EACCES, "the certificate is not one that 'godwit pki issue' makes");
	if (!strcmp(ou, OU_HOST) && server && client)
		*role = GW_ROLE_HOST;
	else if (!strcmp(ou, OU_CLIENT) && client && !server)
		*role = GW_ROLE_CLIENT;
	else
		return gw_error_set(err, EACCES, "the certificate of '%s' is neither a host's nor a client's", cn);
	memcpy(name, cn, sizeof(cn));
	return 0;
}
