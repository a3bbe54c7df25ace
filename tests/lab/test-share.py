#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""VMs of one tenant share memory: the host gets it back, other tenants have no part in it, and it survives the page store's daemon."""

import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from cluster import Cluster, Guest  # noqa: E402
from labtest import Probe, Tests, wait_for  # noqa: E402

tests = Tests()
MIB = 1 << 20
# What each guest writes to its /tmp: lines of eight bytes, no two pages alike, the same in each guest.
FILL = "seq 1000000 2499999 > /tmp/same"
FILLED = 1500000 * 8
IPS = {"v1": "10.77.0.101", "v2": "10.77.0.102", "red": "10.77.0.103", "off": "10.77.0.104"}
SETTINGS = {"red": "tenant = red", "off": "share = off"}


class Host:
    """One host with four VMs, each with the same content in its memory; sharing begins with configure()."""

    def __init__(self, lab):
        self.lab = lab
        self.cluster = Cluster(lab, hosts=("h1",))
        self.consoles = []
        self.configure("enable = no")
        for number, name in enumerate(IPS):
            vm = Guest(lab, hosts=("h1",), name=name, memory_mib=128, ip=IPS[name], mac=f"52:54:00:77:01:0{number}").vm_file()
            self.cluster.create("h1", vm.replace("[vm]\n", f"[vm]\n{SETTINGS.get(name, '')}\n", 1))
        # With the files that the VMs are made of: a host keeps them in memory.
        self.empty = self.available()
        for name in IPS:
            self.cluster.godwit("h1", "start", name)
        for name in IPS:
            self.fill(name)

    def configure(self, share):
        """Restarts the agent with this [share] section; VMs run on."""
        self.lab.sh("h1", f"sed -i '/^.share.$/,$d' /etc/godwit/godwitd.conf; (echo '[share]'; echo '{share}') >> /etc/godwit/godwitd.conf")
        self.cluster.restart_agent("h1")

    def fill(self, name):
        said = f"/tmp/said-{name}"
        script = f"while ! grep -q GUEST-READY {said}; do usleep 200000; done; echo '{FILL}; echo filled-$((40+2))'; exec sleep 1000"
        self.consoles.append(self.lab.background("h1", f": > {said}; ({script}) | godwit console {name} > {said}"))
        wait_for(lambda: "filled-42" in self.lab.sh("h1", f"cat {said}", check=False).stdout, f"{name} is filled", poll=0.5)

    def available(self):
        """Bytes. What the kernel keeps at hand for a processor after much was freed is free, too, and not in MemAvailable."""
        said = self.lab.sh("h1", "awk '/^MemAvailable/ { free = $2 } /^ +count:/ { free += 4 * $2 } END { print free }' /proc/meminfo /proc/zoneinfo")
        return int(said.stdout) * 1024

    def share(self):
        return json.loads(self.cluster.godwit("h1", "share", "--json").stdout)

    def domain(self, name="default"):
        return next((d for d in self.share()["domains"] if d["domain"] == name), None)

    def vm(self, name):
        return next(v for v in self.share()["vms"] if v["vm"] == name)

    def passes(self, name):
        return self.vm(name).get("godwit_share_passes_total", 0)

    def wait_saved(self, least=FILLED * 0.8):
        def saved():
            d = self.domain()
            return d if d and (d["godwit_share_saved_bytes"] or 0) >= least else None
        return wait_for(saved, f"{least / MIB:.0f} MiB are saved: {self.domain()}", poll=1)

    def end(self):
        for console in self.consoles:
            console.kill()
        for name in IPS:
            self.cluster.remove(name)
        self.cluster.kill_agent("h1")


@tests.test
def vms_of_one_tenant_share(lab):
    host = Host(lab)
    probe = Probe(lab, IPS["v1"]).wait_ready()
    try:
        before = host.available()
        assert host.share()["enabled"] is False and host.share()["daemon_pid"] == 0
        host.configure("cpu = 100%")
        d = host.wait_saved()
        told = d["godwit_share_saved_bytes"] + d["godwit_share_zero_bytes"] - d["godwit_share_metadata_bytes"]
        assert told == d["godwit_share_profit_bytes"]
        gain = wait_for(lambda: (g := host.available() - before) > FILLED * 0.6 and g, "the host has more memory", poll=1)
        # No more is told than the host got; it gets free pages that the guests report besides.
        assert gain > 0.5 * told - 8 * MIB, (gain, told)
        print(f"     {gain / MIB:.1f} MiB more available, {told / MIB:.1f} MiB told")
        for name in ("v1", "v2"):
            # A VM's own figures are those of its last pass.
            wait_for(lambda name=name: host.vm(name)["godwit_share_shared_bytes"] >= FILLED * 0.8, f"{name} tells what it shares", poll=1)
            vm = host.vm(name)
            assert vm["attached"] and not vm["reason"], vm
            assert 0 < vm["godwit_share_mappings"] <= vm["godwit_share_mappings_budget"], vm

        # Another tenant's VM of the same content has no part in it; one that is off is not even hashed.
        wait_for(lambda: host.passes("red") >= 2, "the other tenant's VM was looked at", poll=1)
        d = host.domain("red")
        assert d["godwit_share_vms"] == 1 and d["godwit_share_between_vm_bytes"] == 0 and d["godwit_share_saved_bytes"] < FILLED * 0.8, d
        threads = {name: lab.sh("h1", f"cat /proc/$(pgrep -f -- '[-]-name {name} ')/task/*/comm").stdout.split() for name in IPS}
        assert "share" in threads["red"] and "share" not in threads["off"], threads
        assert host.vm("off")["reason"] == "off for this VM" and not host.vm("off")["attached"]

        # The page store's daemon dies: VMs go on, what is shared stays so, another daemon goes on from there.
        saved, shared = host.domain()["godwit_share_saved_bytes"], host.vm("v1")["godwit_share_shared_bytes"]
        first = host.share()["daemon_pid"]
        lab.sh("h1", f"kill -9 {first}")
        wait_for(lambda: (pid := host.share()["daemon_pid"]) and pid != first, "another daemon runs")
        assert host.vm("v1")["godwit_share_shared_bytes"] > shared / 2, "what was shared stays so"
        wait_for(lambda: all(host.vm(name)["attached"] for name in ("v1", "v2", "red")), "the VMs are attached to it")
        host.wait_saved(saved * 0.8)
        probe.result()
        wait_for(lambda: probe.result()["received"] > 0, "the guest answers")
        assert [host.cluster.state("h1", name) for name in IPS] == ["running"] * len(IPS)

        # VMs that end give back what only they used.
        for name in IPS:
            host.cluster.godwit("h1", "stop", name, "--force")
        def back():
            missing = host.empty - host.available()
            return missing < 24 * MIB or print(f"     {missing / MIB:.1f} MiB are still missing")
        wait_for(back, "all memory is back", poll=0.5)
        wait_for(lambda: not host.domain() or not host.domain()["godwit_share_stored_bytes"], "the store is empty")
    finally:
        probe.kill()
        host.end()


if __name__ == "__main__":
    tests.main(hosts=1, memory="2G")
