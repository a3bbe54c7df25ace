// SPDX-License-Identifier: Apache-2.0
/* What the files of virtio-net share: net.c (the device), net-rx.c, net-tx.c (packets), net-ctrl.c (control queue, announcements). */
#ifndef GW_VMM_NET_INTERNAL_H
#define GW_VMM_NET_INTERNAL_H

#include <linux/virtio_net.h>

#include "vmm/iothread.h"
#include "vmm/net-alias.h"
#include "vmm/net.h"
#include "vmm/tap.h"
#include "vmm/virtio.h"

enum { GW_NET_RX, GW_NET_TX, GW_NET_CTRL, GW_NET_QUEUES };

/* The most buffers for one packet: what readv takes. */
#define GW_NET_STAGE_IOV 1024
/* A 64 KiB GSO packet with its headers. */
#define GW_NET_MAX_PACKET (GW_TAP_HEADER + 65536 + 64)

/* A chain that was taken from the receive queue and waits for a packet. */
struct gw_net_staged {
	uint16_t head;
	uint16_t niov;
	uint64_t len;
};

/* The most bytes that wait so. */
#define GW_NET_MAX_LATE (1u << 20)

struct gw_net_late {
	struct gw_net_late *next;
	size_t len;
	uint8_t data[];
};

struct gw_net {
	struct gw_virtio vd;
	int tap;
	struct gw_io_source *source;
	uint32_t polled;     /* events that the tap is watched for */
	unsigned offloads;   /* as told to the tap */
	bool discard;        /* nobody to receive has arrived yet: drop all that comes */
	bool gone;           /* the tap was deleted */
	bool tx_blocked;     /* the tap took no more: watched for EPOLLOUT */
	uint8_t mac[6];      /* as the guest knows it; under vd.lock, or stopped */
	uint8_t configured[6]; /* constant */
	uint8_t alias[6];    /* a clone's: what it is outside (net-alias.h); zeroes: the same. Device thread, or stopped */
	uint16_t link;       /* VIRTIO_NET_S_*; atomic */

	/* Announcements: a timer and how many are left. */
	int timer;
	struct gw_io_source *timer_source;
	unsigned announcements;

	/* Ends a pause in which packets for a guest that is late gather in the tap. */
	int rx_timer;
	struct gw_io_source *rx_timer_source;

	/* Receiving: staged chains in queue order, their buffers one after the other. Device thread. */
	unsigned need;       /* bytes that the next packet may have */
	unsigned nstaged, niov;
	uint64_t staged_len;
	struct gw_net_staged staged[GW_VQ_MAX_SIZE];
	struct iovec iov[GW_NET_STAGE_IOV];
	uint64_t gpa[GW_NET_STAGE_IOV];
	uint8_t *bounce;     /* a packet for which there was no room; allocated when first needed */
	size_t bounced;      /* its length, 0: none */
	/* Packets that came for the guest where it was before, in order; before all others. */
	struct gw_net_late *late, **late_end;
	size_t late_bytes;

	/* The beginning of a packet in which addresses were exchanged, and of one that is sent the rest behind it. */
	uint8_t head[GW_NET_ALIAS_HEAD];
	struct iovec head_iov[GW_VQ_MAX_SIZE + 1];

	struct gw_vq_chain chain;
};

/* Whether it has an alias; what it is outside. */
bool gw_net_has_alias(const struct gw_net *net);
const uint8_t *gw_net_outside(const struct gw_net *net);
/* Watches the tap for what is wanted now. */
void gw_net_watch(struct gw_net *net, uint32_t events);
/* The tap was deleted: link down, no more of it. */
void gw_net_tap_gone(struct gw_net *net, int error);

/* Device thread. */
void gw_net_receive(struct gw_net *net);
/* A copy of the packet goes to the guest before all that comes from the tap. */
void gw_net_receive_late(struct gw_net *net, const void *data, size_t len);
void gw_net_drop_late(struct gw_net *net);
/* Gives staged chains back to the queue. */
void gw_net_unstage(struct gw_net *net);
void gw_net_transmit(struct gw_net *net);
void gw_net_control(struct gw_net *net);
void gw_net_announce_start(struct gw_net *net);
void gw_net_announce_stop(struct gw_net *net);
void gw_net_announce_tick(struct gw_net *net);

#endif
