// SPDX-License-Identifier: Apache-2.0
/* Three agents, of which the second keeps repositories for the others: all commands with godwit://, who may use them, and what is said when it goes wrong. */
#include "cmocka-all.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

#include "agent-host.h"
#include "agent/call.h"
#include "agent/ticket.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/tcp.h"
#include "lib/util.h"
#include "migrate/repo/bucket.h"
#include "repo-help.h"

#define URL "godwit://h2/store"

static struct agent_lab lab;
static char pass[120];

#define check(cond) \
	do { \
		if (!(cond)) { \
			agent_lab_dump(&lab); \
			fail_msg("%s:%d: %s", __FILE__, __LINE__, #cond); \
		} \
	} while (0)

/* The command succeeds, or fails with `status`, and says `words`. */
static void says(unsigned host, int status, const char *words, const char *command)
{
	gw_autofree char *out = calloc(1, 65536);
	int rc = agent_cli(&lab, host, out, 65536, "%s --passphrase-file %s", command, pass);

	if (rc != status || !strstr(out, words)) {
		agent_lab_dump(&lab);
		fail_msg("%s: %d, not %d with '%s': %s", command, rc, status, words, out);
	}
}

static void configure(const char *more)
{
	char text[400];

	snprintf(text, sizeof(text), "[share]\nenable = no\n[memory]\nreserve = 0%%\n%s", more);
	agent_host_conf(&lab, 1, text);
}

static void keep(const char *more)
{
	char text[300];

	snprintf(text, sizeof(text), "[repositories]\ndirectory = %s/kept\n%s", lab.dir, more);
	configure(text);
}

static int setup(void **state)
{
	agent_lab_init(&lab, 3);
	keep("keep-free = 0\n");
	snprintf(pass, sizeof(pass), "%s/pass", lab.dir);
	assert_int_equal(gw_write_file_atomic(pass, REPO_PASS "\n", strlen(REPO_PASS) + 1, 0600, NULL), 0);
	for (unsigned i = 0; i < 3; i++)
		agent_host_start(&lab, i, NULL);
	says(0, 0, "made the repository " URL, "repo init " URL);
	return 0;
}

static int teardown(void **state)
{
	agent_lab_release(&lab);
	return 0;
}

static void start_vm(const char *name)
{
	check(agent_cli(&lab, 0, NULL, 0, "create %s", agent_vm_file(&lab, name, NULL)) == 0);
	check(agent_cli(&lab, 0, NULL, 0, "start %s", name) == 0);
}

static void end_vm(unsigned host, const char *name)
{
	check(agent_cli(&lab, host, NULL, 0, "stop %s --force", name) == 0);
	check(agent_cli(&lab, host, NULL, 0, "rm %s", name) == 0);
}

static void suspends_to_another_host_and_resumes_on_a_third(void **state)
{
	start_vm("v");
	says(0, 0, "saved as v generation 1", "snapshot v --to " URL);
	says(0, 0, "suspended as v generation 2", "suspend v --live --to " URL);
	check(agent_wait_state(&lab, 0, "v", "suspended"));
	says(2, 0, "v", "resume v --from " URL);
	check(agent_wait_state(&lab, 2, "v", "running") && agent_wait_state(&lab, 0, "v", "moved"));
	says(2, 0, "twin-2: runs on h3", "clone v@1 2 --name twin --from " URL);
	end_vm(2, "twin-1");
	end_vm(2, "twin-2");
	/* The host that keeps it uses it as any other. */
	says(2, 0, "suspended", "suspend v --to " URL);
	says(1, 0, "v", "resume v --from " URL);
	check(agent_wait_state(&lab, 1, "v", "running"));
	end_vm(1, "v");
	check(agent_cli(&lab, 0, NULL, 0, "rm v") == 0 && agent_cli(&lab, 2, NULL, 0, "rm v") == 0);
}

static void all_commands(void **state)
{
	char command[200];

	start_vm("w");
	says(0, 0, "saved as w generation 1", "snapshot w --to " URL);
	end_vm(0, "w");
	for (unsigned i = 0; i < 3; i++)
		says(i, 0, "w", "repo ls " URL);
	says(2, 0, "w", "repo show " URL " w");
	says(2, 0, "", "repo stats " URL);
	says(2, 0, "", "repo check --read-data " URL);
	says(2, 0, "", "repo key ls " URL);
	says(0, 0, "made", "repo init godwit://h2/second");
	says(0, 0, "w@1: copied as w@1", "repo copy " URL " --to godwit://h2/second w");
	says(2, 0, "is there already", "repo copy " URL " --to godwit://h2/second w");
	snprintf(command, sizeof(command), "repo init file://%s/here", lab.dir);
	says(0, 0, "made", command);
	snprintf(command, sizeof(command), "repo copy godwit://h2/second --to file://%s/here", lab.dir);
	says(0, 0, "copied", command);
	says(2, 0, "", "repo rm godwit://h2/second w");
	says(2, 0, "", "repo prune --exclusive godwit://h2/second");
	says(2, 3, "there is no snapshot w", "repo show godwit://h2/second?retry=5 w");
}

static void errors_say_what_to_do(void **state)
{
	says(0, 3, "'godwit repo init godwit://h2/none' makes it", "repo ls godwit://h2/none");
	says(0, 4, "is a repository already", "repo init " URL);
	says(0, 1, "host h3 keeps no repositories for others: its configuration has no [repositories]", "repo ls godwit://h3/store");
	says(0, 2, "godwit://HOST/NAME", "repo ls godwit://h2");
	says(0, 2, "1 to 63 letters", "repo init godwit://h2/../../etc");
	says(0, 2, "1 to 63 letters", "repo init godwit://h2/..");
	says(0, 2, "no parameter", "repo ls " URL "?region=x");
	says(0, 5, "host nowhere.invalid cannot be reached", "repo ls godwit://nowhere.invalid/store");
	start_vm("x");
	says(0, 1, "'godwit repo init godwit://h2/none' makes it", "suspend x --to godwit://h2/none");
	check(agent_wait_state(&lab, 0, "x", "running"));
	end_vm(0, "x");
}

/* ---- tickets ---- */

static struct gw_chan *connect_as(const char *name, enum gw_role role)
{
	char dir[90], ca[120], cert[120], key[120], address[40];
	struct gw_pki_request req = { .name = name, .role = role, .days = 5 };
	struct gw_error err = GW_ERROR_INIT;
	struct gw_chan *c = NULL;
	SSL_CTX *tls = NULL;

	snprintf(dir, sizeof(dir), "%s/pki", lab.dir);
	snprintf(ca, sizeof(ca), "%s/ca.crt", dir);
	snprintf(cert, sizeof(cert), "%s/%s.crt", dir, name);
	snprintf(key, sizeof(key), "%s/%s.key", dir, name);
	if (access(cert, F_OK) < 0)
		check(gw_pki_issue(dir, dir, &req, NULL) == 0);
	snprintf(address, sizeof(address), "127.0.0.1:%u", lab.h[1].port);
	check(gw_tls_new(ca, cert, key, false, &tls, &err) == 0);
	if (gw_chan_connect_tls(tls, address, "h2", gw_now_ns() + TEST_PATIENCE, &c, &err) < 0)
		fail_msg("%s", err.msg);
	SSL_CTX_free(tls);
	return c;
}

static int ask(const char *who, enum gw_role role, const char *host, const char *name, bool create, struct gw_ticket *t, struct gw_error *err)
{
	struct gw_chan *c = connect_as(who, role);
	int r = gw_ticket_ask(c, host, name, create, "127.0.0.1", t, err);

	gw_chan_free(c);
	return r;
}

static void who_gets_a_ticket(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_bucket *b = NULL;
	struct gw_ticket t;

	assert_int_equal(ask("h1", GW_ROLE_HOST, "", "store", false, &t, &err), 0);
	assert_int_equal(gw_bucket_open_with(URL, &t, false, &b, &err), 0);
	gw_bucket_free(b);
	/* For one repository, not the next. */
	assert_int_equal(gw_bucket_open_with("godwit://h2/second", &t, false, &b, &err), -EACCES);
	snprintf(t.name, sizeof(t.name), "second");
	assert_int_equal(gw_bucket_open_with("godwit://h2/second", &t, false, &b, &err), -EACCES);
	assert_non_null(strstr(err.msg, "secret of this repository"));
	assert_int_equal(ask("operator", GW_ROLE_CLIENT, "", "store", false, &t, &err), 0);
	/* A host asks for itself; names stay within the folder. */
	assert_int_equal(ask("h1", GW_ROLE_HOST, "h3", "store", false, &t, &err), -EINVAL);
	assert_int_equal(ask("h1", GW_ROLE_HOST, "", "..", true, &t, &err), -EINVAL);
	assert_int_equal(ask("h1", GW_ROLE_HOST, "", "../h1.state/x", true, &t, &err), -EINVAL);
	assert_int_equal(ask("h1", GW_ROLE_HOST, "", "", true, &t, &err), -EINVAL);
	/* Nobody, of a host that keeps none; what was given is of no use then. */
	assert_int_equal(ask("h1", GW_ROLE_HOST, "", "store", false, &t, &err), 0);
	agent_host_kill(&lab, 1, SIGTERM);
	configure("");
	agent_host_start(&lab, 1, NULL);
	assert_int_equal(gw_bucket_open_with(URL "?retry=1", &t, false, &b, &err), -EHOSTUNREACH);
	assert_int_equal(ask("h1", GW_ROLE_HOST, "", "store", false, &t, &err), -EOPNOTSUPP);
	agent_host_kill(&lab, 1, SIGTERM);
	keep("keep-free = 0\n");
	agent_host_start(&lab, 1, NULL);
}

/* By the client's certificate, where no agent runs. */
static void a_client_asks_the_host_itself(void **state)
{
	char text[300], out[2048];

	gw_chan_free(connect_as("operator", GW_ROLE_CLIENT));
	snprintf(text, sizeof(text), "%s/pki", lab.dir);
	check(agent_cli(&lab, 0, out, sizeof(out),
			"--socket %s/none --ca %s/ca.crt --cert %s/operator.crt --key %s/operator.key repo ls godwit://h2@127.0.0.1:%u/store --passphrase-file %s",
			lab.dir, text, text, text, lab.h[1].port, pass) == 0);
	check(agent_cli(&lab, 0, out, sizeof(out), "--socket %s/none --cert %s/none repo ls " URL " --passphrase-file %s", lab.dir, lab.dir, pass) == 5);
	check(strstr(out, "no agent answers") != NULL);
}

/* Killed and started again, it knows the tickets that it gave. */
static void it_is_restarted(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	const struct gw_bucket_piece piece = { "content", 7 };
	char back[8] = "";
	struct gw_bucket *b;
	struct gw_ticket t;

	assert_int_equal(ask("h1", GW_ROLE_HOST, "", "store", false, &t, &err), 0);
	assert_int_equal(gw_bucket_open_with(URL, &t, false, &b, &err), 0);
	assert_int_equal(gw_bucket_put(b, "test/a", &piece, 1, GW_BUCKET_IF_ABSENT, &err), 0);
	agent_host_kill(&lab, 1, SIGKILL);
	agent_host_start(&lab, 1, NULL);
	assert_int_equal(gw_bucket_get(b, "test/a", 0, 7, back, &err), 0);
	assert_string_equal(back, "content");
	assert_int_equal(gw_bucket_remove(b, "test/a", &err), 0);
	gw_bucket_free(b);
}

static void a_full_host_refuses(void **state)
{
	agent_host_kill(&lab, 1, SIGTERM);
	keep("keep-free = 1000T\n");
	agent_host_start(&lab, 1, NULL);
	says(0, 1, "host h2 has no room", "repo init godwit://h2/third");
	start_vm("y");
	says(0, 1, "host h2 has no room", "suspend y --to " URL);
	check(agent_wait_state(&lab, 0, "y", "running"));
	end_vm(0, "y");
	agent_host_kill(&lab, 1, SIGTERM);
	keep("keep-free = 0\n");
	agent_host_start(&lab, 1, NULL);
}

/* Connections of one ticket are bounded: the next ones are dropped, other tickets are served. */
static void one_ticket_does_not_take_all(void **state)
{
	uint8_t preamble[GW_TICKET_PREAMBLE];
	struct gw_error err = GW_ERROR_INIT;
	struct gw_bucket *many[17], *b;
	struct gw_ticket t, other;
	int silent[20];
	unsigned n = 0;
	char port[8];

	assert_int_equal(ask("h1", GW_ROLE_HOST, "", "store", false, &t, &err), 0);
	assert_int_equal(ask("h1", GW_ROLE_HOST, "", "store", false, &other, &err), 0);
	/* Who only says the ticket's name takes no place of it. */
	snprintf(port, sizeof(port), "%u", t.port);
	gw_ticket_encode(&t, preamble);
	for (unsigned i = 0; i < ARRAY_SIZE(silent); i++) {
		assert_int_equal(gw_tcp_connect("127.0.0.1", port, gw_now_ns() + TEST_PATIENCE, &silent[i], &err), 0);
		assert_int_equal(gw_write_full(silent[i], preamble, sizeof(preamble), gw_now_ns() + TEST_PATIENCE), 0);
	}
	while (n < ARRAY_SIZE(many) && gw_bucket_open_with(URL "?retry=1", &t, false, &many[n], &err) == 0)
		n++;
	assert_int_equal(n, 16);
	assert_int_equal(err.code, EHOSTUNREACH);
	assert_int_equal(gw_bucket_open_with(URL, &other, false, &b, &err), 0);
	gw_bucket_free(b);
	while (n)
		gw_bucket_free(many[--n]);
	/* The places come back. */
	assert_int_equal(gw_bucket_open_with(URL, &t, false, &b, &err), 0);
	gw_bucket_free(b);
	for (unsigned i = 0; i < ARRAY_SIZE(silent); i++)
		close(silent[i]);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(suspends_to_another_host_and_resumes_on_a_third),
		cmocka_unit_test(all_commands),
		cmocka_unit_test(errors_say_what_to_do),
		cmocka_unit_test(who_gets_a_ticket),
		cmocka_unit_test(a_client_asks_the_host_itself),
		cmocka_unit_test(it_is_restarted),
		cmocka_unit_test(a_full_host_refuses),
		cmocka_unit_test(one_ticket_does_not_take_all),
	};
	int status;

	if (agent_lab_role(argc, argv, &status))
		return status;
	return cmocka_run_group_tests(tests, setup, teardown);
}
