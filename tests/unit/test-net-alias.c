// SPDX-License-Identifier: Apache-2.0
/* Two addresses that change places in packets: everywhere that they stand, with the checksums, and in nothing else. */
#include "cmocka-all.h"

#include <linux/virtio_net.h>
#include <string.h>

#include "lib/util.h"
#include "vmm/net-alias.h"

#define HDR 12
#define ETH 14

static const uint8_t in[6] = { 0x52, 0x54, 0, 0x77, 0, 0x64 }, out[6] = { 0x02, 0xff, 0xfe, 0, 0x80, 0x15 }, other[6] = { 2, 3, 4, 5, 6, 7 };

struct packet {
	uint8_t p[700];
	size_t len;
};

static void put(struct packet *k, const void *data, size_t len)
{
	assert_true(k->len + len <= sizeof(k->p));
	memcpy(k->p + k->len, data, len);
	k->len += len;
}

static void put16(struct packet *k, unsigned v)
{
	put(k, (uint8_t[]){ (uint8_t)(v >> 8), (uint8_t)v }, 2);
}

static void put_zeros(struct packet *k, size_t len)
{
	static const uint8_t zeros[300];

	put(k, zeros, len);
}

static struct packet begin(const uint8_t *to, const uint8_t *from, unsigned type)
{
	struct packet k = { .len = 0 };

	put_zeros(&k, HDR);
	put(&k, to, 6);
	put(&k, from, 6);
	put16(&k, type);
	return k;
}

/* The sum over [from, len), and what a pseudo-header adds. */
static uint16_t sum(const struct packet *k, size_t from, uint32_t plus)
{
	for (size_t i = from; i < k->len; i++)
		plus += (i - from) % 2 ? k->p[i] : (uint32_t)k->p[i] << 8;
	while (plus >> 16)
		plus = (plus & 0xffff) + (plus >> 16);
	return (uint16_t)plus;
}

static void seal(struct packet *k, size_t from, size_t sum_at, uint32_t plus)
{
	uint16_t s = (uint16_t)~sum(k, from, plus);

	k->p[sum_at] = (uint8_t)(s >> 8);
	k->p[sum_at + 1] = (uint8_t)s;
}

/* Exchanged, it is `want`; once more, it is what it was. */
static void check(const struct packet *k, const struct packet *want)
{
	struct packet now = *k;

	assert_int_equal(k->len, want->len);
	assert_true(gw_net_alias_swap(in, out, now.p, now.len));
	assert_memory_equal(now.p, want->p, now.len);
	assert_true(gw_net_alias_swap(out, in, now.p, now.len));
	assert_memory_equal(now.p, k->p, now.len);
}

static struct packet arp(const uint8_t *to, const uint8_t *from, const uint8_t *sender, const uint8_t *target)
{
	struct packet k = begin(to, from, 0x806);

	put(&k, "\0\1\x08\0\6\4\0\2", 8);
	put(&k, sender, 6);
	put(&k, "\x0a\0\0\1", 4);
	put(&k, target, 6);
	put(&k, "\x0a\0\0\2", 4);
	return k;
}

static void headers_and_arp(void **state)
{
	struct packet k = arp(other, in, in, other), want = arp(other, out, out, other), vlan;

	check(&k, &want);
	k = arp(out, other, other, out);
	want = arp(in, other, other, in);
	check(&k, &want);
	/* Whoever has the guest's address outside. */
	k = arp(out, in, in, out);
	want = arp(in, out, out, in);
	check(&k, &want);
	vlan = begin(other, in, 0x8100);
	put16(&vlan, 7);
	put(&vlan, k.p + HDR + ETH - 2, k.len - HDR - ETH + 2);
	want = begin(other, out, 0x8100);
	put16(&want, 7);
	put(&want, arp(in, out, out, in).p + HDR + ETH - 2, k.len - HDR - ETH + 2);
	check(&vlan, &want);
	/* Of others nothing changes; nor where something else stands. */
	k = arp(other, other, other, other);
	assert_false(gw_net_alias_swap(in, out, k.p, k.len));
	k = arp(other, other, in, out);
	k.p[HDR + ETH + 4] = 8;
	assert_false(gw_net_alias_swap(in, out, k.p, k.len));
}

static struct packet neighbour(const uint8_t *from, const uint8_t *option, unsigned type)
{
	struct packet k = begin(other, from, 0x86dd);
	size_t icmp = HDR + ETH + 40;

	put(&k, "\x60\0\0\0\0\x28\x3a\xff", 8);
	for (unsigned i = 0; i < 32; i++)
		put(&k, (uint8_t[]){ (uint8_t)(i * 37) }, 1);
	put(&k, (uint8_t[]){ (uint8_t)type, 0, 0, 0 }, 4);
	put_zeros(&k, 4 + 16);
	put(&k, "\x0e\1nonce1", 8);
	put(&k, "\1\1", 2);
	put(&k, option, 6);
	/* Pseudo-header: both addresses, length, next header (RFC 8200 §8.1). */
	seal(&k, icmp, icmp + 2, (uint32_t)sum(&k, HDR + ETH + 8, 0) - sum(&k, icmp, 0) + 0xffff + 40 + 58);
	return k;
}

static void neighbours_and_their_checksum(void **state)
{
	struct packet k = neighbour(in, in, 135), want = neighbour(out, out, 135);

	check(&k, &want);
	assert_true(memcmp(k.p + HDR + ETH + 42, want.p + HDR + ETH + 42, 2));
	/* Not discovery: the header alone. */
	k = neighbour(in, in, 128);
	want = neighbour(out, in, 128);
	check(&k, &want);
	/* The checksum is yet to be completed by who does it for us. */
	k = neighbour(in, in, 136);
	want = neighbour(out, out, 136);
	k.p[0] = want.p[0] = VIRTIO_NET_HDR_F_NEEDS_CSUM;
	memcpy(want.p + HDR + ETH + 42, k.p + HDR + ETH + 42, 2);
	check(&k, &want);
}

static struct packet dhcp(const uint8_t *from, const uint8_t *chaddr, const uint8_t *id, unsigned fragment, bool summed)
{
	static const uint8_t broadcast[6] = { 255, 255, 255, 255, 255, 255 };
	struct packet k = begin(broadcast, from, 0x800);
	size_t ip = HDR + ETH, udp = ip + 20;

	put(&k, "\x45\0", 2);
	put16(&k, 20 + 8 + 240 + 14);
	put16(&k, 1);
	put16(&k, fragment);
	put(&k, "\x40\x11\0\0\0\0\0\0\xff\xff\xff\xff", 12);
	put16(&k, 68);
	put16(&k, 67);
	put16(&k, 8 + 240 + 14);
	put16(&k, 0);
	put(&k, "\1\1\6\0", 4);
	put_zeros(&k, 24);
	put(&k, chaddr, 6);
	put_zeros(&k, 202);
	put(&k, "\x63\x82\x53\x63", 4);
	/* At an odd place. */
	put(&k, "\0\x35\1\1\x3d\7\1", 7);
	put(&k, id, 6);
	put(&k, "\xff", 1);
	if (summed)
		seal(&k, udp, udp + 6, 0xffff + 0xffff + 17 + 8 + 240 + 14);
	return k;
}

static void leases(void **state)
{
	struct packet k = dhcp(in, in, in, 0, true), want = dhcp(out, out, out, 0, true);

	check(&k, &want);
	assert_true(memcmp(k.p + HDR + ETH + 26, want.p + HDR + ETH + 26, 2));
	k = dhcp(other, out, other, 0x4000, false);
	want = dhcp(other, in, other, 0x4000, false);
	check(&k, &want);
	/* A later fragment has no header, however much looks like one. */
	k = dhcp(in, in, in, 0x2000, true);
	want = dhcp(in, in, in, 0x2000, true);
	memcpy(want.p + HDR + 6, out, 6);
	check(&k, &want);
}

/* Any byte may be wrong or missing: nothing outside the packet is touched, and its length stays. */
static void what_is_wrong_is_harmless(void **state)
{
	const struct packet all[] = { arp(out, in, in, out), neighbour(in, in, 133), neighbour(in, in, 137), dhcp(in, in, in, 0, true) };

	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		for (size_t len = 0; len <= all[i].len; len++) {
			uint8_t *p = malloc(len ?: 1);

			assert_non_null(p);
			memcpy(p, all[i].p, len);
			gw_net_alias_swap(in, out, p, len);
			free(p);
		}
		for (size_t at = 0; at < all[i].len * 8; at++) {
			struct packet k = all[i];

			k.p[at / 8] ^= (uint8_t)(1u << at % 8);
			gw_net_alias_swap(in, out, k.p, k.len);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(headers_and_arp),
		cmocka_unit_test(neighbours_and_their_checksum),
		cmocka_unit_test(leases),
		cmocka_unit_test(what_is_wrong_is_harmless),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
