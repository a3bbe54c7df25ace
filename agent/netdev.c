// SPDX-License-Identifier: Apache-2.0
/* Taps and bridges by ioctl; see netdev.h and the kernel's Documentation/networking/tuntap.rst. */
#include "agent/netdev.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "lib/io.h"
#include "lib/util.h"

static struct ifreq request(const char *name)
{
	struct ifreq ifr;

	memset(&ifr, 0, sizeof(ifr));
	memcpy(ifr.ifr_name, name, strnlen(name, IFNAMSIZ - 1));
	return ifr;
}

static int open_tap(const char *name, int *ret)
{
	struct ifreq ifr = request(name);
	gw_autofd fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	ifr.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
	if (ioctl(fd, TUNSETIFF, &ifr) < 0)
		return -errno;
	*ret = gw_steal_fd(&fd);
	return 0;
}

static bool sysfs_has(const char *name, const char *what)
{
	char path[80];

	snprintf(path, sizeof(path), "/sys/class/net/%s/%s", name, what);
	return access(path, F_OK) == 0;
}

void gw_tap_remove(const char *name)
{
	gw_autofd fd = -1;

	/* Asked of sysfs: for an ioctl on a name that is not there the kernel runs modprobe. A device that is not persistent goes with its last descriptor. */
	if (sysfs_has(name, "tun_flags") && open_tap(name, &fd) == 0)
		ioctl(fd, TUNSETPERSIST, 0);
}

static int attach(const char *name, const char *bridge, struct gw_error *err)
{
	gw_autofd sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq ifr = request(bridge);

	if (sock < 0)
		return gw_error_errno(err, errno, "cannot make a socket");
	/* Best effort: a bridge takes the smallest MTU of its ports for its own otherwise. */
	if (ioctl(sock, SIOCGIFMTU, &ifr) == 0) {
		int mtu = ifr.ifr_mtu;

		ifr = request(name);
		ifr.ifr_mtu = mtu;
		ioctl(sock, SIOCSIFMTU, &ifr);
	}
	ifr = request(bridge);
	ifr.ifr_ifindex = (int)if_nametoindex(name);
	if (ioctl(sock, SIOCBRADDIF, &ifr) < 0)
		return gw_error_errno(err, errno, "cannot attach tap %s to bridge %s", name, bridge);
	ifr = request(name);
	if (ioctl(sock, SIOCGIFFLAGS, &ifr) < 0)
		return gw_error_errno(err, errno, "cannot set tap %s up", name);
	ifr.ifr_flags |= IFF_UP;
	if (ioctl(sock, SIOCSIFFLAGS, &ifr) < 0)
		return gw_error_errno(err, errno, "cannot set tap %s up", name);
	return 0;
}

/* The host has no business of its own on a guest's tap; best effort. */
static void no_ipv6(const char *name)
{
	char path[80];
	gw_autofd fd = -1;

	snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/disable_ipv6", name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd >= 0)
		gw_write_full(fd, "1", 1, GW_NO_DEADLINE);
}

int gw_tap_make(const char *name, const char *bridge, struct gw_error *err)
{
	gw_autofd fd = -1;
	int r = gw_bridge_check(bridge, err);

	if (r < 0)
		return r;
	gw_tap_remove(name);
	r = open_tap(name, &fd);
	if (r == -EBUSY)
		return gw_error_set(err, EBUSY, "tap %s is in use by another process", name);
	if (r < 0)
		return gw_error_errno(err, r, "cannot make tap %s (is /dev/net/tun there, and are we root?)", name);
	no_ipv6(name);
	r = attach(name, bridge, err);
	if (r == 0 && ioctl(fd, TUNSETPERSIST, 1) < 0)
		r = gw_error_errno(err, errno, "cannot keep tap %s", name);
	return r;
}

int gw_bridge_check(const char *name, struct gw_error *err)
{
	if (!if_nametoindex(name))
		return gw_error_set(err, ENODEV, "there is no bridge %s on this host", name);
	if (!sysfs_has(name, "bridge"))
		return gw_error_set(err, ENODEV, "network interface %s is not a bridge", name);
	return 0;
}

int gw_tap_check(const char *name, struct gw_error *err)
{
	if (!if_nametoindex(name))
		return gw_error_set(err, ENODEV, "there is no tap %s on this host", name);
	if (!sysfs_has(name, "tun_flags"))
		return gw_error_set(err, ENODEV, "network interface %s is not a tap", name);
	return 0;
}
