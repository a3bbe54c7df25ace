// SPDX-License-Identifier: Apache-2.0
/* virtio-net, sending (virtio 1.2 §5.1.6.2): packets go from guest buffers straight into the tap. */
#include <errno.h>
#include <sys/epoll.h>

#include "vmm/net-internal.h"

#define PACKET_BUDGET 256
/* The guest gets buffers back at least this often. */
#define PUBLISH_EVERY 32

/* False when the tap takes no more for now. */
static bool send_packet(struct gw_net *net)
{
	const struct gw_vq_chain *c = &net->chain;
	ssize_t n;

	net->vd.host.ops->note_frame(&net->vd.host, c->iov, c->nout, GW_TAP_HEADER, true);
	do {
		n = writev(net->tap, c->iov, (int)c->nout);
	} while (n < 0 && errno == EINTR);
	/* Other errors (interface down, header that the kernel refuses) lose the packet, as a wire would. */
	return n >= 0 || errno != EAGAIN;
}

void gw_net_transmit(struct gw_net *net)
{
	struct gw_vq *vq = &net->vd.queues[GW_NET_TX].vq;
	unsigned budget = PACKET_BUDGET;

	do {
		gw_vq_disable_kicks(vq);
		while (budget > 0 && gw_virtio_pop(&net->vd, GW_NET_TX, &net->chain)) {
			if (net->chain.out_len < GW_TAP_HEADER) {
				gw_virtio_refuse(&net->vd, GW_NET_TX, "packet without a header");
				break;
			}
			if (!net->gone && !send_packet(net)) {
				gw_vq_unpop(vq, 1);
				net->tx_blocked = true;
				gw_net_watch(net, net->polled | EPOLLOUT);
				gw_virtio_notify(&net->vd, GW_NET_TX);
				return;
			}
			gw_vq_push(vq, net->chain.head, 0);
			if (--budget % PUBLISH_EVERY == 0)
				gw_virtio_notify(&net->vd, GW_NET_TX);
		}
	} while (budget > 0 && gw_virtio_wait_for_kick(&net->vd, GW_NET_TX));
	if (budget == 0)
		gw_virtio_kick_again(&net->vd, GW_NET_TX);
	gw_virtio_notify(&net->vd, GW_NET_TX);
}
