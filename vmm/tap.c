// SPDX-License-Identifier: Apache-2.0
/* Tap interfaces; see tap.h. */
#include "vmm/tap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "lib/parse.h"
#include "lib/util.h"

#define ETHERNET_HEADER 14
#define VLAN_TAGS 8 /* two of them */
#define DEFAULT_MTU 1500

static int attach(int fd, const char *name, struct gw_error *err)
{
	struct ifreq req = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	int r;

	memcpy(req.ifr_name, name, strnlen(name, IFNAMSIZ - 1));
	r = ioctl(fd, TUNSETIFF, &req);
	if (r < 0 && errno == EINVAL) {
		/* It was made for several queues; we take one. */
		req.ifr_flags |= IFF_MULTI_QUEUE;
		r = ioctl(fd, TUNSETIFF, &req);
	}
	if (r == 0)
		return 0;
	if (errno == EBUSY)
		return gw_error_set(err, EBUSY, "tap %s is taken: another process uses it", name);
	if (errno == EPERM)
		return gw_error_set(err, EPERM, "no permission for tap %s (make it with 'ip tuntap add %s mode tap user USER')",
				    name, name);
	if (errno == EINVAL)
		return gw_error_set(err, EINVAL, "interface %s is not a tap", name);
	return gw_error_errno(err, errno, "cannot attach to tap %s", name);
}

int gw_tap_open(const char *name, int *ret, struct gw_error *err)
{
	gw_autofd fd = -1;
	int size = GW_TAP_HEADER;
	int r;

	r = gw_parse_ifname(name, err);
	if (r < 0)
		return r;
	/* The kernel would make one that belongs to no bridge. */
	if (!if_nametoindex(name))
		return gw_error_set(err, ENODEV, "tap %s does not exist (make it with 'ip tuntap add %s mode tap')", name, name);
	fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return gw_error_errno(err, errno, "cannot open /dev/net/tun for tap %s", name);
	r = attach(fd, name, err);
	if (r < 0)
		return r;
	if (ioctl(fd, TUNSETVNETHDRSZ, &size) < 0)
		return gw_error_errno(err, errno, "tap %s: cannot set the header size", name);
	*ret = gw_steal_fd(&fd);
	return 0;
}

void gw_tap_set_offloads(int fd, unsigned flags)
{
	/* A kernel that lacks one of them sends whole packets, which a guest always takes. */
	if (ioctl(fd, TUNSETOFFLOAD, (unsigned long)flags) < 0)
		(void)ioctl(fd, TUNSETOFFLOAD, 0ul);
}

unsigned gw_tap_frame_size(int fd)
{
	gw_autofd sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq req = { .ifr_flags = 0 };
	int mtu = DEFAULT_MTU;

	if (sock >= 0 && ioctl(fd, TUNGETIFF, &req) == 0 && ioctl(sock, SIOCGIFMTU, &req) == 0)
		mtu = req.ifr_mtu;
	return (unsigned)mtu + ETHERNET_HEADER + VLAN_TAGS;
}
