// SPDX-License-Identifier: Apache-2.0
/* godwit-vmm's disk and network options, what is filled in for those not given, and the host's memory. */
#include "tests/unit/cmocka-all.h"

#include <errno.h>
#include <string.h>

#include "lib/util.h"
#include "vmm/hostmem.h"
#include "vmm/options.h"

static void release(struct gw_vm_config *config)
{
	struct gw_options opts = { .config = *config };

	gw_options_release(&opts);
	memset(config, 0, sizeof(*config));
}

static void test_disks(void **arg)
{
	struct gw_vm_config c = { 0 };
	struct gw_error err = GW_ERROR_INIT;

	assert_int_equal(gw_options_parse_disk(&c, "path=/a", &err), 0);
	assert_int_equal(gw_options_parse_disk(&c, "path=/b,ro", &err), 0);
	assert_int_equal(gw_options_parse_disk(&c, "path=/with,comma,name=root,ro", &err), 0);
	assert_int_equal(gw_options_parse_disk(&c, "path=nbd://h:1/x,ro,name=data", &err), 0);
	assert_int_equal(c.ndisks, 4);
	assert_string_equal(c.disks[0].path, "/a");
	assert_false(c.disks[0].readonly);
	assert_true(c.disks[1].readonly);
	assert_string_equal(c.disks[2].path, "/with,comma");
	assert_string_equal(c.disks[2].name, "root");
	assert_true(c.disks[2].readonly);
	assert_string_equal(c.disks[3].path, "nbd://h:1/x");
	assert_string_equal(c.disks[3].name, "data");

	assert_true(gw_options_parse_disk(&c, "", &err) < 0);
	assert_true(gw_options_parse_disk(&c, "/a", &err) < 0);
	assert_true(gw_options_parse_disk(&c, "path=", &err) < 0);
	assert_true(gw_options_parse_disk(&c, "path=,ro", &err) < 0);
	assert_true(gw_options_parse_disk(&c, "path=/a,name=../x", &err) < 0);
	assert_int_equal(c.ndisks, 4);
	while (c.ndisks < GW_MAX_DISKS)
		assert_int_equal(gw_options_parse_disk(&c, "path=/a", &err), 0);
	assert_true(gw_options_parse_disk(&c, "path=/a", &err) < 0);
	release(&c);
}

static void test_nets(void **arg)
{
	static const uint8_t mac[6] = { 0x52, 0x54, 0, 1, 2, 3 };
	struct gw_vm_config c = { 0 };
	struct gw_error err = GW_ERROR_INIT;

	assert_int_equal(gw_options_parse_net(&c, "tap=tap0", &err), 0);
	assert_int_equal(gw_options_parse_net(&c, "tap=tap1,mac=52:54:00:01:02:03,name=lan", &err), 0);
	assert_string_equal(c.nets[1].tap, "tap1");
	assert_string_equal(c.nets[1].name, "lan");
	assert_memory_equal(c.nets[1].mac, mac, 6);
	assert_true(gw_options_parse_net(&c, "tap=", &err) < 0);
	assert_true(gw_options_parse_net(&c, "tap0", &err) < 0);
	assert_true(gw_options_parse_net(&c, "tap=x,mac=01:00:00:00:00:00", &err) < 0);
	assert_true(gw_options_parse_net(&c, "tap=x,mtu=3", &err) < 0);
	assert_int_equal(c.nnets, 2);
	release(&c);
}

static void test_completion(void **arg)
{
	struct gw_vm_config a = { 0 }, b = { 0 };
	struct gw_error err = GW_ERROR_INIT;

	a.kernel = strdup("k");
	assert_int_equal(gw_options_parse_disk(&a, "path=/a", &err), 0);
	assert_int_equal(gw_options_parse_disk(&a, "path=/b", &err), 0);
	assert_int_equal(gw_options_parse_net(&a, "tap=t0", &err), 0);
	assert_int_equal(gw_options_parse_net(&a, "tap=t1", &err), 0);
	assert_int_equal(gw_options_complete(&a, &err), 0);
	assert_string_equal(a.name, "vm");
	assert_string_equal(a.disks[0].name, "vda");
	assert_string_equal(a.disks[1].name, "vdb");
	assert_string_equal(a.nets[1].name, "net1");
	/* Addresses: unicast, locally administered, different from card to card and VM to VM, the same from start to start. */
	assert_int_equal(a.nets[0].mac[0], 0x52);
	assert_memory_not_equal(a.nets[0].mac, a.nets[1].mac, 6);
	b.kernel = strdup("k");
	b.name = strdup("other");
	assert_int_equal(gw_options_parse_net(&b, "tap=t0", &err), 0);
	assert_int_equal(gw_options_complete(&b, &err), 0);
	assert_memory_not_equal(a.nets[0].mac, b.nets[0].mac, 6);

	assert_int_equal(gw_options_parse_net(&b, "tap=t0,name=x", &err), 0);
	assert_true(gw_options_complete(&b, &err) < 0);
	assert_int_equal(gw_options_parse_disk(&a, "path=/c,name=vda", &err), 0);
	assert_true(gw_options_complete(&a, &err) < 0);
	release(&a);
	release(&b);
	/* Nothing to boot. */
	assert_true(gw_options_complete(&a, &err) < 0);
	a.incoming = true;
	assert_int_equal(gw_options_complete(&a, &err), 0);
	release(&a);
}

static void test_meminfo(void **arg)
{
	uint64_t bytes;

	assert_int_equal(gw_meminfo_available("MemTotal: 9 kB\nMemAvailable:    1024 kB\nX: 1 kB\n", &bytes), 0);
	assert_int_equal(bytes, 1 << 20);
	assert_int_equal(gw_meminfo_available("MemTotal: 9 kB\n", &bytes), -ENOENT);
	assert_int_equal(gw_meminfo_available("", &bytes), -ENOENT);
	assert_int_equal(gw_meminfo_available("MemAvailable: many kB\n", &bytes), -ENOENT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_disks),
		cmocka_unit_test(test_nets),
		cmocka_unit_test(test_completion),
		cmocka_unit_test(test_meminfo),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
