// SPDX-License-Identifier: Apache-2.0
/* godwitd's configuration; see conf.h. */
#include "agent/conf.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "agent/ini.h"
#include "lib/io.h"
#include "lib/parse.h"
#include "lib/util.h"

static int set(char **field, const char *value, struct gw_error *err)
{
	char *copy = strdup(value);

	if (!copy)
		return gw_error_set(err, ENOMEM, "out of memory");
	free(*field);
	*field = copy;
	return 0;
}

static int set_path(char **field, const char *key, const char *value, struct gw_error *err)
{
	if (value[0] != '/')
		return gw_error_set(err, EINVAL, "%s: '%.64s' is not an absolute path", key, value);
	return set(field, value, err);
}

static int set_address(char **field, const char *key, const char *value, struct gw_error *err)
{
	char host[256], port[6];
	int r = gw_parse_address(value, GW_PEER_PORT, host, port, err);

	if (r < 0)
		return gw_error_wrap(err, "%s", key);
	return set(field, value, err);
}

int gw_parse_address(const char *text, const char *default_port, char host[256], char port[6], struct gw_error *err)
{
	const char *end, *colon;
	uint64_t v;
	size_t len;

	if (*text == '[') {
		end = strchr(text, ']');
		if (!end || (end[1] && end[1] != ':'))
			return gw_error_set(err, EINVAL, "'%.64s' is not an address (examples: h2, 10.0.0.2:7410, [::1]:7410)", text);
		colon = end[1] ? end + 1 : NULL;
		text++;
	} else {
		colon = strchr(text, ':');
		if (colon && strchr(colon + 1, ':'))
			return gw_error_set(err, EINVAL, "'%.64s': an IPv6 address stands in brackets, as [::1]:7410", text);
		end = colon ? colon : text + strlen(text);
	}
	len = (size_t)(end - text);
	if (len == 0 || len > 255)
		return gw_error_set(err, EINVAL, "'%.64s' names no host", text);
	for (size_t i = 0; i < len; i++) {
		if (!isalnum((unsigned char)text[i]) && !strchr(".-_:%", text[i]))
			return gw_error_set(err, EINVAL, "'%.64s' is not a host name or address", text);
	}
	if (colon && gw_parse_uint(colon + 1, "port", 1, 65535, &v, err) < 0)
		return -EINVAL;
	memcpy(host, text, len);
	host[len] = '\0';
	snprintf(port, 6, "%.5s", colon ? colon + 1 : default_port);
	return 0;
}

int gw_split_host(const char *text, char address[280], char want_name[256], struct gw_error *err)
{
	const char *at = strchr(text, '@');
	char host[256], port[6];
	int r = gw_parse_address(at ? at + 1 : text, GW_PEER_PORT, host, port, err);
	bool v6 = r == 0 && strchr(host, ':') != NULL;

	if (r < 0)
		return r;
	if (at && (at == text || at - text > 255))
		return gw_error_set(err, EINVAL, "'%.64s' is not NAME@HOST[:PORT]", text);
	snprintf(address, 280, "%s%s%s:%s", v6 ? "[" : "", host, v6 ? "]" : "", port);
	snprintf(want_name, 256, "%.*s", at ? (int)(at - text) : 255, at ? text : host);
	return 0;
}

#define PATH_KEY(field, key) \
	static int set_##field(void *o, const char *value, struct gw_error *err) \
	{ \
		return set_path(&((struct gw_conf *)o)->field, key, value, err); \
	}
#define ADDRESS_KEY(field, key) \
	static int set_##field(void *o, const char *value, struct gw_error *err) \
	{ \
		return set_address(&((struct gw_conf *)o)->field, key, value, err); \
	}
PATH_KEY(socket, "socket")
PATH_KEY(state, "state")
PATH_KEY(run, "run")
PATH_KEY(vmm, "vmm")
PATH_KEY(tls_ca, "ca")
PATH_KEY(tls_cert, "cert")
PATH_KEY(tls_key, "key")
ADDRESS_KEY(listen, "listen")
ADDRESS_KEY(data_listen, "data-listen")
ADDRESS_KEY(data_address, "data-address")

static int set_name(void *o, const char *value, struct gw_error *err)
{
	int r = gw_parse_name(value, "host name", err);

	return r < 0 ? r : set(&((struct gw_conf *)o)->name, value, err);
}

static int set_allow_cli(void *o, const char *value, struct gw_error *err)
{
	struct gw_conf *c = o;
	gw_autofree char *copy = strdup(value);
	char *save = NULL;

	if (!copy)
		return gw_error_set(err, ENOMEM, "out of memory");
	for (char *w = strtok_r(copy, ", \t", &save); w; w = strtok_r(NULL, ", \t", &save)) {
		char **grown = reallocarray(c->allow_cli, c->nallow_cli + 1, sizeof(*grown));
		int r = gw_parse_name(w, "client name", err);

		if (grown)
			c->allow_cli = grown;
		if (r < 0)
			return gw_error_wrap(err, "allow-cli");
		if (!grown || !(grown[c->nallow_cli] = strdup(w)))
			return gw_error_set(err, ENOMEM, "out of memory");
		c->nallow_cli++;
	}
	return 0;
}

static const struct gw_ini_key agent_keys[] = {
	{ "name", set_name },
	{ "listen", set_listen },
	{ "data-listen", set_data_listen },
	{ "data-address", set_data_address },
	{ "socket", set_socket },
	{ "state", set_state },
	{ "run", set_run },
	{ "vmm", set_vmm },
	{ "allow-cli", set_allow_cli },
};
static const struct gw_ini_key tls_keys[] = {
	{ "ca", set_tls_ca },
	{ "cert", set_tls_cert },
	{ "key", set_tls_key },
};

PATH_KEY(share_daemon, "daemon")

static int set_share(void *o, const char *value, struct gw_error *err)
{
	int v, r = gw_parse_bool(value, "enable", &v, err);

	if (r == 0)
		((struct gw_conf *)o)->share = v;
	return r;
}

/* "25%", the percent sign required. */
static int parse_percent(const char *value, const char *what, unsigned min, unsigned max, unsigned *ret, struct gw_error *err)
{
	size_t len = strlen(value);
	char digits[8];
	uint64_t v;
	int r;

	if (len < 2 || len > sizeof(digits) || value[len - 1] != '%')
		return gw_error_set(err, EINVAL, "%s: '%.32s' is no percentage such as 25%%", what, value);
	snprintf(digits, sizeof(digits), "%.*s", (int)len - 1, value);
	r = gw_parse_uint(digits, what, min, max, &v, err);
	if (r == 0)
		*ret = (unsigned)v;
	return r;
}

static int set_share_cpu(void *o, const char *value, struct gw_error *err)
{
	return parse_percent(value, "cpu", 1, 100, &((struct gw_conf *)o)->share_cpu, err);
}

static int set_share_map_count(void *o, const char *value, struct gw_error *err)
{
	return gw_parse_uint(value, "max-map-count", 0, INT32_MAX, &((struct gw_conf *)o)->share_map_count, err);
}

static const struct gw_ini_key share_keys[] = {
	{ "enable", set_share },
	{ "daemon", set_share_daemon },
	{ "cpu", set_share_cpu },
	{ "max-map-count", set_share_map_count },
};

static int set_reserve(void *o, const char *value, struct gw_error *err)
{
	struct gw_conf *c = o;
	int r;

	if (strchr(value, '%')) {
		c->reserve = 0;
		return parse_percent(value, "reserve", 0, 90, &c->reserve_percent, err);
	}
	r = gw_parse_size(value, &c->reserve, err);
	if (r < 0)
		return gw_error_wrap(err, "reserve");
	c->reserve_percent = 0;
	return 0;
}

/* "1.5": decimals, at most two. */
static int set_overcommit(void *o, const char *value, struct gw_error *err)
{
	size_t whole = strcspn(value, "."), decimals = value[whole] ? strlen(value + whole + 1) : 0;
	char digits[16];
	uint64_t v;

	if (whole < 1 || whole > 3 || decimals > 2 || (value[whole] && !decimals))
		return gw_error_set(err, EINVAL, "overcommit: '%.32s' is no factor such as 1.5", value);
	/* Without the point, filled up to hundredths. */
	snprintf(digits, sizeof(digits), "%.*s%s%.*s", (int)whole, value, decimals ? value + whole + 1 : "", 2 - (int)decimals, "00");
	if (gw_parse_uint(digits, "overcommit", 0, UINT32_MAX, &v, NULL) < 0 || v < 10 || v > 1600)
		return gw_error_set(err, EINVAL, "overcommit: '%.32s' is no factor from 0.1 to 16", value);
	((struct gw_conf *)o)->overcommit = (unsigned)v;
	return 0;
}

PATH_KEY(repositories, "directory")

static int set_keep_free(void *o, const char *value, struct gw_error *err)
{
	int r = gw_parse_size(value, &((struct gw_conf *)o)->repositories_keep_free, err);

	return r < 0 ? gw_error_wrap(err, "keep-free") : 0;
}

static const struct gw_ini_key repositories_keys[] = {
	{ "directory", set_repositories },
	{ "keep-free", set_keep_free },
};

static const struct gw_ini_key memory_keys[] = {
	{ "reserve", set_reserve },
	{ "overcommit", set_overcommit },
};

static int add_peer(void *o, const char *key, const char *value, struct gw_error *err)
{
	struct gw_conf *c = o;
	struct gw_conf_peer *grown;
	char host[256], port[6];
	int r = gw_parse_name(key, "peer name", err);

	if (r < 0)
		return r;
	r = gw_parse_address(value, GW_PEER_PORT, host, port, err);
	if (r < 0)
		return gw_error_wrap(err, "peer %s", key);
	for (unsigned i = 0; i < c->npeers; i++) {
		if (!strcmp(c->peers[i].name, key))
			return gw_error_set(err, EINVAL, "peer %s is given twice", key);
	}
	if (c->npeers == GW_MAX_PEERS)
		return gw_error_set(err, E2BIG, "more than %d peers", GW_MAX_PEERS);
	grown = reallocarray(c->peers, c->npeers + 1, sizeof(*grown));
	if (!grown)
		return gw_error_set(err, ENOMEM, "out of memory");
	c->peers = grown;
	grown[c->npeers] = (struct gw_conf_peer){ strdup(key), strdup(value) };
	c->npeers++;
	if (!grown[c->npeers - 1].name || !grown[c->npeers - 1].address)
		return gw_error_set(err, ENOMEM, "out of memory");
	return 0;
}

static int open_section(void *ctx, const char *name, void **object, struct gw_error *err)
{
	*object = ctx;
	return 0;
}

static const struct gw_ini_section sections[] = {
	{ .kind = "agent", .keys = agent_keys, .nkeys = ARRAY_SIZE(agent_keys), .open = open_section },
	{ .kind = "tls", .keys = tls_keys, .nkeys = ARRAY_SIZE(tls_keys), .open = open_section },
	{ .kind = "peers", .any = add_peer, .open = open_section },
	{ .kind = "share", .keys = share_keys, .nkeys = ARRAY_SIZE(share_keys), .open = open_section },
	{ .kind = "repositories", .keys = repositories_keys, .nkeys = ARRAY_SIZE(repositories_keys), .open = open_section },
	{ .kind = "memory", .keys = memory_keys, .nkeys = ARRAY_SIZE(memory_keys), .open = open_section },
};

static int default_daemon(struct gw_conf *c, struct gw_error *err)
{
	char path[4096];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - sizeof("/godwit-ksmd"));
	char *slash;

	path[n > 0 ? n : 0] = '\0';
	slash = strrchr(path, '/');
	snprintf(slash ?: path, sizeof("/godwit-ksmd"), "/godwit-ksmd");
	return set(&c->share_daemon, path, err);
}

static int set_defaults(struct gw_conf *c, struct gw_error *err)
{
	char host[64] = "localhost";
	int r = 0;

	memset(c, 0, sizeof(*c));
	c->share = true;
	c->share_cpu = 25;
	c->share_map_count = 262144;
	c->repositories_keep_free = 1ull << 30;
	c->reserve_percent = 5;
	c->overcommit = 100;
	if (gethostname(host, sizeof(host) - 1) == 0)
		host[strcspn(host, ".")] = '\0';
	if (gw_parse_name(host, "host name", NULL) == 0)
		r = set(&c->name, host, err);
	else
		r = set(&c->name, "localhost", err);
	r = r ?: set(&c->listen, "0.0.0.0:" GW_PEER_PORT, err);
	r = r ?: set(&c->data_listen, "0.0.0.0:" GW_DATA_PORT, err);
	r = r ?: set(&c->socket, "/run/godwit/godwitd.sock", err);
	r = r ?: set(&c->state, "/var/lib/godwit", err);
	r = r ?: set(&c->run, "/run/godwit", err);
	r = r ?: default_daemon(c, err);
	return r ?: set(&c->vmm, "/usr/bin/godwit-vmm", err);
}

static int check(const struct gw_conf *c, const char *file, struct gw_error *err)
{
	if ((!c->tls_ca || !c->tls_cert || !c->tls_key) && (c->tls_ca || c->tls_cert || c->tls_key))
		return gw_error_set(err, EINVAL, "%s: [tls] needs all of ca, cert and key", file);
	if (c->npeers && !c->tls_ca)
		return gw_error_set(err, EINVAL, "%s: [peers] needs a [tls] section (make certificates with godwit pki)", file);
	if (c->repositories && !c->tls_ca)
		return gw_error_set(err, EINVAL, "%s: [repositories] needs a [tls] section (make certificates with godwit pki)", file);
	/* Control sockets of VMs lie below it and a socket's path has 107 bytes. */
	if (strlen(c->run) > 32)
		return gw_error_set(err, EINVAL, "%s: run: the path is longer than 32 bytes", file);
	return 0;
}

int gw_conf_parse(const char *file, const char *text, size_t len, struct gw_conf *conf, struct gw_error *err)
{
	int r = set_defaults(conf, err);

	if (r == 0)
		r = gw_ini_parse(file, text, len, sections, ARRAY_SIZE(sections), conf, err);
	return r < 0 ? r : check(conf, file, err);
}

int gw_conf_read(const char *path, struct gw_conf *conf, struct gw_error *err)
{
	gw_autofree char *text = NULL;
	size_t len;
	int r;

	memset(conf, 0, sizeof(*conf));
	r = gw_read_file(path, GW_INI_FILE_MAX, &text, &len, err);
	return r < 0 ? r : gw_conf_parse(path, text, len, conf, err);
}

void gw_conf_release(struct gw_conf *c)
{
	char *const strings[] = { c->name, c->listen, c->data_listen, c->data_address, c->socket,  c->state,
				  c->run,  c->vmm,    c->tls_ca,      c->tls_cert,     c->tls_key, c->share_daemon,
				  c->repositories };

	for (size_t i = 0; i < ARRAY_SIZE(strings); i++)
		free(strings[i]);
	for (unsigned i = 0; i < c->nallow_cli; i++)
		free(c->allow_cli[i]);
	free(c->allow_cli);
	for (unsigned i = 0; i < c->npeers; i++) {
		free(c->peers[i].name);
		free(c->peers[i].address);
	}
	free(c->peers);
	memset(c, 0, sizeof(*c));
}
