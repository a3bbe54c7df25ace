# SPDX-License-Identifier: Apache-2.0
"""bench/run move [--quick] [--pairs N] [--scenario NAME]...

A Linux guest moves from h1 to h2 of the lab, with Godwit and with QEMU in turn, the same kernel, memory, workload and link; every figure
is taken from outside: the longest time in which the guest answered no probe (one each millisecond), from the command to its end,
and the bytes that h1's cable carried. Godwit's total is that of `godwit move` as an operator runs it: it includes preparing the
destination, while QEMU's destination waits ready.

Scenarios: idle256, dirty20 (20 MB/s over 64 MiB), redis (a client writes 200 keys a second; disk on NBD).
Modes: Godwit clear (a bench-only build) against QEMU TCP and QEMU multifd; Godwit encrypted (the release build) against QEMU TLS.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import time
from statistics import median

from cluster import TOP, Cluster, Guest, SharedDisk
from gwbench import report, stats
from gwbench.build import make
from gwbench.qemu import QemuVm
from gwlab import system
from gwlab.state import State
from labtest import GUEST_IP, Lab, Probe, RedisWriter, guest, wait_for

SCENARIOS = {
    "idle256": {"jobs": "heartbeat", "cpus": 1},
    "dirty20": {"jobs": "heartbeat,dirty:20:64", "cpus": 1},
    "redis": {"jobs": "heartbeat,redis", "cpus": 1, "disk": True},
}
FIGURES = ("blackout_ms", "total_ms", "bytes")


class Scene:
    """One scenario: its disk server and how to start, watch and end a guest in it."""

    def __init__(self, lab, name):
        self.lab, self.name = lab, name
        self.options = dict(SCENARIOS[name])
        self.disk = SharedDisk(lab, image=guest("rootfs")) if self.options.pop("disk", False) else None
        root = {"disk": self.disk.uri, "root": "/dev/vda"} if self.disk else {}
        # Once, so that the boot files in the hosts stay what the agents know them to be, as they do between an operator's moves.
        self.guest = Guest(lab, name="bench", memory_mib=256, **self.options, **root)

    def watch(self):
        self.probe = Probe(self.lab).wait_ready()
        self.writer = RedisWriter(self.lab).wait_ready() if self.name == "redis" else None
        # The same short life before the move for both: caches and the dirtier's memory are warm.
        until = time.monotonic() + 4
        wait_for(lambda: time.monotonic() > until and self.probe.result()["received"] > 0, "the guest is warm", poll=0.5)

    def unwatch(self):
        self.probe.kill()
        if self.writer:
            self.writer.kill()

    def close(self):
        if self.disk:
            self.disk.close()

    def measured(self, move):
        """Runs move() -> details; returns the figures as seen from outside."""
        self.probe.result()
        if self.writer:
            self.writer.result()
        sent = cable_bytes()
        began, began_at = time.monotonic(), time.time()
        details = move()
        total = time.monotonic() - began
        # The guest must have answered after the move, or the gap is still open.
        wait_for(answers, "the guest answers")
        sent = cable_bytes() - sent
        seen = self.probe.result()
        longest = max(seen["gaps"], key=lambda gap: gap["ms"], default={"start": began_at})
        # The worst that any client saw.
        return {"blackout_ms": max(seen["longest_gap_ms"], self.writer.outage() if self.writer else 0), "blackout_at_ms": (longest["start"] - began_at) * 1000, "total_ms": total * 1000,
                "bytes": sent, **details}


def answers():
    """One question to the guest's heartbeat, from this process in the lab's network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(0.5)
        s.sendto(bytes(16), (GUEST_IP, 7000))
        try:
            return bool(s.recv(2048))
        except OSError:
            return False


@contextlib.contextmanager
def inside_network(lab):
    """This process is in the lab's network meanwhile; it must be out again before the lab ends, which ends all that is in it."""
    system.enter_network(State(lab.name).require()["supervisor"])
    try:
        yield
    finally:
        system.enter_network(os.getppid())


def cable_bytes():
    """Bytes that came out of h1's cable so far (this process is in the lab's network)."""
    shown = subprocess.run(["ip", "-s", "-j", "link", "show", "h1-data"], stdout=subprocess.PIPE, check=True).stdout
    return json.loads(shown)[0]["stats64"]["rx"]["bytes"]


def godwit_once(scene, cluster, clear):
    vm = scene.guest
    cluster.create("h1", vm.vm_file())
    cluster.godwit("h1", "start", vm.name)
    try:
        scene.watch()

        def move():
            told = cluster.move("h1", vm.name, "h2", *(["--clear"] if clear else []))
            if told["encrypted"] == clear:
                raise RuntimeError(f"encrypted is {told['encrypted']}")
            return {"told_blackout_ms": told["blackout_us"] / 1000, "rounds": told["round"]}
        try:
            return scene.measured(move)
        finally:
            scene.unwatch()
    finally:
        cluster.remove(vm.name)


class _Shape:
    """What QemuVm wants to know of a guest."""

    def __init__(self, vm):
        self.memory_mib, self.cpus, self.kernel, self.initrd, self.cmdline, self.mac, self.disk = (
            vm.memory_mib, vm.cpus, vm.kernel, vm.initrd, vm.cmdline, vm.mac, vm.disk)


class _Hosts:
    """The lab's hosts as QemuVm uses them."""

    def __init__(self, lab, cluster):
        self.sh, self.ip = lab.sh, cluster.ip
        self.run = lambda host, command: lab.sh(host, *command)


def qemu_once(scene, cluster, **mode):
    hosts, vm = _Hosts(scene.lab, cluster), _Shape(scene.guest)
    source = QemuVm(hosts, "h1", vm, **mode)
    try:
        scene.watch()
        target = QemuVm(hosts, "h2", vm, incoming=True, **mode)
        try:
            def move():
                _, told = source.migrate_to(target)
                return {"told_blackout_ms": told["downtime"], "rounds": told["ram"]["dirty-sync-count"]}
            return scene.measured(move)
        finally:
            scene.unwatch()
            target.end()
    finally:
        source.end()


MODES = {
    "godwit": lambda scene, clusters: godwit_once(scene, clusters, clear=True),
    "qemu": lambda scene, clusters: qemu_once(scene, clusters),
    "qemu_multifd": lambda scene, clusters: qemu_once(scene, clusters, multifd=True),
    "godwit_tls": lambda scene, clusters: godwit_once(scene, clusters, clear=False),
    "qemu_tls": lambda scene, clusters: qemu_once(scene, clusters, tls=True),
}


def measure(scene, cluster, plan):
    """Runs the modes of each round of the plan one after the other; {mode: {figure: [values]}}."""
    seen = {}
    for modes in plan:
        for mode in modes:
            figures = MODES[mode](scene, cluster)
            print(f"  {scene.name:8} {mode:12} blackout {figures['blackout_ms']:7.1f} ms (at {figures['blackout_at_ms']:6.0f}, told {figures['told_blackout_ms']:6.1f})  "
                  f"total {figures['total_ms']:7.0f} ms  {figures['bytes'] / 1e6:6.1f} MB  rounds {figures['rounds']}", flush=True)
            for key, value in figures.items():
                seen.setdefault(mode, {}).setdefault(key, []).append(value)
    return seen


def digest(seen):
    result = {mode: {key: stats.summary(values) for key, values in figures.items()} for mode, figures in seen.items()}
    for peer, suffix in (("qemu", ""), ("qemu_multifd", "_multifd")):
        if peer in seen:
            for key, name in zip(FIGURES, ("blackout_ratio", "total_ratio", "bytes_ratio")):
                result[name + suffix] = stats.paired_ratio(seen["godwit"][key], seen[peer][key])
    if "qemu_tls" in seen:
        result["tls_total_ratio"] = stats.paired_ratio(seen["godwit_tls"]["total_ms"], seen["qemu_tls"]["total_ms"])
        result["tls_blackout_ratio"] = stats.paired_ratio(seen["godwit_tls"]["blackout_ms"], seen["qemu_tls"]["blackout_ms"])
    told = [(t, o) for m in ("godwit", "godwit_tls") if m in seen for t, o in zip(seen[m]["told_blackout_ms"], seen[m]["blackout_ms"])]
    result["told_minus_outside_ms"] = round(median(t - o for t, o in told), 1)
    # Within 20% or 10 ms of what the outside saw.
    result["told_right"] = f"{sum(abs(t - o) <= max(10, 0.2 * o) for t, o in told)} of {len(told)}"
    return result


def run_scenario(name, pairs, build):
    """In hosts of its own: emulated ones slow down with what they have run before (tests/lab/gwlab/emulator.py)."""
    plan = [["godwit", "qemu"] + (["qemu_multifd"] if i < 2 else []) + (["godwit_tls", "qemu_tls"] if i == 0 else []) for i in range(pairs)]
    if "disk" in SCENARIOS[name]:
        guest("rootfs")  # here, where packages can be had, if it has to be made
    with Lab(hosts=2, with_qemu=True, bin=build) as lab, inside_network(lab):
        scene = Scene(lab, name)
        try:
            return digest(measure(scene, Cluster(lab, bin=build), plan))
        finally:
            scene.close()


def run(arguments):
    p = argparse.ArgumentParser(prog="bench/run move", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="2 pairs instead of 5")
    p.add_argument("--pairs", type=int)
    p.add_argument("--scenario", action="append", choices=SCENARIOS)
    args = p.parse_args(arguments)
    pairs = args.pairs or (2 if args.quick else 5)
    build = make("all", bench=True)
    scenarios, ok = {}, True
    for name in args.scenario or SCENARIOS:
        scenarios[name] = s = run_scenario(name, pairs, build)
        ok = ok and s["blackout_ratio"] <= 0.7 and s["total_ratio"] <= 1.0 and s["bytes_ratio"] <= 1.02 and s["tls_total_ratio"] <= 0.5
    rows = [(name, mode, *(f"{s[mode][key]['median']:,.0f} [{s[mode][key]['min']:,.0f} to {s[mode][key]['max']:,.0f}]" for key in FIGURES))
            for name, s in scenarios.items() for mode in MODES if mode in s]
    report.print_table("A move, medians [lowest to highest]", ("scenario", "mode", *FIGURES), rows)
    report.print_table("Godwit over QEMU, medians of pairs", ("scenario", "blackout", "total", "bytes", "TLS total", "blackout told right"),
                       [(name, s["blackout_ratio"], s["total_ratio"], s["bytes_ratio"], s["tls_total_ratio"], s["told_right"])
                        for name, s in scenarios.items()])
    return {"ok": ok, "scenarios": scenarios}
