// SPDX-License-Identifier: Apache-2.0
/*
 * virtio-net, receiving (virtio 1.2 §5.1.6.3). Packets go from the tap straight into guest buffers: enough chains for the
 * largest packet are staged, readv fills them, and those it needed are used; the rest wait for the next packet. Where the
 * guest offers less than that, a packet is read aside and copied when there is room.
 */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>

#include "lib/bytes.h"
#include "lib/util.h"
#include "vmm/net-internal.h"

#define PACKET_BUDGET 64

/* Stages chains until the next packet fits in any case; false when it may not. */
static bool stage(struct gw_net *net)
{
	bool merge = gw_virtio_has(&net->vd, VIRTIO_NET_F_MRG_RXBUF);
	const struct gw_vq_chain *c = &net->chain;

	while (net->staged_len < net->need) {
		/* Without mergeable buffers a packet has one chain. */
		if ((!merge && net->nstaged > 0) || net->nstaged == GW_VQ_MAX_SIZE ||
		    net->niov + GW_VQ_MAX_SIZE > GW_NET_STAGE_IOV)
			return false;
		if (!gw_virtio_pop(&net->vd, GW_NET_RX, &net->chain))
			return false;
		if (c->nin == 0 || c->in_len < GW_TAP_HEADER) {
			gw_virtio_refuse(&net->vd, GW_NET_RX, "receive buffer without room for a header");
			return false;
		}
		memcpy(net->iov + net->niov, c->iov + c->nout, c->nin * sizeof(struct iovec));
		memcpy(net->gpa + net->niov, c->gpa + c->nout, c->nin * sizeof(uint64_t));
		net->staged[net->nstaged++] = (struct gw_net_staged){ c->head, (uint16_t)c->nin, c->in_len };
		net->niov += c->nin;
		net->staged_len += c->in_len;
	}
	return true;
}

static void drop_staged(struct gw_net *net, unsigned chains, unsigned buffers, uint64_t bytes)
{
	net->nstaged -= chains;
	net->niov -= buffers;
	net->staged_len -= bytes;
	memmove(net->staged, net->staged + chains, net->nstaged * sizeof(net->staged[0]));
	memmove(net->iov, net->iov + buffers, net->niov * sizeof(net->iov[0]));
	memmove(net->gpa, net->gpa + buffers, net->niov * sizeof(net->gpa[0]));
}

void gw_net_unstage(struct gw_net *net)
{
	gw_vq_unpop(&net->vd.queues[GW_NET_RX].vq, net->nstaged);
	net->nstaged = net->niov = 0;
	net->staged_len = 0;
}

static void mark_dirty(struct gw_net *net, uint64_t len)
{
	for (unsigned i = 0; len > 0; i++) {
		uint64_t part = GW_MIN(len, (uint64_t)net->iov[i].iov_len);

		gw_ram_mark_dirty(net->vd.host.ram, net->gpa[i], part);
		len -= part;
	}
}

/* Of a clone: what it has outside becomes what the guest knows. The guest may write there meanwhile, and harms itself alone. */
static void exchange(struct gw_net *net, uint64_t len)
{
	size_t n = gw_iov_read(net->iov, net->niov, 0, net->head, GW_MIN(len, (uint64_t)sizeof(net->head)));

	if (gw_net_alias_swap(net->mac, net->alias, net->head, n))
		gw_iov_write(net->iov, net->niov, 0, net->head, n);
}

/* Hands the packet of `len` bytes that lies in the staged buffers to the guest. */
static void deliver(struct gw_net *net, uint64_t len)
{
	struct gw_vq *vq = &net->vd.queues[GW_NET_RX].vq;
	unsigned chains = 0, buffers = 0;
	uint64_t room = 0, left = len;
	uint8_t count[2];

	while (room < len) {
		room += net->staged[chains].len;
		buffers += net->staged[chains].niov;
		chains++;
	}
	if (gw_net_has_alias(net))
		exchange(net, len);
	gw_put_le16(count, (uint16_t)chains);
	gw_iov_write(net->iov, net->niov, offsetof(struct virtio_net_hdr_v1, num_buffers), count, sizeof(count));
	mark_dirty(net, len);
	net->vd.host.ops->note_frame(&net->vd.host, net->iov, net->niov, GW_TAP_HEADER, false);
	for (unsigned i = 0; i < chains; i++) {
		uint64_t part = GW_MIN(left, net->staged[i].len);

		gw_vq_push(vq, net->staged[i].head, (uint32_t)part);
		left -= part;
	}
	drop_staged(net, chains, buffers, room);
}

/* Delivers the packet aside, if there is one; false when it must wait for buffers. */
static bool deliver_bounced(struct gw_net *net)
{
	if (net->bounced == 0)
		return true;
	if (net->staged_len < net->bounced) {
		if (gw_virtio_has(&net->vd, VIRTIO_NET_F_MRG_RXBUF) || net->nstaged == 0)
			return false;
		/* The one buffer that the guest gave is too small: §5.1.6.3.2 lets us drop the packet. */
		net->bounced = 0;
		return true;
	}
	gw_iov_write(net->iov, net->niov, 0, net->bounce, net->bounced);
	deliver(net, net->bounced);
	net->bounced = 0;
	return true;
}

/* Takes the first late packet aside, if none is there. */
static void take_late(struct gw_net *net)
{
	struct gw_net_late *late = net->late;

	if (!late || net->bounced || (!net->bounce && !(net->bounce = malloc(GW_NET_MAX_PACKET))))
		return;
	memcpy(net->bounce, late->data, late->len);
	net->bounced = late->len;
	net->late_bytes -= late->len;
	net->late = late->next;
	if (!net->late)
		net->late_end = &net->late;
	free(late);
}

void gw_net_receive_late(struct gw_net *net, const void *data, size_t len)
{
	struct gw_net_late *late;

	if (len < GW_TAP_HEADER || len > GW_NET_MAX_PACKET || len > GW_NET_MAX_LATE - net->late_bytes)
		return;
	late = malloc(sizeof(*late) + len);
	if (!late)
		return;
	late->next = NULL;
	late->len = len;
	memcpy(late->data, data, len);
	*net->late_end = late;
	net->late_end = &late->next;
	net->late_bytes += len;
	gw_net_receive(net);
}

void gw_net_drop_late(struct gw_net *net)
{
	while (net->late) {
		struct gw_net_late *next = net->late->next;

		free(net->late);
		net->late = next;
	}
	net->late_end = &net->late;
	net->late_bytes = 0;
}

/* Reads one packet: 1, 0 when there is none or it cannot be taken now, negative errno. */
static ssize_t read_packet(struct gw_net *net, bool room)
{
	ssize_t n;

	if (room) {
		n = readv(net->tap, net->iov, (int)net->niov);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : -errno;
		if (n == 0)
			return -ENODEV;
		/* A tap whose MTU was raised meanwhile tells the whole length of a packet that it cut. */
		if ((uint64_t)n > net->staged_len)
			net->need = GW_TAP_HEADER + gw_tap_frame_size(net->tap);
		else if (n >= GW_TAP_HEADER)
			deliver(net, (uint64_t)n);
		return 1;
	}
	if (!net->bounce && !(net->bounce = malloc(GW_NET_MAX_PACKET)))
		return 0;
	n = read(net->tap, net->bounce, GW_NET_MAX_PACKET);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	if (n == 0)
		return -ENODEV;
	if (n >= GW_TAP_HEADER && n <= GW_NET_MAX_PACKET)
		net->bounced = (size_t)n;
	return 1;
}

/* True when the tap may have more for which there is room. */
static bool receive_one(struct gw_net *net)
{
	bool room = stage(net);
	ssize_t n;

	take_late(net);
	if (!deliver_bounced(net) || net->nstaged == 0) {
		/* Nothing to receive into: the guest's next kick resumes. A chain that came since counts as one. */
		gw_net_watch(net, net->polled & ~(uint32_t)EPOLLIN);
		if (!gw_virtio_wait_for_kick(&net->vd, GW_NET_RX))
			return false;
		gw_virtio_kick_again(&net->vd, GW_NET_RX);
		return false;
	}
	if (net->late)
		return true;
	/* Room was counted before the packet aside took its share. */
	n = read_packet(net, room && net->staged_len >= net->need);
	if (n < 0)
		gw_net_tap_gone(net, (int)-n);
	if (n <= 0) {
		gw_net_watch(net, net->polled | EPOLLIN);
		return false;
	}
	return true;
}

/*
 * Each packet that is handed over takes time from a guest that shares its processors with this thread, on its way to the answer that others
 * wait for: one that is late gets them in batches.
 */
static void pause_if_overdue(struct gw_net *net)
{
	static const struct itimerspec pause = { .it_value.tv_nsec = 4000000 };

	if (!(net->polled & EPOLLIN) || !net->vd.host.ops->overdue(&net->vd.host) || timerfd_settime(net->rx_timer, 0, &pause, NULL) < 0)
		return;
	gw_net_watch(net, net->polled & ~(uint32_t)EPOLLIN);
}

void gw_net_receive(struct gw_net *net)
{
	unsigned budget = PACKET_BUDGET;

	if (net->gone)
		return;
	gw_vq_disable_kicks(&net->vd.queues[GW_NET_RX].vq);
	/* Late ones are few, and the loop would not come back for them. */
	while ((budget > 0 || net->late) && receive_one(net))
		budget -= budget > 0;
	/* Out of turn: the tap stays readable, so the loop comes back. */
	if (budget == 0)
		gw_net_watch(net, net->polled | EPOLLIN);
	gw_virtio_notify(&net->vd, GW_NET_RX);
	pause_if_overdue(net);
}
