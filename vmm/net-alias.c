// SPDX-License-Identifier: Apache-2.0
/* Two addresses change places in packets; see net-alias.h. */
#include "vmm/net-alias.h"

#include <linux/virtio_net.h>
#include <net/ethernet.h>
#include <netinet/in.h>
#include <string.h>

#include "lib/util.h"
#include "vmm/tap.h"

#define MAC 6
#define VLANS_MAX 2
#define ARP_LEN 28
#define IPV4_MIN 20
#define IPV6_LEN 40
#define UDP_LEN 8
/* BOOTP (RFC 951) and its options (RFC 2131 §2). */
#define BOOTP_CHADDR 28
#define BOOTP_COOKIE 236
#define BOOTP_OPTIONS 240
#define DHCP_SERVER 67
#define DHCP_CLIENT 68

struct swap {
	const uint8_t *a, *b;
	uint8_t *p;     /* the frame */
	size_t len;
	bool whole_sum; /* transport checksums are complete; else whoever completes them comes after us */
	bool changed;
};

static unsigned be16(const uint8_t *p)
{
	return (unsigned)p[0] << 8 | p[1];
}

/* The Internet checksum's sum of an address whose first byte is the high or low one of a word. */
static uint32_t sum_of(const uint8_t mac[MAC], bool low)
{
	uint32_t sum = 0;

	for (unsigned i = 0; i < MAC; i++)
		sum += (i % 2 == low) ? (uint32_t)mac[i] << 8 : mac[i];
	return sum;
}

static uint16_t fold(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

/* The checksum at `sum_at`, over what begins at `from`, after the address at `at` has become another (RFC 1624). */
static void fix_sum(struct swap *s, size_t sum_at, size_t from, size_t at, const uint8_t before[MAC])
{
	bool low = (at - from) % 2;
	uint16_t sum = (uint16_t)be16(s->p + sum_at);

	sum = (uint16_t)~fold((uint32_t)(uint16_t)~sum + (uint16_t)~fold(sum_of(before, low)) + fold(sum_of(s->p + at, low)));
	s->p[sum_at] = (uint8_t)(sum >> 8);
	s->p[sum_at + 1] = (uint8_t)sum;
}

/* What stands at `at`, if it is there and one of the two, becomes the other. */
static bool swap_at(struct swap *s, size_t at)
{
	const uint8_t *other;

	if (at + MAC > s->len)
		return false;
	other = !memcmp(s->p + at, s->a, MAC) ? s->b : !memcmp(s->p + at, s->b, MAC) ? s->a : NULL;
	if (!other)
		return false;
	memcpy(s->p + at, other, MAC);
	return s->changed = true;
}

static void swap_summed(struct swap *s, size_t sum_at, size_t from, size_t at, bool has_sum)
{
	uint8_t before[MAC];

	if (at + MAC > s->len)
		return;
	memcpy(before, s->p + at, MAC);
	if (swap_at(s, at) && has_sum && s->whole_sum)
		fix_sum(s, sum_at, from, at, before);
}

/* RFC 826, RFC 903: Ethernet and IPv4 only. */
static void swap_arp(struct swap *s, size_t at)
{
	if (at + ARP_LEN > s->len || be16(s->p + at) != 1 || be16(s->p + at + 2) != ETHERTYPE_IP || s->p[at + 4] != MAC || s->p[at + 5] != 4)
		return;
	swap_at(s, at + 8);
	swap_at(s, at + 18);
}

/* Client identifiers (option 61) that are the hardware address (RFC 2132 §9.14). */
static void swap_dhcp_options(struct swap *s, size_t udp, size_t at, size_t end, bool has_sum)
{
	while (at + 2 <= end && s->p[at] != 255) {
		if (s->p[at] == 0) {
			at++;
			continue;
		}
		if (s->p[at] == 61 && s->p[at + 1] == 1 + MAC && at + 2 + 1 + MAC <= end && s->p[at + 2] == 1)
			swap_summed(s, udp + 6, udp, at + 3, has_sum);
		at += 2u + s->p[at + 1];
	}
}

static void swap_dhcp(struct swap *s, size_t udp, size_t end)
{
	static const uint8_t cookie[4] = { 99, 130, 83, 99 };
	size_t bootp = udp + UDP_LEN;
	bool has_sum;

	if (bootp + BOOTP_CHADDR + MAC > end || s->p[bootp + 1] != 1 || s->p[bootp + 2] != MAC)
		return;
	/* A zero means that there is none; one that would be zero is written as its complement, which is the same to a receiver (RFC 768). */
	has_sum = be16(s->p + udp + 6) != 0;
	swap_summed(s, udp + 6, udp, bootp + BOOTP_CHADDR, has_sum);
	if (bootp + BOOTP_OPTIONS <= end && !memcmp(s->p + bootp + BOOTP_COOKIE, cookie, sizeof(cookie)))
		swap_dhcp_options(s, udp, bootp + BOOTP_OPTIONS, end, has_sum);
	if (has_sum && be16(s->p + udp + 6) == 0)
		memset(s->p + udp + 6, 0xff, 2);
}

static void swap_ipv4(struct swap *s, size_t at)
{
	size_t header, udp, end;
	unsigned from, to;

	if (at + IPV4_MIN > s->len || s->p[at] >> 4 != 4)
		return;
	header = (size_t)(s->p[at] & 15) * 4;
	udp = at + header;
	/* Of UDP, and no fragment. */
	if (header < IPV4_MIN || udp + UDP_LEN > s->len || s->p[at + 9] != IPPROTO_UDP || (be16(s->p + at + 6) & 0x3fff))
		return;
	from = be16(s->p + udp);
	to = be16(s->p + udp + 2);
	end = GW_MIN(s->len, at + be16(s->p + at + 2));
	if ((from == DHCP_CLIENT || from == DHCP_SERVER) && (to == DHCP_CLIENT || to == DHCP_SERVER))
		swap_dhcp(s, udp, end);
}

/* Neighbour discovery (RFC 4861 §4): options 1 and 2 are link-layer addresses. */
static void swap_ipv6(struct swap *s, size_t at)
{
	/* Where the options of types 133 to 137 begin: router solicitation and advertisement, neighbour's, redirect. */
	static const uint8_t options_at[] = { 8, 16, 24, 24, 40 };
	size_t icmp = at + IPV6_LEN, end;
	unsigned type;

	if (icmp + 8 > s->len || s->p[at] >> 4 != 6 || s->p[at + 6] != IPPROTO_ICMPV6)
		return;
	type = s->p[icmp];
	if (type < 133 || type >= 133 + ARRAY_SIZE(options_at))
		return;
	end = GW_MIN(s->len, icmp + be16(s->p + at + 4));
	for (size_t o = icmp + options_at[type - 133]; o + 8 <= end && s->p[o + 1] != 0; o += (size_t)s->p[o + 1] * 8) {
		if (s->p[o] == 1 || s->p[o] == 2)
			swap_summed(s, icmp + 2, icmp, o + 2, true);
	}
}

bool gw_net_alias_swap(const uint8_t a[6], const uint8_t b[6], uint8_t *packet, size_t len)
{
	struct swap s = { .a = a, .b = b, .p = packet + GW_TAP_HEADER };
	size_t at = 2 * MAC;
	unsigned type;

	if (len < GW_TAP_HEADER + sizeof(struct ether_header))
		return false;
	s.len = len - GW_TAP_HEADER;
	s.whole_sum = !(packet[offsetof(struct virtio_net_hdr_v1, flags)] & VIRTIO_NET_HDR_F_NEEDS_CSUM);
	swap_at(&s, 0);
	swap_at(&s, MAC);
	type = be16(s.p + at);
	for (unsigned i = 0; i < VLANS_MAX && (type == ETHERTYPE_VLAN || type == 0x88a8) && at + 6 <= s.len; i++) {
		at += 4;
		type = be16(s.p + at);
	}
	if (type == ETHERTYPE_ARP || type == ETHERTYPE_REVARP)
		swap_arp(&s, at + 2);
	else if (type == ETHERTYPE_IP)
		swap_ipv4(&s, at + 2);
	else if (type == ETHERTYPE_IPV6)
		swap_ipv6(&s, at + 2);
	return s.changed;
}
