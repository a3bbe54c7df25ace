// SPDX-License-Identifier: Apache-2.0
/* INI files by table; see ini.h. */
#include "agent/ini.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "lib/util.h"

#define MAX_KINDS 8

struct ini {
	const struct gw_ini_section *sections;
	unsigned nsections;
	void *ctx;
	const struct gw_ini_section *now; /* the section that the present line is in */
	void *object;
	uint32_t seen;                    /* keys of it that have come, by index */
	bool opened[MAX_KINDS];
};

/* Writes "a, b, c" for messages. */
static void list_words(char *out, size_t size, const char *(*word)(const void *, unsigned), const void *of, unsigned count)
{
	size_t used = 0;

	out[0] = '\0';
	for (unsigned i = 0; i < count && used < size; i++)
		used += (size_t)snprintf(out + used, size - used, "%s%s", i ? ", " : "", word(of, i));
}

static const char *key_word(const void *of, unsigned i)
{
	return ((const struct gw_ini_key *)of)[i].name;
}

static const char *kind_word(const void *of, unsigned i)
{
	return ((const struct gw_ini_section *)of)[i].kind;
}

static char *trim(char *s)
{
	char *end = s + strlen(s);

	while (end > s && isspace((unsigned char)end[-1]))
		*--end = '\0';
	while (isspace((unsigned char)*s))
		s++;
	return s;
}

static int parse_header(struct ini *ini, char *line, struct gw_error *err)
{
	size_t len = strlen(line);
	char *kind, *name;
	char words[200];

	if (line[len - 1] != ']')
		return gw_error_set(err, EINVAL, "a section header ends with ']'");
	line[len - 1] = '\0';
	kind = trim(line + 1);
	name = kind + strcspn(kind, " \t");
	if (*name) {
		*name++ = '\0';
		name = trim(name);
	}
	for (unsigned i = 0; i < ini->nsections; i++) {
		const struct gw_ini_section *s = &ini->sections[i];

		if (strcmp(s->kind, kind) != 0)
			continue;
		if (s->named && !*name)
			return gw_error_set(err, EINVAL, "section [%s NAME] needs a name", kind);
		if (!s->named && *name)
			return gw_error_set(err, EINVAL, "section [%s] takes no name", kind);
		if (!s->named && ini->opened[i])
			return gw_error_set(err, EINVAL, "section [%s] came before", kind);
		ini->opened[i] = true;
		ini->now = s;
		ini->seen = 0;
		return s->open(ini->ctx, s->named ? name : NULL, &ini->object, err);
	}
	list_words(words, sizeof(words), kind_word, ini->sections, ini->nsections);
	return gw_error_set(err, EINVAL, "unknown section [%.32s]; there are: %s", kind, words);
}

static int parse_key(struct ini *ini, char *line, struct gw_error *err)
{
	char *eq = strchr(line, '=');
	const char *key, *value;
	char words[300];

	if (!eq)
		return gw_error_set(err, EINVAL, "neither 'key = value', a [section] nor a comment: '%.40s'", line);
	*eq = '\0';
	key = trim(line);
	value = trim(eq + 1);
	if (!ini->now)
		return gw_error_set(err, EINVAL, "'%.32s' stands before the first section", key);
	if (!*value)
		return gw_error_set(err, EINVAL, "'%.32s' has no value (leave the line out for the default)", key);
	if (ini->now->any)
		return ini->now->any(ini->object, key, value, err);
	for (unsigned i = 0; i < ini->now->nkeys; i++) {
		if (strcmp(ini->now->keys[i].name, key) != 0)
			continue;
		if (ini->seen & 1u << i)
			return gw_error_set(err, EINVAL, "'%s' is given twice in this section", key);
		ini->seen |= 1u << i;
		return ini->now->keys[i].set(ini->object, value, err);
	}
	list_words(words, sizeof(words), key_word, ini->now->keys, ini->now->nkeys);
	return gw_error_set(err, EINVAL, "unknown key '%.32s' in [%s]; there are: %s", key, ini->now->kind, words);
}

/* `raw` is not terminated. */
static int parse_line(struct ini *ini, const char *raw, size_t len, struct gw_error *err)
{
	char copy[GW_INI_LINE_MAX + 1];
	char *line;

	if (len > GW_INI_LINE_MAX)
		return gw_error_set(err, EINVAL, "the line is longer than %u bytes", GW_INI_LINE_MAX);
	for (size_t i = 0; i < len; i++) {
		if (iscntrl((unsigned char)raw[i]) && raw[i] != '\t' && !(raw[i] == '\r' && i == len - 1))
			return gw_error_set(err, EINVAL, "the line holds a control character (byte 0x%02x)",
					    (unsigned char)raw[i]);
	}
	memcpy(copy, raw, len);
	copy[len] = '\0';
	line = trim(copy);
	if (!*line || *line == '#' || *line == ';')
		return 0;
	return *line == '[' ? parse_header(ini, line, err) : parse_key(ini, line, err);
}

int gw_ini_parse(const char *file, const char *text, size_t len, const struct gw_ini_section *sections, unsigned nsections,
		 void *ctx, struct gw_error *err)
{
	struct ini ini = { .sections = sections, .nsections = nsections, .ctx = ctx };
	unsigned number = 0;

	if (len > GW_INI_FILE_MAX)
		return gw_error_set(err, EFBIG, "%s: longer than %u bytes", file, GW_INI_FILE_MAX);
	if (nsections > MAX_KINDS)
		return gw_error_set(err, E2BIG, "%s: too many kinds of section", file);
	while (len > 0) {
		const char *end = memchr(text, '\n', len);
		size_t n = end ? (size_t)(end - text) : len;
		int r;

		number++;
		r = parse_line(&ini, text, n, err);
		if (r < 0) {
			gw_error_wrap(err, "%s:%u", file, number);
			return r;
		}
		n += end != NULL;
		text += n;
		len -= n;
	}
	return 0;
}
