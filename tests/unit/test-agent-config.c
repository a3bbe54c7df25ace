// SPDX-License-Identifier: Apache-2.0
/* VM files, the agent's configuration, addresses, preambles, records: what is right is taken, what is wrong is named. */
#include "cmocka-all.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/conf.h"
#include "agent/dataport.h"
#include "agent/ini.h"
#include "agent/records.h"
#include "agent/vmconfig.h"
#include "lib/util.h"

#define BASE "[vm]\nname = v\nmemory = 512M\nkernel = /boot/k\n"

static void test_vm_file(void **state)
{
	static const char text[] = "# a comment\n"
				   "[vm]\r\n"
				   "name = web-1\n"
				   "  cpus=4\n"
				   "memory = 2G\n"
				   "kernel = /boot/vmlinuz\n"
				   "initrd = /boot/initrd.img\n"
				   "cmdline = console=ttyS0 root=/dev/vda ; quiet # not a comment\n"
				   "; another\n"
				   "[disk vda]\npath = nbd://10.0.0.9:10809/web\n"
				   "[disk seed]\npath = /srv/seed.img\nreadonly = yes\n"
				   "[net lan]\nbridge = br0\nmac = 52:54:00:00:00:01\n"
				   "[net wan]\ntap = tap7";
	struct gw_error err = GW_ERROR_INIT;
	Godwit__VmConfig *c = NULL, *copy;

	assert_int_equal(gw_vmconfig_parse("web.vm", text, strlen(text), &c, &err), 0);
	assert_string_equal(c->name, "web-1");
	assert_string_equal(c->tenant, "default");
	assert_int_equal(c->cpus, 4);
	assert_true(c->memory == 2ull << 30);
	assert_string_equal(c->cmdline, "console=ttyS0 root=/dev/vda ; quiet # not a comment");
	assert_int_equal(c->n_disks, 2);
	assert_string_equal(c->disks[0]->path, "nbd://10.0.0.9:10809/web");
	assert_true(c->disks[1]->readonly && !c->disks[0]->readonly);
	assert_int_equal(c->n_nets, 2);
	assert_string_equal(c->nets[1]->tap, "tap7");
	assert_int_equal(gw_vmconfig_fill(c), 0);
	assert_string_equal(c->nets[0]->mac, "52:54:00:00:00:01");
	assert_int_equal(strncmp(c->nets[1]->mac, "52:54:00:", 9), 0);
	assert_false(c->no_balloon);
	assert_int_equal(c->share, GODWIT__VM_SHARE__SHARE_TENANT);
	copy = gw_vmconfig_copy(c);
	assert_non_null(copy);
	assert_int_equal(gw_vmconfig_check(copy, &err), 0);
	/* Of a later version. */
	copy->share = (Godwit__VmShare)3;
	assert_int_equal(gw_vmconfig_check(copy, &err), -EINVAL);
	gw_vmconfig_free(copy);
	gw_vmconfig_free(c);
}

struct bad {
	const char *text;
	const char *says; /* part of the message */
};

static const struct bad bad_vms[] = {
	{ "", "no name" },
	{ "name = v\n", "before the first section" },
	{ "[vm]\nname = v\n", "no memory" },
	{ "[vm]\nname = v\nmemory = 512M\n", "no kernel" },
	{ BASE "cpu = 2\n", "f:5: unknown key 'cpu' in [vm]; there are: name, tenant, cpus, memory" },
	{ BASE "cpus = 0\n", "within 1 to 32" },
	{ BASE "cpus = 33\n", "within 1 to 32" },
	{ BASE "cpus = 2x\n", "not a number" },
	{ BASE "cpus = -1\n", "not a number" },
	{ BASE "name = w\n", "given twice" },
	{ BASE "cpus =\n", "has no value" },
	{ BASE "cpus\n", "neither" },
	{ BASE "[vm]\n", "came before" },
	{ BASE "balloon = large\n", "neither yes nor no" },
	{ BASE "share = yes\n", "f:5: share: 'yes' is neither tenant, image nor off" },
	{ BASE "[vm x]\n", "takes no name" },
	{ BASE "[disk]\n", "needs a name" },
	{ BASE "[disk a b]\n", "may hold letters" },
	{ BASE "[disk a]\n", "[disk a] has no path" },
	{ BASE "[disk a]\npath = rel\n", "f:6: path: 'rel' is not an absolute path" },
	{ BASE "[disk a]\npath = http://x/y\n", "of URIs there are" },
	{ BASE "[disk a]\npath = /a,b\n", "comma" },
	{ BASE "[disk a]\npath = /a\nreadonly = maybe\n", "neither yes nor no" },
	{ BASE "[disk a]\npath = /a\n[disk a]\npath = /b\n", "came before" },
	{ BASE "[disk a]\npath = /a\n[disk b]\npath = /a\n", "write the same path" },
	{ BASE "[net n]\n", "needs either tap or bridge" },
	{ BASE "[net n]\ntap = t\nbridge = b\n", "needs either tap or bridge" },
	{ BASE "[net n]\ntap = name-that-is-far-too-long\n", "1 to 15" },
	{ BASE "[net n]\ntap = t\nmac = 01:00:00:00:00:00\n", "multicast" },
	{ BASE "[net n]\ntap = t\nmac = 52:54\n", "not a MAC" },
	{ BASE "[net n]\ntap = t\n[net m]\ntap = t\n", "same tap" },
	{ BASE "[net n]\ntap = t\nmac = 52:54:00:00:00:01\n[net m]\ntap = u\nmac = 52:54:00:00:00:01\n", "same mac" },
	{ BASE "[nets n]\n", "unknown section [nets]; there are: vm, disk, net" },
	{ BASE "[net n\n", "ends with ']'" },
	{ "[vm]\nname = ../x\nmemory = 512M\nkernel = /k\n", "VM name" },
	{ "[vm]\nname = v\nmemory = 1M\nkernel = /k\n", "64M to 1T" },
	{ "[vm]\nname = v\nmemory = 99999999T\nkernel = /k\n", "too large" },
	{ "[vm]\nname = v\nmemory = 100000001\nkernel = /k\n", "multiple of 1M" },
	{ "[vm]\nname = v\nmemory = lots\nkernel = /k\n", "not a size" },
	{ "[vm]\nname = v\nmemory = 512M\nkernel = k\n", "absolute" },
	{ "[vm]\nname = \x01\n", "control character" },
};

static void test_bad_vm_files(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(bad_vms); i++) {
		struct gw_error err = GW_ERROR_INIT;
		Godwit__VmConfig *c = NULL;
		int r = gw_vmconfig_parse("f", bad_vms[i].text, strlen(bad_vms[i].text), &c, &err);

		if (r >= 0 || c || !strstr(err.msg, bad_vms[i].says) || strncmp(err.msg, "f:", 2) != 0)
			fail_msg("%zu: '%s' gave %d '%s', want '%s'", i, bad_vms[i].text, r, err.msg, bad_vms[i].says);
	}
}

/* A VM file with `n` disks; returns its length. */
static size_t many_disks(char *text, unsigned n)
{
	size_t used = (size_t)snprintf(text, 100, BASE);

	for (unsigned i = 0; i < n; i++)
		used += (size_t)snprintf(text + used, 100, "[disk d%u]\npath = /d%u\n", i, i);
	return used;
}

static void test_limits(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	Godwit__VmConfig *c = NULL;
	gw_autofree char *text = malloc(GW_INI_FILE_MAX + 2);
	size_t n = many_disks(text, GW_VM_MAX_DISKS);

	assert_int_equal(gw_vmconfig_parse("f", text, n, &c, &err), 0);
	gw_vmconfig_free(c);
	n = many_disks(text, GW_VM_MAX_DISKS + 1);
	assert_int_equal(gw_vmconfig_parse("f", text, n, &c, &err), -E2BIG);
	memset(text, '#', GW_INI_FILE_MAX + 1);
	assert_int_equal(gw_vmconfig_parse("f", text, GW_INI_FILE_MAX + 1, &c, &err), -EFBIG);
	assert_int_equal(gw_vmconfig_parse("f", text, GW_INI_LINE_MAX + 1, &c, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "longer than"));
	/* A NUL in the middle must not hide what follows. */
	memcpy(text, BASE "\0bad\n", sizeof(BASE "\0bad\n") - 1);
	assert_int_equal(gw_vmconfig_parse("f", text, sizeof(BASE "\0bad\n") - 1, &c, &err), -EINVAL);
}

static const struct bad bad_confs[] = {
	{ "[agent]\nnme = x\n", "f:2: unknown key 'nme' in [agent]; there are: name, listen" },
	{ "[agents]\n", "unknown section" },
	{ "[agent]\nname = a b\n", "may hold letters" },
	{ "[agent]\nlisten = 1.2.3.4:99999\n", "port" },
	{ "[agent]\nlisten = ::1\n", "brackets" },
	{ "[agent]\nstate = var\n", "absolute" },
	{ "[agent]\nrun = /a/path/that/is/far/too/long/for/a/socket/below/it\n", "longer than 32" },
	{ "[tls]\nca = /a\n", "needs all of" },
	{ "[peers]\nh2 = 1.2.3.4\n", "needs a [tls]" },
	{ "[peers]\nh2 = 1.2.3.4\nh2 = 1.2.3.5\n", "f:3: peer h2 is given twice" },
	{ "[agent]\nallow-cli = a, b/c\n", "may hold" },
	{ "[share]\nenable = perhaps\n", "neither yes nor no" },
	{ "[share]\ncpu = 25\n", "no percentage" },
	{ "[share]\ncpu = 0%\n", "within 1 to 100" },
	{ "[share]\ndaemon = ksmd\n", "absolute" },
	{ "[memory]\nreserve = 95%\n", "within 0 to 90" },
	{ "[memory]\nreserve = some\n", "not a size" },
	{ "[memory]\novercommit = 0\n", "from 0.1 to 16" },
	{ "[memory]\novercommit = 1.\n", "no factor" },
	{ "[memory]\novercommit = 1.555\n", "no factor" },
	{ "[memory]\novercommit = -1\n", "no factor" },
	{ "[repositories]\ndirectory = /k\n", "needs a [tls]" },
	{ "[repositories]\ndirectory = k\n", "absolute" },
	{ "[repositories]\nkeep-free = much\n", "keep-free" },
};

static void test_conf(void **state)
{
	static const char good[] = "[agent]\nname = h1\nlisten = [::]:7410\nallow-cli = ann, bob\n"
				   "[tls]\nca = /a\ncert = /b\nkey = /c\n[peers]\nh2 = 10.0.0.2\nh3 = host.example:99\n"
				   "[repositories]\ndirectory = /k\nkeep-free = 20G\n";
	static const char sharing[] = "[share]\nenable = no\ndaemon = /opt/ksmd\ncpu = 40%\nmax-map-count = 100000\n"
				      "[memory]\nreserve = 2G\novercommit = 1.5\n";
	struct gw_error err = GW_ERROR_INIT;
	struct gw_conf c;

	assert_int_equal(gw_conf_parse("f", good, strlen(good), &c, &err), 0);
	assert_string_equal(c.name, "h1");
	assert_int_equal(c.nallow_cli, 2);
	assert_int_equal(c.npeers, 2);
	assert_string_equal(c.socket, "/run/godwit/godwitd.sock");
	assert_string_equal(c.repositories, "/k");
	assert_true(c.repositories_keep_free == 20ull << 30);
	gw_conf_release(&c);
	assert_int_equal(gw_conf_parse("f", sharing, strlen(sharing), &c, &err), 0);
	assert_false(c.share);
	assert_string_equal(c.share_daemon, "/opt/ksmd");
	assert_int_equal(c.share_cpu, 40);
	assert_true(c.reserve == 2ull << 30 && c.reserve_percent == 0 && c.share_map_count == 100000);
	assert_int_equal(c.overcommit, 150);
	gw_conf_release(&c);
	assert_int_equal(gw_conf_parse("f", "", 0, &c, &err), 0);
	assert_true(c.share && c.share_cpu == 25 && c.reserve == 0 && c.reserve_percent == 5 && c.overcommit == 100);
	assert_non_null(strstr(c.share_daemon, "/tests/godwit-ksmd"));
	assert_false(gw_conf_has_tls(&c));
	assert_null(c.repositories);
	assert_true(c.repositories_keep_free == 1ull << 30);
	gw_conf_release(&c);
	for (size_t i = 0; i < ARRAY_SIZE(bad_confs); i++) {
		int r = gw_conf_parse("f", bad_confs[i].text, strlen(bad_confs[i].text), &c, &err);

		gw_conf_release(&c);
		if (r >= 0 || !strstr(err.msg, bad_confs[i].says))
			fail_msg("'%s' gave %d '%s', want '%s'", bad_confs[i].text, r, err.msg, bad_confs[i].says);
	}
}

static void test_addresses(void **state)
{
	struct gw_error err = GW_ERROR_INIT;
	char host[256], port[6], address[280], name[256];

	assert_int_equal(gw_parse_address("h2", "7410", host, port, &err), 0);
	assert_string_equal(host, "h2");
	assert_string_equal(port, "7410");
	assert_int_equal(gw_parse_address("[fe80::1%eth0]:80", "7410", host, port, &err), 0);
	assert_string_equal(host, "fe80::1%eth0");
	assert_string_equal(port, "80");
	assert_true(gw_parse_address("", "1", host, port, &err) < 0);
	assert_true(gw_parse_address("a b", "1", host, port, &err) < 0);
	assert_true(gw_parse_address("[::1", "1", host, port, &err) < 0);
	assert_true(gw_parse_address("h:0", "1", host, port, &err) < 0);
	assert_int_equal(gw_split_host("h2@10.0.0.2:99", address, name, &err), 0);
	assert_string_equal(address, "10.0.0.2:99");
	assert_string_equal(name, "h2");
	assert_int_equal(gw_split_host("[::1]", address, name, &err), 0);
	assert_string_equal(address, "[::1]:7410");
	assert_string_equal(name, "::1");
	assert_true(gw_split_host("@x", address, name, &err) < 0);
}

static void test_preamble(void **state)
{
	struct gw_preamble p = { .number = 2, .count = 3 }, q;
	uint8_t raw[GW_PREAMBLE_LEN];

	memset(p.move_id, 7, sizeof(p.move_id));
	gw_preamble_encode(&p, raw);
	assert_int_equal(gw_preamble_decode(raw, &q), 0);
	assert_memory_equal(&p, &q, sizeof(p));
	raw[24] = 3; /* number past the count */
	assert_int_equal(gw_preamble_decode(raw, &q), -EPROTO);
	raw[24] = 0;
	raw[28] = 1; /* no data channel */
	assert_int_equal(gw_preamble_decode(raw, &q), -EPROTO);
	raw[28] = 18;
	assert_int_equal(gw_preamble_decode(raw, &q), -EPROTO);
	raw[28] = 2;
	assert_int_equal(gw_preamble_decode(raw, &q), 0);
	raw[0] ^= 1;
	assert_int_equal(gw_preamble_decode(raw, &q), -EPROTO);
}

static void test_outcomes(void **state)
{
	char dir[] = "/tmp/gwt-XXXXXX", path[64];
	struct gw_error err = GW_ERROR_INIT;
	struct gw_conf conf = { .state = dir };
	struct gw_agent a = { .conf = &conf };
	const uint8_t id[GW_ID_LEN] = { 1, 2, 3 };
	Godwit__MoveRecord *rec = NULL;

	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/moves", dir);
	assert_int_equal(mkdir(path, 0700), 0);
	assert_int_equal(gw_outcome_get(&a, id, &rec, &err), 0);
	assert_null(rec);
	assert_int_equal(gw_outcome_decide(&a, id, "v", "h1", 2, GODWIT__MOVE_SIDE__MOVE_SOURCE, "because", &err), 0);
	/* The same again is fine; the other way never. */
	assert_int_equal(gw_outcome_decide(&a, id, "v", "h1", 2, GODWIT__MOVE_SIDE__MOVE_SOURCE, "", &err), 0);
	assert_int_equal(gw_outcome_decide(&a, id, "v", "h1", 2, GODWIT__MOVE_SIDE__MOVE_DESTINATION, "", &err), -EEXIST);
	assert_int_equal(gw_outcome_get(&a, id, &rec, &err), 0);
	assert_int_equal(rec->side, GODWIT__MOVE_SIDE__MOVE_SOURCE);
	assert_string_equal(rec->reason, "because");
	godwit__move_record__free_unpacked(rec, NULL);
	snprintf(path, sizeof(path), "rm -r %s", dir);
	assert_int_equal(system(path), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_vm_file),	  cmocka_unit_test(test_bad_vm_files), cmocka_unit_test(test_limits),
		cmocka_unit_test(test_conf),	  cmocka_unit_test(test_addresses),    cmocka_unit_test(test_preamble),
		cmocka_unit_test(test_outcomes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
