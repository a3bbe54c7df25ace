// SPDX-License-Identifier: Apache-2.0
/* virtio-net, sending (virtio 1.2 §5.1.6.2): packets go from guest buffers straight into the tap. */
#include <errno.h>
#include <sys/epoll.h>

#include "lib/util.h"
#include "vmm/net-internal.h"

#define PACKET_BUDGET 256
/* The guest gets buffers back at least this often. */
#define PUBLISH_EVERY 32

/* Of a clone: the packet with other addresses in a copy of its beginning; what follows is the guest's. How many buffers. */
static unsigned exchange(struct gw_net *net, const struct gw_vq_chain *c)
{
	size_t len = gw_iov_read(c->iov, c->nout, 0, net->head, sizeof(net->head)), skip = len;
	unsigned n = 1;

	gw_net_alias_swap(net->mac, net->alias, net->head, len);
	net->head_iov[0] = (struct iovec){ net->head, len };
	for (unsigned i = 0; i < c->nout; i++) {
		size_t part = GW_MIN(skip, c->iov[i].iov_len);

		if (part < c->iov[i].iov_len)
			net->head_iov[n++] = (struct iovec){ (uint8_t *)c->iov[i].iov_base + part, c->iov[i].iov_len - part };
		skip -= part;
	}
	return n;
}

/* False when the tap takes no more for now. */
static bool send_packet(struct gw_net *net)
{
	const struct gw_vq_chain *c = &net->chain;
	const struct iovec *iov = c->iov;
	unsigned niov = c->nout;
	ssize_t n;

	net->vd.host.ops->note_frame(&net->vd.host, c->iov, c->nout, GW_TAP_HEADER, true);
	if (gw_net_has_alias(net)) {
		niov = exchange(net, c);
		iov = net->head_iov;
	}
	do {
		n = writev(net->tap, iov, (int)niov);
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
