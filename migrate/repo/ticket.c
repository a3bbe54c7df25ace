// SPDX-License-Identifier: Apache-2.0
/* Tickets for repositories that another host keeps; see ticket.h. */
#include "migrate/repo/ticket.h"

#include <errno.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>
#include <sys/random.h>

#include "lib/bytes.h"
#include "lib/clock.h"
#include "lib/parse.h"
#include "lib/util.h"

#define SCHEME "godwit://"
#define GOOD_FOR_S (7u * 86400) /* loading a VM may wait for its repository for days */
#define RETRY_S 60u
#define MAX_RETRY_S 3600u

static const uint8_t magic[GW_TICKET_MAGIC] = { 'G', 'W', 'D', 'R', 'E', 'P', 'O', '1' };

bool gw_ticket_is_url(const char *url)
{
	return !strncmp(url, SCHEME, strlen(SCHEME));
}

static int parse_retry(const char *query, unsigned *ret, struct gw_error *err)
{
	static const char key[] = "retry=";
	uint64_t v;

	if (strncmp(query, key, strlen(key)))
		return gw_error_set(err, EINVAL, "\"%.40s\" is no parameter of a godwit:// URL: retry", query);
	if (gw_parse_uint(query + strlen(key), "retry", 1, MAX_RETRY_S, &v, err) < 0)
		return -EINVAL;
	*ret = (unsigned)v;
	return 0;
}

int gw_ticket_parse_url(const char *url, struct gw_ticket_url *ret, struct gw_error *err)
{
	const char *host = url + strlen(SCHEME), *name = strchr(host, '/'), *query = name ? strchr(name, '?') : NULL;
	size_t name_len = name ? (query ? (size_t)(query - name) : strlen(name)) - 1 : 0;
	struct gw_ticket_url u = { .retry_s = RETRY_S };

	if (!name || name == host || (size_t)(name - host) >= sizeof(u.host) || name_len == 0)
		return gw_error_set(err, EINVAL, "'%.200s' names no repository of a host: godwit://HOST/NAME is needed", url);
	snprintf(u.host, sizeof(u.host), "%.*s", (int)(name - host), host);
	/* One byte too many is found by the check, and what is cut off would be, too. */
	snprintf(u.name, sizeof(u.name), "%.*s", (int)name_len, name + 1);
	if (name_len >= sizeof(u.name) || gw_parse_name(u.name, "the name of a repository", err) < 0)
		return gw_error_set(err, EINVAL, "'%.200s': the name of a repository has 1 to 63 letters, digits, '.', '_' and '-'", url);
	if (query && parse_retry(query + 1, &u.retry_s, err) < 0)
		return -EINVAL;
	*ret = u;
	return 0;
}

int gw_ticket_read(const Godwit__RepositoryTicket *m, struct gw_ticket *ret, struct gw_error *err)
{
	struct gw_ticket t = { .port = (uint16_t)m->port, .expires_s = m->expires_s };

	if (!*m->host || strlen(m->host) >= sizeof(t.host) || !*m->address || strlen(m->address) >= sizeof(t.address) || m->port == 0 ||
	    m->port > 65535 || gw_parse_name(m->name, "the name of a repository", NULL) < 0 || m->id.len != sizeof(t.id) ||
	    m->secret.len != sizeof(t.secret))
		return gw_error_set(err, EPROTO, "the ticket for the repository is malformed");
	snprintf(t.host, sizeof(t.host), "%s", m->host);
	snprintf(t.address, sizeof(t.address), "%s", m->address);
	snprintf(t.name, sizeof(t.name), "%s", m->name);
	memcpy(t.id, m->id.data, sizeof(t.id));
	memcpy(t.secret, m->secret.data, sizeof(t.secret));
	*ret = t;
	return 0;
}

void gw_ticket_write(const struct gw_ticket *t, Godwit__RepositoryTicket *m)
{
	godwit__repository_ticket__init(m);
	m->host = (char *)t->host;
	m->address = (char *)t->address;
	m->port = t->port;
	m->name = (char *)t->name;
	m->id = (ProtobufCBinaryData){ sizeof(t->id), (uint8_t *)t->id };
	m->expires_s = t->expires_s;
	m->secret = (ProtobufCBinaryData){ sizeof(t->secret), (uint8_t *)t->secret };
}

int gw_ticket_secret(const uint8_t key[GW_TICKET_KEY_LEN], struct gw_ticket *t)
{
	uint8_t raw[GW_TICKET_PREAMBLE];
	unsigned len = sizeof(t->secret);

	gw_ticket_encode(t, raw);
	return HMAC(EVP_sha256(), key, GW_TICKET_KEY_LEN, raw, sizeof(raw), t->secret, &len) ? 0 : -EIO;
}

int gw_ticket_make(const uint8_t key[GW_TICKET_KEY_LEN], const char *name, struct gw_ticket *ret)
{
	struct gw_ticket t = { .expires_s = gw_realtime_ns() / GW_NS_PER_SEC + GOOD_FOR_S };

	snprintf(t.name, sizeof(t.name), "%s", name);
	if (getrandom(t.id, sizeof(t.id), 0) != sizeof(t.id) || gw_ticket_secret(key, &t) < 0)
		return -EIO;
	*ret = t;
	return 0;
}

bool gw_ticket_is_preamble(const uint8_t *raw)
{
	return !memcmp(raw, magic, sizeof(magic));
}

void gw_ticket_encode(const struct gw_ticket *t, uint8_t raw[GW_TICKET_PREAMBLE])
{
	memset(raw, 0, GW_TICKET_PREAMBLE);
	memcpy(raw, magic, sizeof(magic));
	memcpy(raw + 8, t->id, sizeof(t->id));
	gw_put_le64(raw + 24, t->expires_s);
	memcpy(raw + 32, t->name, strlen(t->name));
}

int gw_ticket_decode(const uint8_t raw[GW_TICKET_PREAMBLE], struct gw_ticket *ret)
{
	struct gw_ticket t = { .expires_s = gw_get_le64(raw + 24) };

	if (!gw_ticket_is_preamble(raw) || raw[GW_TICKET_PREAMBLE - 1])
		return -EPROTO;
	memcpy(t.id, raw + 8, sizeof(t.id));
	memcpy(t.name, raw + 32, sizeof(t.name));
	if (gw_parse_name(t.name, "name", NULL) < 0)
		return -EPROTO;
	*ret = t;
	return 0;
}
