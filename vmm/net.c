// SPDX-License-Identifier: Apache-2.0
/* virtio-net: the device's life, configuration and state; see net.h and net-internal.h. */
#include "vmm/net.h"

#include <errno.h>
#include <linux/if_tun.h>
#include <linux/virtio_ids.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <xxhash.h>

#include "lib/util.h"
#include "vmm/net-internal.h"
#include "vmm/vm.h"

static const struct gw_state_field net_fields[] = {
	GW_STATE_BYTES(struct gw_net, mac, 1),
	GW_STATE_UINT(struct gw_net, link, 1),
	GW_STATE_BYTES(struct gw_net, alias, 2),
	{ },
};
static const struct gw_state_desc net_state = { "virtio-net", 2, 1, net_fields };

/* Packets that are taken from the tap of a VM that has moved, at a time. */
#define DRAIN_BUDGET 256u

static const uint64_t net_features =
	1ull << VIRTIO_NET_F_CSUM | 1ull << VIRTIO_NET_F_GUEST_CSUM | 1ull << VIRTIO_NET_F_GUEST_TSO4 |
	1ull << VIRTIO_NET_F_GUEST_TSO6 | 1ull << VIRTIO_NET_F_GUEST_ECN | 1ull << VIRTIO_NET_F_HOST_TSO4 |
	1ull << VIRTIO_NET_F_HOST_TSO6 | 1ull << VIRTIO_NET_F_HOST_ECN | 1ull << VIRTIO_NET_F_MRG_RXBUF |
	1ull << VIRTIO_NET_F_MAC | 1ull << VIRTIO_NET_F_STATUS | 1ull << VIRTIO_NET_F_CTRL_VQ | 1ull << VIRTIO_NET_F_CTRL_RX |
	1ull << VIRTIO_NET_F_CTRL_MAC_ADDR | 1ull << VIRTIO_NET_F_GUEST_ANNOUNCE;

static struct gw_net *to_net(struct gw_virtio *vd)
{
	return gw_container_of(vd, struct gw_net, vd);
}

bool gw_net_has_alias(const struct gw_net *net)
{
	static const uint8_t none[6];

	return memcmp(net->alias, none, sizeof(none)) != 0;
}

const uint8_t *gw_net_outside(const struct gw_net *net)
{
	return gw_net_has_alias(net) ? net->alias : net->mac;
}

void gw_net_watch(struct gw_net *net, uint32_t events)
{
	if (net->gone || net->polled == events)
		return;
	net->polled = events;
	gw_io_modify(net->source, events);
}

void gw_net_tap_gone(struct gw_net *net, int error)
{
	gw_warn("net %s: its tap is gone: %s", net->vd.name, strerrordesc_np(error));
	net->gone = true;
	gw_io_remove(gw_steal_ptr(&net->source));
	__atomic_fetch_and(&net->link, (uint16_t)~VIRTIO_NET_S_LINK_UP, __ATOMIC_RELAXED);
	gw_virtio_config_changed(&net->vd);
}

static void discard(struct gw_net *net)
{
	uint8_t packet[2048];
	unsigned budget = 64;

	while (budget-- > 0 && read(net->tap, packet, sizeof(packet)) > 0)
		;
}

static void stop_discarding(void *arg)
{
	struct gw_net *net = to_net(arg);

	net->discard = false;
	gw_net_watch(net, 0);
}

static void on_tap(void *arg, uint32_t events)
{
	struct gw_net *net = arg;

	if (!net->vd.active && (events & EPOLLIN) && net->discard) {
		discard(net);
		return;
	}
	if (!net->vd.active) {
		/* Nothing is watched, and an error would be told forever. */
		if (events & (EPOLLERR | EPOLLHUP))
			gw_net_tap_gone(net, ENODEV);
		return;
	}
	if (net->tx_blocked && (events & EPOLLOUT)) {
		net->tx_blocked = false;
		gw_net_watch(net, net->polled & ~(uint32_t)EPOLLOUT);
		gw_net_transmit(net);
	}
	/* Errors are told even when nothing is watched: by a guest that has no receive queue. */
	if (!net->vd.queues[GW_NET_RX].vq.enabled) {
		if (events & (EPOLLERR | EPOLLHUP))
			gw_net_tap_gone(net, ENODEV);
	} else if (events & (EPOLLIN | EPOLLERR | EPOLLHUP)) {
		gw_net_receive(net);
	}
}

static void on_timer(void *arg, uint32_t events)
{
	struct gw_net *net = arg;
	uint64_t count;

	if (read(net->timer, &count, sizeof(count)) == sizeof(count))
		gw_net_announce_tick(net);
}

static void on_rx_timer(void *arg, uint32_t events)
{
	struct gw_net *net = arg;
	uint64_t count;

	if (read(net->rx_timer, &count, sizeof(count)) == sizeof(count) && net->vd.active && net->vd.queues[GW_NET_RX].vq.enabled)
		gw_net_receive(net);
}

/* virtio 1.2 §5.1.6: what the guest takes, the host may leave undone. */
static unsigned offloads(const struct gw_virtio *vd)
{
	unsigned flags = 0;

	if (!gw_virtio_has(vd, VIRTIO_NET_F_GUEST_CSUM))
		return 0;
	flags |= TUN_F_CSUM;
	if (gw_virtio_has(vd, VIRTIO_NET_F_GUEST_TSO4))
		flags |= TUN_F_TSO4;
	if (gw_virtio_has(vd, VIRTIO_NET_F_GUEST_TSO6))
		flags |= TUN_F_TSO6;
	if (flags != TUN_F_CSUM && gw_virtio_has(vd, VIRTIO_NET_F_GUEST_ECN))
		flags |= TUN_F_TSO_ECN;
	return flags;
}

/* The call waits for a lock of all of the host's network configuration: only when something changes. */
static void set_offloads(struct gw_net *net, unsigned flags)
{
	if (net->offloads == flags)
		return;
	net->offloads = flags;
	gw_tap_set_offloads(net->tap, flags);
}

static void net_start(struct gw_virtio *vd)
{
	struct gw_net *net = to_net(vd);
	unsigned flags = offloads(vd);

	net->discard = false;
	if (net->gone)
		return;
	set_offloads(net, flags);
	net->need = flags & (TUN_F_TSO4 | TUN_F_TSO6) ? GW_NET_MAX_PACKET : GW_TAP_HEADER + gw_tap_frame_size(net->tap);
	if (vd->queues[GW_NET_RX].vq.enabled)
		gw_net_watch(net, EPOLLIN);
}

static void net_stop(struct gw_virtio *vd)
{
	struct gw_net *net = to_net(vd);

	gw_net_watch(net, 0);
	net->tx_blocked = false;
	gw_net_unstage(net);
	gw_net_announce_stop(net);
}

static void net_kick(struct gw_virtio *vd, unsigned index)
{
	struct gw_net *net = to_net(vd);

	if (index == GW_NET_RX)
		gw_net_receive(net);
	else if (index == GW_NET_TX && !net->tx_blocked)
		gw_net_transmit(net);
	else if (index == GW_NET_CTRL)
		gw_net_control(net);
}

static void net_reset(struct gw_virtio *vd)
{
	struct gw_net *net = to_net(vd);

	net->bounced = 0;
	gw_net_drop_late(net);
	/* The next driver reads what it is outside. */
	if (gw_net_has_alias(net))
		memcpy(net->mac, net->alias, sizeof(net->mac));
	memset(net->alias, 0, sizeof(net->alias));
	__atomic_fetch_and(&net->link, (uint16_t)~VIRTIO_NET_S_ANNOUNCE, __ATOMIC_RELAXED);
}

static void net_config_read(struct gw_virtio *vd, uint64_t offset, void *data, unsigned len)
{
	struct gw_net *net = to_net(vd);
	struct virtio_net_config c = {
		.status = __atomic_load_n(&net->link, __ATOMIC_RELAXED),
		.max_virtqueue_pairs = 1,
	};

	memcpy(c.mac, net->mac, sizeof(c.mac));
	gw_virtio_config_slice(&c, sizeof(c), offset, data, len);
}

static int net_save(struct gw_virtio *vd, struct gw_state_writer *w, struct gw_error *err)
{
	int r = gw_state_put(w, &net_state, vd->name, to_net(vd));

	return r < 0 ? gw_error_errno(err, r, "cannot save net %s", vd->name) : 0;
}

static int net_load(struct gw_virtio *vd, struct gw_state_reader *r, struct gw_error *err)
{
	struct gw_net *net = to_net(vd);
	uint16_t link = net->link;
	int ret;

	memset(net->alias, 0, sizeof(net->alias));
	ret = gw_state_get(r, &net_state, vd->name, net, err);
	if (ret == 0 && ((net->mac[0] | net->alias[0]) & 1))
		ret = gw_error_set(err, EPROTO, "state of net %s: a multicast address as its own", vd->name);
	for (unsigned i = 0; ret == 0 && i < GW_NET_QUEUES; i++)
		ret = gw_virtio_check_in_flight(vd, i, 0, err);
	/* The source has stopped: what comes from now on is for the guest. */
	gw_virtio_call(vd, stop_discarding);
	/* Whether there is a link is this host's to say. */
	net->link = (net->link & VIRTIO_NET_S_ANNOUNCE) | (link & VIRTIO_NET_S_LINK_UP);
	return ret;
}

/* What the guest has is what the VM had that was saved, or what it was told to use: outside it is what this VM is configured to be. */
static void net_clone(struct gw_virtio *vd)
{
	struct gw_net *net = to_net(vd);

	memset(net->alias, 0, sizeof(net->alias));
	if (memcmp(net->mac, net->configured, sizeof(net->mac)) != 0)
		memcpy(net->alias, net->configured, sizeof(net->alias));
}

static void announce_now(void *arg)
{
	struct gw_virtio *vd = arg;

	if (vd->active)
		gw_net_announce_start(to_net(vd));
}

static void net_announce(struct gw_virtio *vd)
{
	gw_virtio_call(vd, announce_now);
}

struct drain {
	struct gw_net *net;
	const struct gw_packet_sink *sink;
};

static void drain_now(void *arg)
{
	const struct gw_packet_sink *sink = ((struct drain *)arg)->sink;
	struct gw_net *net = ((struct drain *)arg)->net;
	ssize_t n;

	if (net->gone || net->vd.active || (!net->bounce && !(net->bounce = malloc(GW_NET_MAX_PACKET))))
		return;
	if (net->bounced)
		sink->fn(sink->arg, sink->device, net->bounce, net->bounced);
	net->bounced = 0;
	for (unsigned budget = DRAIN_BUDGET; budget > 0 && (n = read(net->tap, net->bounce, GW_NET_MAX_PACKET)) > 0; budget--)
		sink->fn(sink->arg, sink->device, net->bounce, (size_t)n);
}

static void net_drain(struct gw_virtio *vd, const struct gw_packet_sink *sink)
{
	gw_iothread_call(vd->host.io, drain_now, &(struct drain){ to_net(vd), sink });
}

struct late {
	struct gw_net *net;
	const void *data;
	size_t len;
};

static void deliver_now(void *arg)
{
	const struct late *l = arg;

	if (l->net->vd.active && l->net->vd.queues[GW_NET_RX].vq.enabled && !l->net->gone)
		gw_net_receive_late(l->net, l->data, l->len);
}

static void net_deliver(struct gw_virtio *vd, const void *data, size_t len)
{
	gw_iothread_call(vd->host.io, deliver_now, &(struct late){ to_net(vd), data, len });
}

static void net_free(struct gw_virtio *vd)
{
	struct gw_net *net = to_net(vd);

	gw_io_remove(net->source);
	gw_io_remove(net->timer_source);
	gw_io_remove(net->rx_timer_source);
	gw_virtio_release(vd);
	if (net->tap >= 0)
		close(net->tap);
	if (net->timer >= 0)
		close(net->timer);
	if (net->rx_timer >= 0)
		close(net->rx_timer);
	gw_net_drop_late(net);
	free(net->bounce);
	free(net);
}

static const struct gw_virtio_ops net_ops = {
	.kind = "virtio-net",
	.id = VIRTIO_ID_NET,
	.pci_class = 0x020000, /* Ethernet */
	.start = net_start,
	.stop = net_stop,
	.kick = net_kick,
	.reset = net_reset,
	.config_read = net_config_read,
	.save = net_save,
	.load = net_load,
	.clone = net_clone,
	.announce = net_announce,
	.drain = net_drain,
	.deliver = net_deliver,
	.free = net_free,
};

static int watch_fds(struct gw_net *net, struct gw_error *err)
{
	int r;

	net->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	net->rx_timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (net->timer < 0 || net->rx_timer < 0)
		return gw_error_errno(err, errno, "cannot make a timer");
	r = gw_io_add(net->vd.host.io, net->timer, EPOLLIN, on_timer, net, &net->timer_source);
	if (r == 0)
		r = gw_io_add(net->vd.host.io, net->rx_timer, EPOLLIN, on_rx_timer, net, &net->rx_timer_source);
	if (r == 0)
		r = gw_io_add(net->vd.host.io, net->tap, net->polled, on_tap, net, &net->source);
	return r < 0 ? gw_error_errno(err, r, "cannot watch the tap") : 0;
}

int gw_net_new_on(int fd, const char *name, const uint8_t mac[6], bool incoming, const struct gw_devhost *host,
		  struct gw_virtio **ret, struct gw_error *err)
{
	struct gw_net *net = calloc(1, sizeof(*net));
	int r;

	if (!net) {
		close(fd);
		return gw_error_set(err, ENOMEM, "out of memory");
	}
	net->discard = incoming;
	net->polled = incoming ? EPOLLIN : 0;
	r = gw_virtio_init(&net->vd, &net_ops, name, host, GW_NET_QUEUES, GW_VQ_MAX_SIZE, net_features, err);
	net->tap = fd;
	net->late_end = &net->late;
	net->timer = net->rx_timer = -1;
	net->link = VIRTIO_NET_S_LINK_UP;
	memcpy(net->mac, mac, sizeof(net->mac));
	memcpy(net->configured, mac, sizeof(net->configured));
	if (r == 0)
		r = watch_fds(net, err);
	/* What nearly every guest agrees to; an arriving one then starts without a word to the host. */
	net->offloads = UINT32_MAX;
	set_offloads(net, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN);
	if (r < 0) {
		net_free(&net->vd);
		return gw_error_wrap(err, "net %s", name);
	}
	*ret = &net->vd;
	return 0;
}

void gw_net_default_mac(const char *vm_name, const char *name, uint8_t mac[6])
{
	char text[192];
	XXH64_hash_t h;
	int n = snprintf(text, sizeof(text), "%s/%s", vm_name ?: "", name);

	h = XXH64(text, GW_MIN((size_t)n, sizeof(text) - 1), 0);
	/* 52:54:00 is locally administered, and what people know as a VM's. */
	mac[0] = 0x52;
	mac[1] = 0x54;
	mac[2] = 0x00;
	mac[3] = (uint8_t)(h >> 16);
	mac[4] = (uint8_t)(h >> 8);
	mac[5] = (uint8_t)h;
}

int gw_net_new(const struct gw_net_config *config, const char *vm_name, bool incoming, const struct gw_devhost *host,
	       struct gw_virtio **ret, struct gw_error *err)
{
	static const uint8_t none[6];
	uint8_t mac[6];
	int fd, r;

	r = gw_tap_open(config->tap, &fd, err);
	if (r < 0)
		return gw_error_wrap(err, "net %s", config->name);
	memcpy(mac, config->mac, sizeof(mac));
	if (!memcmp(mac, none, sizeof(mac)))
		gw_net_default_mac(vm_name, config->name, mac);
	return gw_net_new_on(fd, config->name, mac, incoming, host, ret, err);
}
