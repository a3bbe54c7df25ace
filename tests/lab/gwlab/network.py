# SPDX-License-Identifier: Apache-2.0
"""The lab's network, made in the supervisor's private namespace: it vanishes with the last process in it.

    driver "drv" == drv-port --+
    h1's eth0 ===== h1-data ---+-- bridge "data"        h1's labd == h1-mgmt  (10.78.1.0/24)
    h2's eth0 ===== h2-data ---+                        h2's labd == h2-mgmt  (10.78.2.0/24)

What one member sends to one other is known at the receiver's port: tc's "indev" is the port where a bridged frame came in. So
each direction of a pair has at most one filter of each kind at the receiver's port, with the sender's number as priority:
  cut    the frame is redirected into a device that is down, where it is dropped;
  delay  it is redirected into a netdelay tap (../netdelay.c), and from there to the port;
  rate   it is put into an HTB class of that port.
No kernel module beyond bridge, tun, veth, cls_u32, act_mirred and sch_htb is needed (sch_netem is often missing).
"""

import subprocess
from . import names
from .errors import LabError
from .system import die_with_parent

VOID = "void"


def _run(*command, may_fail=False):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode and not may_fail:
        raise LabError(f"{' '.join(command)}: {done.stdout.strip()}")


def _ip(*arguments):
    _run("ip", *arguments)


def _quiet_ipv6():
    """No router solicitations and neighbour chatter of the driver's own devices."""
    for which in ("all", "default"):
        try:
            with open(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6", "w") as f:
                f.write("1")
        except OSError:
            pass


class Link:
    """What is wrong with the way between two members, in both directions."""

    def __init__(self):
        self.cut = False
        self.delay_ms = 0.0
        self.rate_mbit = 0.0

    def describe(self):
        parts = ["cut"] if self.cut else []
        if self.delay_ms:
            parts.append(f"delay {self.delay_ms:g} ms")
        if self.rate_mbit:
            parts.append(f"rate {self.rate_mbit:g} Mbit/s")
        return ", ".join(parts)


class Network:
    def __init__(self, hosts, netdelay):
        self.members = [names.DRIVER, *hosts]
        self.netdelay = netdelay
        self.links = {}
        self.down = set()
        self.delayers = {}

    def create(self):
        _quiet_ipv6()
        _ip("link", "set", "lo", "up")
        _ip("link", "add", names.BRIDGE, "type", "bridge", "forward_delay", "0", "stp_state", "0", "mcast_snooping", "0")
        _ip("link", "set", names.BRIDGE, "up")
        _ip("link", "add", "drv", "type", "veth", "peer", "name", names.port(names.DRIVER))
        _ip("address", "add", f"{names.DRIVER_IP}/24", "dev", "drv")
        _ip("link", "set", "drv", "up")
        _ip("link", "set", names.port(names.DRIVER), "master", names.BRIDGE, "up")
        _ip("tuntap", "add", VOID, "mode", "tap")
        for host in self.members[1:]:
            self._add_host(host)

    def _add_host(self, host):
        data, management = names.port(host), names.management_tap(host)
        _ip("tuntap", "add", data, "mode", "tap", "vnet_hdr")
        _ip("link", "set", data, "master", names.BRIDGE, "up")
        _ip("tuntap", "add", management, "mode", "tap", "vnet_hdr")
        _ip("address", "add", f"{names.management_driver_ip(host)}/24", "dev", management)
        _ip("link", "set", management, "up")

    def set_host(self, host, up):
        _ip("link", "set", names.port(host), "up" if up else "down")
        (self.down.discard if up else self.down.add)(host)

    def is_up(self, host):
        return host not in self.down

    def change(self, a, b, what, value=0.0):
        """Changes one property of the way between a and b; heal resets all of them."""
        link = self.links.setdefault(frozenset((a, b)), Link())
        if what == "heal":
            link.cut, link.delay_ms, link.rate_mbit = False, 0.0, 0.0
        elif what == "cut":
            link.cut = True
        elif what == "delay":
            link.delay_ms = value
        elif what == "rate":
            link.rate_mbit = value
        self._apply(a, b, link)
        self._apply(b, a, link)

    def describe(self):
        pairs = ((sorted(pair), link.describe()) for pair, link in self.links.items())
        return {" ".join(pair): text for pair, text in pairs if text}

    def _apply(self, source, target, link):
        self._set_redirect(source, target, None)
        self._stop_delay(source, target)
        delayer = self._start_delay(source, target, link.delay_ms) if link.delay_ms else None
        self._set_rate(source, target, link.rate_mbit, delayer)
        self._set_redirect(source, target, VOID if link.cut else delayer)

    def _priority(self, member):
        return str(1 + self.members.index(member))

    def _set_redirect(self, source, target, device):
        port, priority = names.port(target), self._priority(source)
        _run("tc", "qdisc", "add", "dev", port, "clsact", may_fail=True)
        _run("tc", "filter", "del", "dev", port, "egress", "protocol", "all", "prio", priority, may_fail=True)
        if device:
            _run("tc", "filter", "add", "dev", port, "egress", "protocol", "all", "prio", priority, "u32", "match", "u32", "0", "0",
                 "indev", names.port(source), "action", "mirred", "egress", "redirect", "dev", device)

    def _start_delay(self, source, target, milliseconds):
        device = f"d-{source}-{target}"
        process = subprocess.Popen([self.netdelay, device, str(milliseconds)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   preexec_fn=die_with_parent)
        if process.stdout.readline() != b"ready\n":
            process.wait()
            raise LabError(f"netdelay for {source} to {target} did not start")
        self.delayers[source, target] = process
        _ip("link", "set", device, "up")
        _run("tc", "qdisc", "add", "dev", device, "clsact")
        _run("tc", "filter", "add", "dev", device, "ingress", "protocol", "all", "u32", "match", "u32", "0", "0",
             "action", "mirred", "egress", "redirect", "dev", names.port(target))
        return device

    def _stop_delay(self, source, target):
        process = self.delayers.pop((source, target), None)
        if process:
            process.kill()
            process.wait()
            process.stdout.close()

    def _set_rate(self, source, target, mbit, delayer):
        port, priority = names.port(target), self._priority(source)
        class_id = f"1:{priority}"
        # The filters go first: a class in use cannot be removed.
        for offset in (0, 100):
            _run("tc", "filter", "del", "dev", port, "parent", "1:", "protocol", "all", "prio", str(int(priority) + offset), may_fail=True)
        _run("tc", "class", "del", "dev", port, "classid", class_id, may_fail=True)
        if not mbit:
            return
        bits = int(mbit * 1e6)
        # Segments of 64 KiB pass whole; the queue holds 50 ms of traffic.
        burst, limit = max(bits // 8 // 500, 64 * 1024), max(bits // 8 // 20, 256 * 1024)
        _run("tc", "qdisc", "add", "dev", port, "root", "handle", "1:", "htb", may_fail=True)
        _run("tc", "class", "add", "dev", port, "parent", "1:", "classid", class_id, "htb", "rate", f"{bits}bit", "quantum", "65536",
             "burst", str(burst), "cburst", str(burst))
        _run("tc", "qdisc", "add", "dev", port, "parent", class_id, "bfifo", "limit", str(limit))
        for offset, device in ((0, names.port(source)), (100, delayer)):
            if device:
                _run("tc", "filter", "add", "dev", port, "parent", "1:", "protocol", "all", "prio", str(int(priority) + offset), "u32",
                     "match", "u32", "0", "0", "indev", device, "flowid", class_id)
