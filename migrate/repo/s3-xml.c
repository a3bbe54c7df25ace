// SPDX-License-Identifier: Apache-2.0
/* S3's answers in XML; see s3-xml.h. */
#include "migrate/repo/s3-xml.h"

#include <errno.h>
#include <expat.h>
#include <string.h>
#include <time.h>

#include "lib/parse.h"
#include "lib/util.h"

#define MAX_DEPTH 8
#define MAX_NAME 64
#define MAX_TEXT (3 * GW_S3_MAX_KEY + GW_S3_MAX_TOKEN)

/*
 * One walk serves all documents: at the end of each element its names from the root on and its text are handed to `end`. Text of an
 * element that has children is only what follows the last of them: S3's elements have either.
 */
struct walk {
	XML_Parser parser;
	char names[MAX_DEPTH][MAX_NAME];
	unsigned depth;
	char text[MAX_TEXT + 1];
	size_t text_len;
	const char *wrong; /* set when we stopped, else NULL */
	/* `depth` counts the element that ends: 1 is the root. Returns what is wrong, or NULL. */
	const char *(*end)(struct walk *w, void *self);
	void *self;
};

static void stop(struct walk *w, const char *why)
{
	if (!w->wrong)
		w->wrong = why;
	XML_StopParser(w->parser, XML_FALSE);
}

static void on_start(void *data, const XML_Char *name, const XML_Char **attributes)
{
	struct walk *w = data;

	if (w->wrong)
		return;
	if (w->depth == MAX_DEPTH || strlen(name) >= MAX_NAME) {
		stop(w, "elements too deep or names too long");
		return;
	}
	snprintf(w->names[w->depth++], MAX_NAME, "%s", name);
	w->text_len = 0;
}

static void on_end(void *data, const XML_Char *name)
{
	struct walk *w = data;
	const char *wrong;

	if (w->wrong)
		return;
	w->text[w->text_len] = '\0';
	wrong = w->end(w, w->self);
	if (wrong) {
		stop(w, wrong);
		return;
	}
	w->depth--;
	w->text_len = 0;
}

static void on_text(void *data, const XML_Char *text, int len)
{
	struct walk *w = data;

	if (w->wrong)
		return;
	if ((size_t)len > MAX_TEXT - w->text_len) {
		stop(w, "a text that is too long");
		return;
	}
	memcpy(w->text + w->text_len, text, (size_t)len);
	w->text_len += (size_t)len;
}

static void on_doctype(void *data, const XML_Char *name, const XML_Char *sysid, const XML_Char *pubid, int internal)
{
	stop(data, "a document type");
}

/* NULL, or what is wrong. */
static const char *walk(const void *xml, size_t len, const char *(*end)(struct walk *w, void *self), void *self)
{
	struct walk w = { .end = end, .self = self }; /* some KiB */
	const char *wrong = NULL;

	if (len > GW_S3_MAX_XML)
		return "too long";
	/* Whatever the document declares: all that we ask for is ASCII or UTF-8. */
	w.parser = XML_ParserCreate("UTF-8");
	if (!w.parser)
		return "out of memory";
	XML_SetUserData(w.parser, &w);
	XML_SetElementHandler(w.parser, on_start, on_end);
	XML_SetCharacterDataHandler(w.parser, on_text);
	XML_SetStartDoctypeDeclHandler(w.parser, on_doctype);
	if (XML_Parse(w.parser, xml, (int)len, XML_TRUE) != XML_STATUS_OK)
		wrong = w.wrong ?: XML_ErrorString(XML_GetErrorCode(w.parser)) ?: "no XML";
	XML_ParserFree(w.parser);
	return wrong;
}

/* Whether the element that ends is root/a/b (b and a may be NULL). */
static bool at(const struct walk *w, const char *root, const char *a, const char *b)
{
	const char *const want[] = { root, a, b };
	unsigned depth = 1 + !!a + !!b;

	if (w->depth != depth)
		return false;
	for (unsigned i = 0; i < depth; i++) {
		if (strcmp(w->names[i], want[i]))
			return false;
	}
	return true;
}

/* "2013-05-24T00:00:00.000Z"; a fraction is left out. */
static bool parse_time(const char *text, uint64_t *ret)
{
	struct tm tm = { 0 };
	const char *rest = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);
	time_t t;

	if (!rest)
		return false;
	if (*rest == '.')
		rest += 1 + strspn(rest + 1, "0123456789");
	if (strcmp(rest, "Z") && strcmp(rest, "+00:00"))
		return false;
	t = timegm(&tm);
	if (t < 0)
		return false;
	*ret = (uint64_t)t;
	return true;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* %XX and '+' in place. False: malformed, or a NUL, which would end the name early. */
static bool decode(char *text)
{
	char *to = text;

	for (const char *from = text; *from; from++) {
		if (*from == '+') {
			*to++ = ' ';
		} else if (*from == '%') {
			int high = hex_digit(from[1]), low = high < 0 ? -1 : hex_digit(from[2]);

			if (low < 0 || (high | low) == 0)
				return false;
			*to++ = (char)(high << 4 | low);
			from += 2;
		} else {
			*to++ = *from;
		}
	}
	*to = '\0';
	return true;
}

/* What is known of the listing while it is read. */
struct listing {
	struct gw_s3_list *list;
	bool has_key, has_size, has_time; /* of the entry being read */
	uint64_t size, modified_s;
	size_t key_at[GW_S3_PAGE];
	bool is_list, has_truncated;
};

static const char *end_of_key(struct walk *w, struct listing *l)
{
	if (l->has_key)
		return "an entry with two keys";
	if (l->list->count == GW_S3_PAGE)
		return "more entries than asked for";
	if (!decode(w->text) || !w->text[0] || strlen(w->text) > GW_S3_MAX_KEY)
		return "a malformed key";
	l->key_at[l->list->count] = l->list->keys.len;
	l->has_key = true;
	return gw_buf_append(&l->list->keys, w->text, strlen(w->text) + 1) < 0 ? "out of memory" : NULL;
}

static const char *end_of_contents(struct listing *l)
{
	struct gw_s3_list *list = l->list;

	if (!l->has_key || !l->has_size || !l->has_time)
		return "an entry without key, size or time";
	if (!list->entries)
		list->entries = calloc(GW_S3_PAGE, sizeof(*list->entries));
	if (!list->entries)
		return "out of memory";
	list->entries[list->count].size = l->size;
	list->entries[list->count].modified_s = l->modified_s;
	list->count++;
	l->has_key = l->has_size = l->has_time = false;
	return NULL;
}

static const char *end_in_list(struct walk *w, void *self)
{
	static const char root[] = "ListBucketResult";
	struct listing *l = self;

	if (at(w, root, "Contents", "Key"))
		return end_of_key(w, l);
	if (at(w, root, "Contents", "Size")) {
		l->has_size = gw_parse_uint(w->text, "size", 0, INT64_MAX, &l->size, NULL) == 0;
		return l->has_size ? NULL : "a malformed size";
	}
	if (at(w, root, "Contents", "LastModified")) {
		l->has_time = parse_time(w->text, &l->modified_s);
		return l->has_time ? NULL : "a malformed time";
	}
	if (at(w, root, "Contents", NULL))
		return end_of_contents(l);
	if (at(w, root, "IsTruncated", NULL)) {
		l->has_truncated = true;
		l->list->truncated = !strcmp(w->text, "true");
		return l->list->truncated || !strcmp(w->text, "false") ? NULL : "IsTruncated is neither true nor false";
	}
	if (at(w, root, "NextContinuationToken", NULL)) {
		if (w->text_len > GW_S3_MAX_TOKEN)
			return "a token that is too long";
		memcpy(l->list->token, w->text, w->text_len + 1);
	}
	if (at(w, root, NULL, NULL))
		l->is_list = true;
	return NULL;
}

int gw_s3_parse_list(const void *xml, size_t len, struct gw_s3_list *ret, struct gw_error *err)
{
	gw_autofree struct gw_s3_list *list = calloc(1, sizeof(*list));
	gw_autofree struct listing *l = calloc(1, sizeof(*l));
	const char *wrong;

	if (!list || !l)
		return gw_error_set(err, ENOMEM, "out of memory");
	l->list = list;
	wrong = walk(xml, len, end_in_list, l);
	if (!wrong && !l->is_list)
		wrong = "no ListBucketResult";
	else if (!wrong && !l->has_truncated)
		wrong = "it does not say whether there is more";
	else if (!wrong && list->truncated && !list->token[0])
		wrong = "there is more, but no token to ask for it";
	if (wrong) {
		gw_s3_list_release(list);
		return gw_error_set(err, strcmp(wrong, "out of memory") ? EPROTO : ENOMEM, "the server's listing is not understood: %s", wrong);
	}
	for (unsigned i = 0; i < list->count; i++)
		list->entries[i].key = (const char *)list->keys.data + l->key_at[i];
	*ret = *list;
	return 0;
}

void gw_s3_list_release(struct gw_s3_list *list)
{
	free(list->entries);
	gw_buf_release(&list->keys);
	list->entries = NULL;
	list->count = 0;
}

/* For people: one line of ASCII. */
static void copy_printable(char *to, size_t size, const char *from)
{
	size_t n = 0;

	for (; *from && n + 1 < size; from++)
		to[n++] = *from >= ' ' && *from < 0x7f ? *from : '?';
	to[n] = '\0';
}

static const char *end_in_fault(struct walk *w, void *self)
{
	struct gw_s3_fault *f = self;

	if (at(w, "Error", "Code", NULL))
		copy_printable(f->code, sizeof(f->code), w->text);
	else if (at(w, "Error", "Message", NULL))
		copy_printable(f->message, sizeof(f->message), w->text);
	else if (at(w, "Error", "Region", NULL))
		copy_printable(f->region, sizeof(f->region), w->text);
	return NULL;
}

void gw_s3_parse_fault(const void *xml, size_t len, struct gw_s3_fault *ret)
{
	struct gw_s3_fault f = { "", "", "" };

	/* What was read before something is wrong is as good as nothing: it only tells people. */
	walk(xml, len, end_in_fault, &f);
	*ret = f;
}

static const char *end_in_upload(struct walk *w, void *self)
{
	char *id = self;

	if (!at(w, "InitiateMultipartUploadResult", "UploadId", NULL))
		return NULL;
	if (w->text_len == 0 || w->text_len > GW_S3_MAX_TOKEN || id[0])
		return "a malformed UploadId";
	memcpy(id, w->text, w->text_len + 1);
	return NULL;
}

int gw_s3_parse_upload(const void *xml, size_t len, char ret[GW_S3_MAX_TOKEN + 1], struct gw_error *err)
{
	char id[GW_S3_MAX_TOKEN + 1] = "";
	const char *wrong = walk(xml, len, end_in_upload, id);

	if (!wrong && !id[0])
		wrong = "no UploadId";
	if (wrong)
		return gw_error_set(err, EPROTO, "the server's answer to a new upload is not understood: %s", wrong);
	memcpy(ret, id, sizeof(id));
	return 0;
}

struct complete {
	struct gw_s3_fault fault;
	bool done, refused;
};

static const char *end_in_complete(struct walk *w, void *self)
{
	struct complete *c = self;

	if (at(w, "CompleteMultipartUploadResult", NULL, NULL))
		c->done = true;
	else if (at(w, "Error", NULL, NULL))
		c->refused = true;
	return end_in_fault(w, &c->fault);
}

int gw_s3_parse_complete(const void *xml, size_t len, struct gw_s3_fault *fault, struct gw_error *err)
{
	struct complete c = { { "", "", "" }, false, false };
	const char *wrong = walk(xml, len, end_in_complete, &c);

	if (wrong || (!c.done && !c.refused))
		return gw_error_set(err, EPROTO, "the server's answer to the end of an upload is not understood: %s", wrong ?: "no known element");
	*fault = c.fault;
	return c.refused ? gw_error_set(err, EIO, "the server could not complete the upload: %s", c.fault.code) : 0;
}
