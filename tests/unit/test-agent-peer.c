// SPDX-License-Identifier: Apache-2.0
/* Who may speak to an agent, and what it does with those who speak nonsense. */
#include "cmocka-all.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>

#include "agent-host.h"
#include "agent/call.h"
#include "agent/chan.h"
#include "agent/dataport.h"
#include "agent/vmconfig.h"
#include "lib/bytes.h"
#include "lib/clock.h"
#include "lib/io.h"
#include "lib/util.h"

static struct agent_lab lab;
static char pki[80], other[80];

#define check(cond) \
	do { \
		if (!(cond)) { \
			agent_lab_dump(&lab); \
			fail_msg("%s:%d: %s", __FILE__, __LINE__, #cond); \
		} \
	} while (0)

static void issue(const char *dir, const char *name, enum gw_role role, int days)
{
	static const char *const ip[] = { "127.0.0.1" };
	struct gw_pki_request req = { .name = name, .role = role, .ip = ip, .nip = 1, .days = days };
	struct gw_error err = GW_ERROR_INIT;

	if (gw_pki_issue(dir, dir, &req, &err) < 0)
		fail_msg("%s", err.msg);
}

static int setup(void **state)
{
	agent_lab_init(&lab, 1);
	snprintf(pki, sizeof(pki), "%s/pki", lab.dir);
	snprintf(other, sizeof(other), "%s/other", lab.dir);
	assert_int_equal(gw_pki_init(other, "someone else", 10, NULL), 0);
	issue(pki, "h9", GW_ROLE_HOST, 5);
	issue(pki, "h8", GW_ROLE_HOST, 5);
	issue(pki, "ann", GW_ROLE_CLIENT, 5);
	issue(pki, "old", GW_ROLE_CLIENT, -1);
	issue(other, "ann", GW_ROLE_CLIENT, 5);
	issue(other, "h9", GW_ROLE_HOST, 5);
	agent_host_start(&lab, 0, NULL);
	return 0;
}

static int teardown(void **state)
{
	agent_lab_release(&lab);
	return 0;
}

/* Connects to the agent with a certificate; the CA that we trust is `ca_dir`'s. */
static int try_connect(const char *ca_dir, const char *cert_dir, const char *cert, const char *name, struct gw_chan **ret,
		       struct gw_error *err)
{
	char ca[120], crt[120], key[120], address[64];
	SSL_CTX *tls = NULL;
	int r;

	snprintf(ca, sizeof(ca), "%s/ca.crt", ca_dir);
	snprintf(crt, sizeof(crt), "%s/%s.crt", cert_dir, cert);
	snprintf(key, sizeof(key), "%s/%s.key", cert_dir, cert);
	snprintf(address, sizeof(address), "127.0.0.1:%u", lab.h[0].port);
	r = gw_tls_new(ca, crt, key, false, &tls, err);
	r = r ?: gw_chan_connect_tls(tls, address, name, gw_now_ns() + TEST_PATIENCE, ret, err);
	SSL_CTX_free(tls);
	return r;
}

/* A request without content over a fresh connection: what the agent answers. */
static int try_ask(const char *cert_dir, const char *cert, Godwit__AgentRequest__OpCase op, struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__HostRequest host = GODWIT__HOST_REQUEST__INIT;
	Godwit__PeerMove move = GODWIT__PEER_MOVE__INIT;
	uint8_t id[16] = { 42 };
	struct gw_chan *c = NULL;
	int r = try_connect(pki, cert_dir, cert, "h1", &c, err);

	if (r < 0)
		return r;
	move.move_id.data = id;
	move.move_id.len = sizeof(id);
	req.op_case = op;
	if (op >= GODWIT__AGENT_REQUEST__OP_PEER_SPAWN)
		req.peer_spawn = &move;
	else
		req.hello = &host;
	r = gw_ask(c, &req, gw_now_ns() + TEST_PATIENCE, NULL, err);
	gw_chan_free(c);
	return r;
}

static void test_certificates(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_chan *c = NULL;

	assert_int_equal(try_ask(pki, "ann", GODWIT__AGENT_REQUEST__OP_LIST, &err), 0);
	assert_int_equal(try_ask(pki, "h9", GODWIT__AGENT_REQUEST__OP_HELLO, &err), 0);
	/* Signed by another CA, although it bears the right name. */
	assert_true(try_ask(other, "ann", GODWIT__AGENT_REQUEST__OP_LIST, &err) < 0);
	assert_true(try_ask(other, "h9", GODWIT__AGENT_REQUEST__OP_HELLO, &err) < 0);
	/* Expired. */
	assert_true(try_ask(pki, "old", GODWIT__AGENT_REQUEST__OP_LIST, &err) < 0);
	/* A CA of ours that the host's certificate is not from; a name that it does not have. */
	assert_true(try_connect(other, pki, "ann", "h1", &c, &err) < 0);
	assert_non_null(strstr(err.msg, "certificate"));
	assert_true(try_connect(pki, pki, "ann", "h2", &c, &err) < 0);
	assert_non_null(strstr(err.msg, "mismatch"));
	assert_int_equal(try_connect(pki, pki, "ann", "127.0.0.1", &c, &err), 0);
	gw_chan_free(c);
}

static void test_roles(void **state)
{
	static const Godwit__AgentRequest__OpCase peer_ops[] = {
		GODWIT__AGENT_REQUEST__OP_PEER_SPAWN, GODWIT__AGENT_REQUEST__OP_PEER_ATTACH,   GODWIT__AGENT_REQUEST__OP_PEER_ABORT,
		GODWIT__AGENT_REQUEST__OP_PEER_OUTCOME, GODWIT__AGENT_REQUEST__OP_PEER_RELEASED,
	};
	struct gw_error err = GW_ERROR_INIT;

	/* A client is no peer, and a host is no client. */
	for (size_t i = 0; i < ARRAY_SIZE(peer_ops); i++)
		assert_int_equal(try_ask(pki, "ann", peer_ops[i], &err), -EACCES);
	assert_int_equal(try_ask(pki, "h9", GODWIT__AGENT_REQUEST__OP_LIST, &err), -EACCES);
	assert_int_equal(try_ask(pki, "h9", GODWIT__AGENT_REQUEST__OP_PEER_OUTCOME, &err), 0);
	/* Another host's move is not for this one's eyes. */
	assert_int_equal(try_ask(pki, "h8", GODWIT__AGENT_REQUEST__OP_PEER_OUTCOME, &err), -EACCES);
	/* Steps out of turn. */
	assert_int_equal(try_ask(pki, "h9", GODWIT__AGENT_REQUEST__OP_PEER_SPAWN, &err), -EPROTO);
	assert_int_equal(try_ask(pki, "h9", GODWIT__AGENT_REQUEST__OP_PEER_ATTACH, &err), -EPROTO);
}

/* A client's certificate cannot serve as an agent's: we would not connect to it. */
static void test_client_as_host(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	char path[256];
	gw_autofree char *text = NULL;
	size_t len;

	assert_int_equal(gw_read_file(lab.h[0].conf, 4096, &text, &len, &err), 0);
	snprintf(path, sizeof(path), "sed 's|pki/h1|pki/ann|; s|name = h1|name = ann|' %s > %s/ann.conf", lab.h[0].conf, lab.dir);
	assert_int_equal(system(path), 0);
	agent_host_kill(&lab, 0, SIGTERM);
	snprintf(path, sizeof(path), "%s/ann.conf", lab.dir);
	{
		char *argv[] = { (char *)"godwitd", (char *)"--config", path, NULL };
		pid_t pid = fork();

		if (pid == 0) {
			int null = open("/dev/null", O_WRONLY);

			dup2(null, 2);
			execv("/proc/self/exe", argv);
			_exit(0);
		}
		assert_int_equal(agent_cli_wait(pid), 1);
	}
	agent_host_start(&lab, 0, NULL);
}

static int tcp(unsigned port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	return fd;
}

static void still_there(void)
{
	check(!agent_host_dead(&lab, 0));
	check(agent_cli(&lab, 0, NULL, 0, "ls") == 0);
}

/* Everything that is not TLS, on the port where TLS is expected; all that is no preamble at the other. */
static void test_garbage(void **state)
{
	uint8_t junk[4096];

	for (int round = 0; round < 20; round++) {
		for (int port = 0; port < 2; port++) {
			int fd = tcp(port ? lab.h[0].port : lab.h[0].data_port);

			for (size_t i = 0; i < sizeof(junk); i++)
				junk[i] = (uint8_t)(i * 31 + (size_t)round * 7 + (i >> 3));
			if (round % 3 == 0)
				memcpy(junk, "GWDMOVE1", 8);
			send(fd, junk, (size_t)round * 200, MSG_NOSIGNAL);
			close(fd);
		}
	}
	still_there();
}

static int unix_connect(void)
{
	int fd = -1;

	assert_int_equal(gw_unix_connect(lab.h[0].socket, &fd, NULL), 0);
	return fd;
}

/* Whether the agent hangs up (true), before we lose patience. */
static bool hangs_up(int fd)
{
	uint8_t buf[512];
	uint64_t deadline = gw_now_ns() + TEST_PATIENCE;

	while (gw_now_ns() < deadline) {
		ssize_t n;

		if (gw_wait_fd(fd, POLLIN, deadline) < 0)
			return false;
		n = recv(fd, buf, sizeof(buf), 0);
		if (n <= 0)
			return true;
	}
	return false;
}

static void frame(uint8_t raw[8], uint32_t len, uint16_t type, uint16_t version)
{
	gw_put_le32(raw, len);
	gw_put_le16(raw + 4, type);
	gw_put_le16(raw + 6, version);
}

static void test_bad_frames(void **state)
{
	static const struct {
		uint32_t len;
		uint16_t type, version;
	} bad[] = {
		{ 0xffffffff, GW_FRAME_AGENT_REQUEST, 1 }, /* longer than any memory */
		{ GW_AGENT_FRAME_MAX + 1, GW_FRAME_AGENT_REQUEST, 1 },
		{ 4, GW_FRAME_AGENT_REPLY, 1 },
		{ 4, 0xffff, 1 },
		{ 4, GW_FRAME_AGENT_REQUEST, 2 },
		{ 4, GW_FRAME_AGENT_REQUEST, 1 }, /* a body that is no protobuf */
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		int fd = unix_connect();
		uint8_t raw[12];

		memset(raw, 0xff, sizeof(raw));
		frame(raw, bad[i].len, bad[i].type, bad[i].version);
		send(fd, raw, sizeof(raw), MSG_NOSIGNAL);
		check(hangs_up(fd));
		close(fd);
	}
	still_there();
}

/* Connections that never say anything, more than may be: others are dropped, and those who come after are served. */
static void test_flood(void **state)
{
	int fds[160];

	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		fds[i] = i % 2 ? tcp(lab.h[0].data_port) : unix_connect();
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		close(fds[i]);
	for (int i = 0; i < 3000 && agent_cli(&lab, 0, NULL, 0, "ls") != 0; i++)
		usleep(20000);
	still_there();
}

/* A request to take a VM, whose fields are wrong one at a time. */
static int prepare(void (*spoil)(Godwit__PeerPrepare *p), struct gw_error *err)
{
	Godwit__AgentRequest req = GODWIT__AGENT_REQUEST__INIT;
	Godwit__PeerPrepare p = GODWIT__PEER_PREPARE__INIT;
	Godwit__VmmFeatures features = GODWIT__VMM_FEATURES__INIT;
	Godwit__BootFile none = GODWIT__BOOT_FILE__INIT, none2 = GODWIT__BOOT_FILE__INIT;
	uint8_t id[16] = { 9 }, secret[32] = { 1 };
	Godwit__VmConfig *config = NULL;
	struct gw_chan *c = NULL;
	static const char text[] = "[vm]\nname = p\nmemory = 64M\nkernel = /k\n";
	int r;

	assert_int_equal(gw_vmconfig_parse("p", text, strlen(text), &config, err), 0);
	p.move_id = (ProtobufCBinaryData){ sizeof(id), id };
	p.secret = (ProtobufCBinaryData){ sizeof(secret), secret };
	p.epoch = 2;
	p.config = config;
	p.features = &features;
	p.kernel = &none;
	p.initrd = &none2;
	p.channels = 2;
	spoil(&p);
	req.op_case = GODWIT__AGENT_REQUEST__OP_PEER_PREPARE;
	req.peer_prepare = &p;
	r = try_connect(pki, pki, "h9", "h1", &c, err);
	r = r ?: gw_ask(c, &req, gw_now_ns() + TEST_PATIENCE, NULL, err);
	gw_chan_free(c);
	p.config = NULL;
	gw_vmconfig_free(config);
	return r;
}

static void spoil_nothing(Godwit__PeerPrepare *p)
{
}
static void spoil_id(Godwit__PeerPrepare *p)
{
	p->move_id.len = 15;
}
static void spoil_secret(Godwit__PeerPrepare *p)
{
	p->secret.len = 0;
}
static void spoil_channels(Godwit__PeerPrepare *p)
{
	p->channels = 1000;
}
static void spoil_epoch(Godwit__PeerPrepare *p)
{
	p->epoch = UINT64_MAX;
}
static void spoil_features(Godwit__PeerPrepare *p)
{
	p->features = NULL;
}
static void spoil_digest(Godwit__PeerPrepare *p)
{
	p->kernel->sha256 = (ProtobufCBinaryData){ 3, p->secret.data };
}
static void spoil_name(Godwit__PeerPrepare *p)
{
	gw_pb_set_string(&p->config->name, "../../etc");
}
static void spoil_memory(Godwit__PeerPrepare *p)
{
	p->config->memory = 512ull << 30;
}
static void spoil_clear(Godwit__PeerPrepare *p)
{
	p->clear = true;
}
static void spoil_bridge(Godwit__PeerPrepare *p)
{
	p->config->nets = calloc(1, sizeof(*p->config->nets));
	p->config->nets[0] = malloc(sizeof(Godwit__VmNet));
	godwit__vm_net__init(p->config->nets[0]);
	gw_pb_set_string(&p->config->nets[0]->name, "n");
	gw_pb_set_string(&p->config->nets[0]->bridge, "no-such-bridge");
	p->config->n_nets = 1;
}

static void test_bad_prepare(void **state)
{
	static const struct {
		void (*spoil)(Godwit__PeerPrepare *p);
		const char *says;
	} bad[] = {
		{ spoil_id, "malformed" },    { spoil_secret, "malformed" }, { spoil_channels, "malformed" },
		{ spoil_epoch, "malformed" }, { spoil_features, "malformed" }, { spoil_digest, "malformed" },
		{ spoil_name, "VM name" },    { spoil_memory, "needs" },     { spoil_clear, "in the clear" },
		{ spoil_bridge, "no bridge" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct gw_error err = GW_ERROR_INIT;
		int r = prepare(bad[i].spoil, &err);

#ifdef GW_BENCH_SWITCHES
		if (bad[i].spoil == spoil_clear)
			continue;
#endif
		if (r >= 0 || !strstr(err.msg, bad[i].says))
			fail_msg("%zu: %d '%s', want '%s'", i, r, err.msg, bad[i].says);
		check(agent_cli(&lab, 0, NULL, 0, "show p") == 3);
	}
	still_there();
}

/* Who prepares a move and goes away leaves nothing, and the move is decided against him for ever. */
static void test_abandoned(void **state)
{
	struct gw_error err = GW_ERROR_INIT;

	assert_int_equal(prepare(spoil_nothing, &err), 0);
	check(agent_wait_state(&lab, 0, "p", "none"));
	assert_int_equal(prepare(spoil_nothing, &err), -EEXIST);
	check(strstr(err.msg, "ended already"));
	still_there();
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_certificates), cmocka_unit_test(test_roles),	 cmocka_unit_test(test_client_as_host),
		cmocka_unit_test(test_garbage),	     cmocka_unit_test(test_bad_frames),	 cmocka_unit_test(test_flood),
		cmocka_unit_test(test_bad_prepare),  cmocka_unit_test(test_abandoned),
	};
	int status;

	if (agent_lab_role(argc, argv, &status))
		return status;
	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, setup, teardown);
}
