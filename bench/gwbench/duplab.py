# SPDX-License-Identifier: Apache-2.0
"""The lab's part of the dedup bench: Linux guests freshly booted from one Debian image in one emulated host, first without sharing, then with it;
Godwit's VMs and page store in one round, QEMU's and kernel KSM in the other."""

import json
import time

from cluster import Cluster, Guest, SharedDisk
from gwbench.qemu import QEMU_GUEST
from labtest import Lab, Probe, guest, wait_for

HOST = "h1"
KINDS = ("6.12-cloud", "6.12-cloud", "6.1-cloud", "6.12-cloud", "6.1-cloud", "6.12-cloud", "6.12-cloud", "6.1-cloud")
LIMIT_S = 600


def mem_available(lab):
    """Bytes; with what the host's kernel keeps at hand for its processor after much was freed, which MemAvailable leaves out."""
    script = "awk '/^MemAvailable/ { free = $2 } /^ +count:/ { free += 4 * $2 } END { print free }' /proc/meminfo /proc/zoneinfo"
    return int(lab.sh(HOST, script).stdout) << 10


class Watch:
    """What the host's memory is, and what sharing takes of its processor, written down in the host by one process that nobody delays (memwatch.c)."""
    LOG = "/srv/memwatch.log"

    def __init__(self, lab):
        self.lab = lab
        lab.put(HOST, guest("program", "memwatch"), "/srv")
        self.pid = lab.sh(HOST, f"/srv/memwatch-* share godwit-ksmd ksmd > {self.LOG} 2> /dev/null < /dev/null & echo $!").stdout.strip()
        wait_for(self.samples, "the host is watched")

    def samples(self):
        """(the host's uptime in seconds, bytes available, seconds of processor time) of each."""
        lines = self.lab.sh(HOST, f"cat {self.LOG}").stdout.splitlines(keepends=True)
        return [(float(up), int(free), int(cpu) / 1e9) for up, free, cpu in (line.split() for line in lines if line.endswith("\n"))]

    def close(self):
        self.lab.sh(HOST, f"kill {self.pid}")


class Scene:
    """The guests: their disks at the driver's side, their shapes."""

    def __init__(self, lab, vms, memory_mib, busy):
        self.lab = lab
        self.disks, self.guests = [], []
        jobs = "heartbeat,redis" if busy else "heartbeat"
        for i in range(vms):
            self.disks.append(SharedDisk(lab, image=guest("rootfs"), port=10820 + i))
            self.guests.append(Guest(lab, hosts=(HOST,), kind=KINDS[i % len(KINDS)] if busy else KINDS[0], name=f"vm{i}", memory_mib=memory_mib, jobs=jobs,
                                     disk=self.disks[-1].uri, root="/dev/vda", ip=f"10.77.0.{110 + i}", mac=f"52:54:00:77:01:{i:02x}"))

    def close(self):
        for disk in self.disks:
            disk.close()


class GodwitSide:
    name = "godwit"

    def __init__(self, lab, scene):
        self.lab = lab
        self.cluster = Cluster(lab, hosts=(HOST,))
        lab.sh(HOST, "sed -i 's/^.share.$/&\\ncpu = 100%/' /etc/godwit/godwitd.conf")
        self.cluster.restart_agent(HOST)
        self.guests = scene.guests
        for g in self.guests:
            # As QEMU's have none: by a balloon a guest gives its free pages back before anybody shares them.
            self.cluster.create(HOST, g.vm_file().replace("[vm]\n", "[vm]\nballoon = no\n"))
            self.cluster.godwit(HOST, "start", g.name)

    def pids(self):
        return self.lab.sh(HOST, "pidof godwit-vmm").stdout.split()

    def share(self):
        """The host's uptime when sharing began: with the daemon, somewhere in the restart of the agent."""
        self.lab.sh(HOST, "sed -i 's/enable = no/enable = yes/' /etc/godwit/godwitd.conf")
        self.cluster.restart_agent(HOST)
        return int(self.lab.sh(HOST, "cut -d' ' -f22 /proc/$(pidof godwit-ksmd)/stat").stdout) / 100

    def calm(self):
        """As it is when nobody hurries."""

    def told(self):
        return json.loads(self.cluster.godwit(HOST, "share", "--json").stdout)

    def close(self):
        for g in self.guests:
            self.cluster.remove(g.name)


class KsmSide:
    name = "ksm"

    def __init__(self, lab, scene):
        self.lab, self.guests = lab, scene.guests
        lab.sh(HOST, "cd /sys/kernel/mm/ksm; echo 2 > run; echo 0 > sleep_millisecs; echo 100000 > pages_to_scan; echo 1 > use_zero_pages")
        for i, g in enumerate(self.guests):
            lab.sh(HOST, "bash", "-c", QEMU_GUEST.format(i=i, memory=g.memory_mib, kernel=g.kernel, initrd=g.initrd, cmdline=g.cmdline, disk=g.disk, mac=g.mac))

    def pids(self):
        return self.lab.sh(HOST, "pidof qemu-system-x86_64").stdout.split()

    def share(self):
        return float(self.lab.sh(HOST, "cut -d' ' -f1 /proc/uptime; echo 1 > /sys/kernel/mm/ksm/run").stdout)

    def calm(self):
        self.lab.sh(HOST, "cd /sys/kernel/mm/ksm; echo 20 > sleep_millisecs; echo 100 > pages_to_scan")

    def told(self):
        return {}

    def close(self):
        self.lab.sh(HOST, "echo 2 > /sys/kernel/mm/ksm/run; pkill -9 -x qemu-system-x86; while pidof qemu-system-x86_64 > /dev/null; do usleep 50000; done; "
                          "for t in $(ls /sys/class/net/br0/brif); do [ $t = eth0 ] || ip link del $t; done")


def plateau(watch, began, baseline):
    """
    What is saved once no more is, after how many seconds nearly all of it was, and the processor time that it had taken by then (a scanner goes on and on);
    and the samples, as (seconds, bytes saved, seconds of processor time).
    """
    while True:
        time.sleep(2)
        all_of_them = watch.samples()
        before = max(cpu for up, _, cpu in all_of_them if up <= began)
        samples = [(up - began, free - baseline, cpu - before) for up, free, cpu in all_of_them if up > began]
        now, saved, _ = samples[-1]
        recent = [s for t, s, _ in samples if t > now - 20]
        if (now > 30 and saved > 8 << 20 and max(recent) - min(recent) < max(saved // 100, 1 << 20)) or now > LIMIT_S:
            final = sorted(recent)[len(recent) // 2]
            return final, *next((t, spent) for t, s, spent in samples if s >= final * 0.97), samples


def one_side(side_class, vms, memory_mib, busy, steady_s):
    with Lab(hosts=1, memory="4G", with_qemu=True) as lab:
        scene = Scene(lab, vms, memory_mib, busy)
        side = side_class(lab, scene)
        try:
            for g in scene.guests:
                Probe(lab, g.ip).wait_ready().kill()
            time.sleep(5)
            put_tool(lab)
            bound = json.loads(lab.sh(HOST, "/srv/pagehash", *side.pids()).stdout)
            watch = Watch(lab)
            baseline = mem_available(lab)
            saved, converged, first, curve = plateau(watch, side.share(), baseline)
            side.calm()
            begin, _, before = watch.samples()[-1]
            time.sleep(steady_s)
            end, _, after = watch.samples()[-1]
            steady = (after - before) / (end - begin)
            watch.close()
            possible = (bound["zero"] + bound["within"] + bound["between"]) * 4096
            maps = [int(lab.sh(HOST, f"wc -l < /proc/{pid}/maps").stdout) for pid in side.pids()]
            return {"saved_bytes": saved, "bound_bytes": possible, "of_upper_bound": saved / possible, "zero_bytes": bound["zero"] * 4096,
                    "within_bytes": bound["within"] * 4096, "between_bytes": bound["between"] * 4096, "converge_s": converged, "cpu_s": first,
                    "steady_cpu": steady, "maps_per_vm": sorted(maps)[len(maps) // 2], "curve": curve, "told": side.told()}
        finally:
            side.close()
            scene.close()


def put_tool(lab):
    """pagehash, in the host under its own name."""
    lab.put(HOST, guest("program", "pagehash"), "/srv")
    lab.sh(HOST, "ln -sf /srv/pagehash-* /srv/pagehash")


SIDES = (GodwitSide, KsmSide)
