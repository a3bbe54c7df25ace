// SPDX-License-Identifier: Apache-2.0
/*
 * virtio-net, the control queue (virtio 1.2 §5.1.6.5) and announcements after a move: RARP frames in the guest's name teach
 * bridges and switches the new way at once, and a guest that can is asked to announce its addresses itself.
 */
#include <errno.h>
#include <net/ethernet.h>
#include <net/if_arp.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/timerfd.h>

#include "lib/util.h"
#include "vmm/net-internal.h"

/* Pauses before the repeated frames, in ms: one may be lost, or a switch may be busy with the port. */
static const unsigned announce_pause_ms[] = { 50, 100, 200, 300, 350 };

static uint8_t set_mac(struct gw_net *net)
{
	uint8_t mac[6];

	if (gw_iov_read(net->chain.iov, net->chain.nout, sizeof(struct virtio_net_ctrl_hdr), mac, sizeof(mac)) != sizeof(mac) ||
	    (mac[0] & 1))
		return VIRTIO_NET_ERR;
	/* An address of its choice it has outside too; what it had before is none. */
	if (memcmp(net->mac, mac, sizeof(mac)) != 0)
		memset(net->alias, 0, sizeof(net->alias));
	/* Read under lock by vCPUs; a torn read there is the guest's own race with itself. */
	for (unsigned i = 0; i < sizeof(mac); i++)
		__atomic_store_n(&net->mac[i], mac[i], __ATOMIC_RELAXED);
	return VIRTIO_NET_OK;
}

/* The guest gets all that the tap gets: filters are accepted, and it drops what it does not want. */
static uint8_t command(struct gw_net *net, const struct virtio_net_ctrl_hdr *hdr)
{
	if (hdr->class == VIRTIO_NET_CTRL_RX)
		return hdr->cmd <= VIRTIO_NET_CTRL_RX_ALLMULTI ? VIRTIO_NET_OK : VIRTIO_NET_ERR;
	if (hdr->class == VIRTIO_NET_CTRL_MAC && hdr->cmd == VIRTIO_NET_CTRL_MAC_TABLE_SET)
		return VIRTIO_NET_OK;
	if (hdr->class == VIRTIO_NET_CTRL_MAC && hdr->cmd == VIRTIO_NET_CTRL_MAC_ADDR_SET)
		return set_mac(net);
	if (hdr->class == VIRTIO_NET_CTRL_ANNOUNCE && hdr->cmd == VIRTIO_NET_CTRL_ANNOUNCE_ACK) {
		__atomic_fetch_and(&net->link, (uint16_t)~VIRTIO_NET_S_ANNOUNCE, __ATOMIC_RELAXED);
		return VIRTIO_NET_OK;
	}
	return VIRTIO_NET_ERR;
}

void gw_net_control(struct gw_net *net)
{
	struct gw_vq *vq = &net->vd.queues[GW_NET_CTRL].vq;
	const struct gw_vq_chain *c = &net->chain;
	unsigned budget = GW_VQ_MAX_SIZE;

	do {
		while (budget > 0 && gw_virtio_pop(&net->vd, GW_NET_CTRL, &net->chain)) {
			struct virtio_net_ctrl_hdr hdr;
			uint8_t ack;

			if (gw_iov_read(c->iov, c->nout, 0, &hdr, sizeof(hdr)) != sizeof(hdr) || c->in_len < 1) {
				gw_virtio_refuse(&net->vd, GW_NET_CTRL, "control command without header or room for the answer");
				break;
			}
			ack = command(net, &hdr);
			gw_iov_write(c->iov + c->nout, c->nin, 0, &ack, 1);
			gw_vq_mark_dirty(vq, c, 1);
			gw_vq_push(vq, c->head, 1);
			budget--;
		}
	} while (budget > 0 && gw_virtio_wait_for_kick(&net->vd, GW_NET_CTRL));
	if (budget == 0)
		gw_virtio_kick_again(&net->vd, GW_NET_CTRL);
	gw_virtio_notify(&net->vd, GW_NET_CTRL);
}

/* A reverse ARP request (RFC 903) about its own address: says nothing, but crosses all bridges with this source. */
static void send_rarp(struct gw_net *net)
{
	struct {
		uint8_t virtio[GW_TAP_HEADER];
		struct ether_header eth;
		struct arphdr arp;
		uint8_t sender_mac[6], sender_ip[4], target_mac[6], target_ip[4];
		uint8_t pad[18]; /* to the 60 bytes of a frame */
	} __attribute__((packed)) frame = {
		.eth = { .ether_type = htons(ETHERTYPE_REVARP) },
		.arp = { .ar_hrd = htons(ARPHRD_ETHER), .ar_pro = htons(ETHERTYPE_IP), .ar_hln = 6, .ar_pln = 4,
			 .ar_op = htons(ARPOP_RREQUEST) },
	};

	memset(frame.eth.ether_dhost, 0xff, sizeof(frame.eth.ether_dhost));
	memcpy(frame.eth.ether_shost, gw_net_outside(net), sizeof(frame.eth.ether_shost));
	memcpy(frame.sender_mac, gw_net_outside(net), sizeof(frame.sender_mac));
	memcpy(frame.target_mac, gw_net_outside(net), sizeof(frame.target_mac));
	/* Not an effect of the guest's (vmm/effect.h): whoever runs it in the end announces it last. */
	if (write(net->tap, &frame, sizeof(frame)) < 0)
		gw_warn_limited(&net->vd.limit, "net %s: cannot announce it: %s", net->vd.name, strerrordesc_np(errno));
}

static void arm(struct gw_net *net, unsigned ms)
{
	struct itimerspec when = { .it_value.tv_nsec = ms * 1000000l };

	(void)timerfd_settime(net->timer, 0, &when, NULL);
}

void gw_net_announce_start(struct gw_net *net)
{
	if (net->gone)
		return;
	send_rarp(net);
	net->announcements = ARRAY_SIZE(announce_pause_ms);
	arm(net, announce_pause_ms[0]);
}

/* §5.1.6.5.4: the guest sends gratuitous ARP for its addresses and says so on the control queue. */
static void ask_guest(struct gw_net *net)
{
	if (!gw_virtio_has(&net->vd, VIRTIO_NET_F_GUEST_ANNOUNCE))
		return;
	__atomic_fetch_or(&net->link, VIRTIO_NET_S_ANNOUNCE, __ATOMIC_RELAXED);
	gw_virtio_config_changed(&net->vd);
}

void gw_net_announce_tick(struct gw_net *net)
{
	if (net->announcements == 0 || net->gone)
		return;
	send_rarp(net);
	net->announcements--;
	/* The guest's own announcement adds little to ours: it does not delay the first answers of one that has just arrived. */
	if (net->announcements == 0)
		ask_guest(net);
	else
		arm(net, announce_pause_ms[ARRAY_SIZE(announce_pause_ms) - net->announcements]);
}

void gw_net_announce_stop(struct gw_net *net)
{
	net->announcements = 0;
	arm(net, 0);
}
