// SPDX-License-Identifier: Apache-2.0
/* What an S3 server's refusal means, for the program (errno, whether to try again) and for people (what to check). */
#include <errno.h>
#include <string.h>

#include "lib/util.h"
#include "migrate/repo/s3-call.h"

#define SKEW_S 300 /* S3 takes requests within 15 minutes; from here on a clock is worth a word */

static const struct {
	const char *code;
	int err;
	const char *hint;
} codes[] = {
	{ "SignatureDoesNotMatch", EACCES, "check the secret key (AWS_SECRET_ACCESS_KEY), and that no proxy changes requests" },
	{ "InvalidAccessKeyId", EACCES, "the server does not know the access key: check AWS_ACCESS_KEY_ID, and the endpoint" },
	{ "InvalidToken", EACCES, "check AWS_SESSION_TOKEN" },
	{ "ExpiredToken", EACCES, "the session token has expired: get new credentials" },
	{ "TokenRefreshRequired", EACCES, "the session token has expired: get new credentials" },
	{ "RequestTimeTooSkewed", EACCES, "check this machine's clock" },
	{ "RequestExpired", EACCES, "check this machine's clock" },
	{ "AuthorizationHeaderMalformed", EACCES, "check the region (?region= or AWS_REGION)" },
	{ "AccessDenied", EACCES, "check that the access key may do this in this bucket, and that the bucket and the secret key are the right ones" },
	{ "AllAccessDisabled", EACCES, "the bucket is disabled" },
	{ "AccountProblem", EACCES, "the account has a problem" },
	{ "NoSuchBucket", ENOENT, "check the bucket's name, the endpoint and the region" },
	{ "InvalidBucketName", EINVAL, "check the bucket's name" },
	{ "PermanentRedirect", EINVAL, "check the endpoint and the region" },
	{ "IllegalLocationConstraintException", EINVAL, "check the region (?region= or AWS_REGION)" },
	{ "InvalidLocationConstraint", EINVAL, "check the region (?region= or AWS_REGION)" },
	{ "BucketAlreadyExists", EACCES, "the bucket is somebody else's" },
	{ "QuotaExceeded", ENOSPC, "the quota of the bucket or user is used up" },
	{ "InsufficientCapacity", ENOSPC, "the server is full" },
	{ "XMinioStorageFull", ENOSPC, "the server is full" },
	{ "XMinioAdminBucketQuotaExceeded", ENOSPC, "the quota of the bucket is used up" },
	{ "EntityTooLarge", EFBIG, "the server does not take objects of this size" },
	{ "NoSuchKey", ENOENT, "no such object" },
	{ "NoSuchUpload", ENOENT, "the server has forgotten the upload: does it remove unfinished ones early?" },
	{ "InvalidRange", EPROTO, "the object ends before" },
	{ "PreconditionFailed", EEXIST, "it is there already" },
	{ "XAmzContentSHA256Mismatch", EIO, "what arrived was not what was sent" },
};

static const struct {
	int status, err;
	const char *hint;
} statuses[] = {
	{ 301, EINVAL, "the server points elsewhere: check the endpoint and the region" },
	{ 302, EINVAL, "the server points elsewhere: check the endpoint" },
	{ 307, EINVAL, "the server points elsewhere: check the endpoint and the region" },
	{ 308, EINVAL, "the server points elsewhere: check the endpoint" },
	{ 401, EACCES, "check the credentials" },
	{ 403, EACCES, "check the credentials, and what they allow" },
	{ 404, ENOENT, "no such object" },
	{ 412, EEXIST, "it is there already" },
	{ 416, EPROTO, "the object ends before" },
	{ 429, EHOSTUNREACH, "the server asks for fewer requests" },
	{ 502, EHOSTUNREACH, "a proxy cannot reach the server" },
	{ 503, EHOSTUNREACH, "the server is overloaded or down" },
	{ 504, EHOSTUNREACH, "a proxy cannot reach the server" },
	{ 507, ENOSPC, "the server is full" },
};

bool gw_s3_may_pass(const struct gw_s3_head *head, const struct gw_s3_fault *fault)
{
	/* Of others' statuses, codes that ask to try again: S3's "List of error codes". */
	static const char *const passing[] = {
		"RequestTimeout", "OperationAborted", "ConditionalRequestConflict", "SlowDown", "IncompleteBody", "InternalError",
		"XAmzContentSHA256Mismatch",
	};

	switch (head->status) {
	case 408:
	case 429:
	case 500:
	case 502:
	case 503:
	case 504:
		return true;
	}
	for (unsigned i = 0; i < ARRAY_SIZE(passing); i++) {
		if (!strcmp(fault->code, passing[i]))
			return true;
	}
	return false;
}

static int look_up(const struct gw_s3_head *head, const struct gw_s3_fault *fault, const char **hint)
{
	for (unsigned i = 0; i < ARRAY_SIZE(codes); i++) {
		if (!strcmp(codes[i].code, fault->code)) {
			*hint = codes[i].hint;
			return codes[i].err;
		}
	}
	for (unsigned i = 0; i < ARRAY_SIZE(statuses); i++) {
		if (statuses[i].status == head->status) {
			*hint = statuses[i].hint;
			return statuses[i].err;
		}
	}
	*hint = NULL;
	return EIO;
}

int gw_s3_refused(const struct gw_s3_config *conf, const struct gw_s3_head *head, const struct gw_s3_fault *fault, int64_t now_s,
		  struct gw_error *err)
{
	const char *hint, *region = head->region[0] ? head->region : fault->region;
	int code = look_up(head, fault, &hint);
	char said[360] = "", more[200] = "";

	if (fault->code[0])
		snprintf(said, sizeof(said), " %s%s%.160s%s", fault->code, fault->message[0] ? " (" : "", fault->message,
			 fault->message[0] ? ")" : "");
	/* Only what a region can be is repeated: this is a header's text. */
	if (region[0] && strspn(region, "abcdefghijklmnopqrstuvwxyz0123456789-") == strlen(region) && strcmp(region, conf->region)) {
		snprintf(more, sizeof(more), "; the server says that the bucket is in the region %s, not %s", region, conf->region);
	} else if (code == EACCES && head->date_s >= 0 && (head->date_s - now_s > SKEW_S || now_s - head->date_s > SKEW_S)) {
		int64_t behind = head->date_s - now_s;

		snprintf(more, sizeof(more), "; this machine's clock is %lld s %s the server's", (long long)(behind < 0 ? -behind : behind),
			 behind < 0 ? "ahead of" : "behind");
	}
	return gw_error_set(err, code, "the server answers %d%s%s%s%s", head->status, said, hint ? ": " : "", hint ?: "", more);
}
