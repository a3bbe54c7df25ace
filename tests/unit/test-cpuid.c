// SPDX-License-Identifier: Apache-2.0
/* The guest's CPUID: topology, what is hidden, the serialised form, and the comparison of two hosts by feature names. */
#include "tests/unit/cmocka-all.h"

#include <errno.h>
#include <string.h>

#include "lib/util.h"
#include "vmm/cpuid.h"

static void add(struct gw_cpuid *c, uint32_t function, uint32_t index, uint32_t eax, uint32_t ebx, uint32_t ecx, uint32_t edx)
{
	c->entries[c->count++] = (struct kvm_cpuid_entry2){
		.function = function,
		.index = index,
		.flags = function == 0xb || function == 7 || function == 0xd ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
		.eax = eax,
		.ebx = ebx,
		.ecx = ecx,
		.edx = edx,
	};
}

/* An AMD host with a handful of leaves. */
static void make_host(struct gw_cpuid *c)
{
	memset(c, 0, sizeof(*c));
	add(c, 0, 0, 0xd, 0x68747541, 0x444d4163, 0x69746e65);
	add(c, 1, 0, 0x800f12, 0x00000800, 1u << 28 | 1u << 25 | 1u << 31, 0x078bfbff);
	add(c, 7, 0, 0, 1u << 5 | 1u << 3, 0, 0);
	add(c, 0xb, 0, 0, 0, 0, 0);
	add(c, 0xb, 1, 0, 0, 0, 0);
	add(c, 0xd, 0, 7, 0, 0, 0);
	add(c, 0x80000001, 0, 0, 0, 1u << 22 | 1u << 5, 1u << 29 | 1u << 20);
	add(c, 0x80000008, 0, 0x3028, 0, 0x3003, 0);
	add(c, 0x8000001e, 0, 1, 2, 3, 0);
	add(c, 0x40000001, 0, 1u << 3 | 1u << 24, 0, 0, 0);
}

static void test_topology(void **arg)
{
	static const unsigned counts[] = { 1, 2, 3, 8, 32 };
	struct gw_cpuid host, guest;

	make_host(&host);
	for (size_t i = 0; i < ARRAY_SIZE(counts); i++) {
		unsigned n = counts[i], bits = 0;
		const struct kvm_cpuid_entry2 *e;

		while (1u << bits < n)
			bits++;
		gw_cpuid_guest(&host, n, &guest);
		e = gw_cpuid_find(&guest, 1, 0);
		assert_int_equal(e->ebx >> 16 & 0xff, n);
		assert_int_equal(e->edx >> 28 & 1, n > 1);
		e = gw_cpuid_find(&guest, 0xb, 0);
		assert_int_equal(e->ebx, 1);
		e = gw_cpuid_find(&guest, 0xb, 1);
		assert_int_equal(e->eax, bits);
		assert_int_equal(e->ebx, n);
		e = gw_cpuid_find(&guest, 0x80000008, 0);
		assert_int_equal(e->ecx & 0xff, n - 1);
		assert_int_equal(e->ecx >> 12 & 0xf, bits);
		assert_null(gw_cpuid_find(&guest, 0x8000001e, 0));
		assert_int_equal(gw_cpuid_find(&guest, 0x80000001, 0)->ecx >> 22 & 1, 0);
	}
	assert_int_equal(gw_cpuid_phys_bits(&guest), 0x28);
}

static void test_serialised(void **arg)
{
	gw_autobuf buf = GW_BUF_INIT;
	struct gw_error err = GW_ERROR_INIT;
	struct gw_cpuid host, back;

	make_host(&host);
	assert_int_equal(gw_cpuid_serialize(&host, &buf), 0);
	assert_true(buf.len <= GW_CPUID_MAX_BYTES);
	assert_int_equal(gw_cpuid_parse(buf.data, buf.len, &back, &err), 0);
	assert_memory_equal(&host, &back, sizeof(host));
	for (size_t len = 0; len < buf.len; len++)
		assert_int_equal(gw_cpuid_parse(buf.data, len, &back, &err), -EPROTO);
	buf.data[4] = 0xff;
	assert_int_equal(gw_cpuid_parse(buf.data, buf.len, &back, &err), -EPROTO);
	buf.data[0] ^= 1;
	assert_int_equal(gw_cpuid_parse(buf.data, buf.len, &back, &err), -EPROTO);
}

static void lacks(const struct gw_cpuid *guest, const struct gw_cpuid *host, const char *text)
{
	struct gw_error err = GW_ERROR_INIT;

	assert_int_equal(gw_cpuid_check(guest, host, &err), -ENOTSUP);
	if (!strstr(err.msg, text))
		fail_msg("want \"%s\" in: %s", text, err.msg);
}

static void test_check(void **arg)
{
	struct gw_error err = GW_ERROR_INIT;
	struct gw_cpuid host, guest;

	make_host(&host);
	gw_cpuid_guest(&host, 8, &guest);
	assert_int_equal(gw_cpuid_check(&guest, &host, &err), 0);
	/* A newer host is fine. */
	host.entries[2].ebx |= 1u << 16;
	assert_int_equal(gw_cpuid_check(&guest, &host, &err), 0);
	host.entries[2].ebx = 1u << 3;
	lacks(&guest, &host, "lacks avx2");
	host.entries[1].ecx &= ~(1u << 25);
	lacks(&guest, &host, "aes, avx2");
	make_host(&host);
	guest.entries[2].ecx |= 1u << 15;
	lacks(&guest, &host, "CPUID 0x7.0 ECX bit 15");
	guest.entries[2].ebx = guest.entries[2].ecx = guest.entries[2].edx = UINT32_MAX;
	lacks(&guest, &host, "more");
	gw_cpuid_guest(&host, 8, &guest);
	host.entries[0].ebx = 0x756e6547;
	lacks(&guest, &host, "processor of AuthenticAMD");
	make_host(&host);
	host.entries[7].eax = 0x3027;
	lacks(&guest, &host, "40 bits of physical address, this host's processor only 39");
	/* Whatever a peer may send, names are printable. */
	make_host(&host);
	guest.entries[0].ebx = 0x1b5b0a07;
	lacks(&guest, &host, "??");
	guest.count = 0;
	lacks(&guest, &host, "processor of");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_topology),
		cmocka_unit_test(test_serialised),
		cmocka_unit_test(test_check),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
