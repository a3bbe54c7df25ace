# SPDX-License-Identifier: Apache-2.0
"""A VM that is struck at the steps of what is done with it: what the lab's tests of moves and of suspending share.

Every step is a failpoint at which the process waits for a file. All are armed in every process, with their files in place; a case takes
one file away, begins, strikes when the step is reached, and puts the file back.
"""

import json
import re
import sys
import time

from cluster import TOP, Cluster, Guest, SharedDisk
from labtest import RedisWriter, guest, wait_for

VM = "fault"
HEADERS = {"migrate/failpoints.h": "vmm", "agent/failpoints.h": "agent"}


def steps(pattern):
    """{name: (groups of the pattern, the program that visits it)} from the lists in the source, in their order."""
    found = {}
    for header, program in HEADERS.items():
        for name in re.findall(r'#define \w+ "([a-z-]+)"', (TOP / header).read_text()):
            if match := re.fullmatch(pattern, name):
                found[name] = (*match.groups(), program)
    return found


class Struck:
    """The cluster with one VM that is struck again and again; it stands on either host."""

    def __init__(self, lab, names):
        self.lab, self.names = lab, list(names)
        self.armed = ",".join(f"{step}=wait:/tmp/fp/{step}" for step in self.names)
        for host in ("h1", "h2"):
            lab.sh(host, "mkdir -p /tmp/fp")
        self.cluster = Cluster(lab, failpoints=self.armed)
        self.disarm()
        self.disk = SharedDisk(lab, image=guest("rootfs"))
        self.guest = Guest(lab, name=VM, memory_mib=192, jobs="heartbeat,redis,dirty:4:8", disk=self.disk.uri, root="/dev/vda")
        self.writer = None
        self.host = None

    def ensure_guest(self):
        """A running VM with a redis that a client writes to."""
        if self.host and self.writer:
            return
        self.cluster.remove(VM)
        self.host = "h1"
        self.cluster.create("h1", self.guest.vm_file())
        self.cluster.godwit("h1", "start", VM)
        self.writer = RedisWriter(self.lab).wait_ready()

    def start_over(self):
        """After a failed case: nothing of it is left for the next one."""
        self.heal()
        self.disarm()
        self.cluster.start_over(self.armed)
        self.forget_guest()

    def forget_guest(self):
        if self.writer:
            self.writer.kill()
        self.host = self.writer = None

    def heal(self):
        self.lab.net("h1", "h2", "heal")

    def other(self, host=None):
        return "h2" if (host or self.host) == "h1" else "h1"

    def arm(self, step, host):
        self.lab.sh(host, f"rm -f /tmp/fp/{step} /tmp/fp/*.hit")

    def disarm(self):
        for host in self.cluster.hosts:
            self.lab.sh(host, "touch " + " ".join(f"/tmp/fp/{step}" for step in self.names))

    def is_hit(self, step, host):
        return self.lab.sh(host, "test", "-e", f"/tmp/fp/{step}.hit", check=False).returncode == 0

    def vmm_pid(self, host):
        return self.lab.sh(host, "pidof godwit-vmm", check=False).stdout.split()

    def kill_vmm(self, host):
        for pid in self.vmm_pid(host):
            self.lab.sh(host, "kill", "-9", pid, check=False)

    def restart_dead_agents(self):
        for host in self.cluster.hosts:
            if self.cluster.godwit(host, "ls", check=False).returncode:
                self.cluster.start_agent(host, self.armed)

    def never_two(self):
        """Two VMMs may exist while something is under way, but only one may say that it runs."""
        running = self.cluster.running_on(VM)
        assert len(running) <= 1, f"the VM runs on {running}"

    def settled(self, final):
        """(host, state) where the VM is at last, in one of the states of `final`; None while something is under way."""
        states = {host: self.cluster.show(host, VM) for host in self.cluster.hosts}
        words = {host: info["state"] for host, info in states.items() if info}
        assert list(words.values()).count("running") <= 1, f"two run: {words}"
        busy = {"moving", "incoming", "doubt", "saving"} & set(words.values())
        if busy or any(info and info.get("operation") for info in states.values()):
            return None
        return next(((host, word) for host, word in words.items() if word in final), None)

    def check_nothing_left(self, where):
        elsewhere = self.other(where)
        assert not self.vmm_pid(elsewhere), f"a VMM is left on {elsewhere}"
        taps = self.lab.sh(elsewhere, "ls /sys/class/net/br0/brif").stdout.split()
        assert taps == ["eth0"], f"{elsewhere}: a tap is left: {taps}"

    def check_guest(self):
        """It runs on self.host, and nothing that it acknowledged is lost."""
        faultless, verdict = self.lab.check_workload()
        assert faultless, verdict
        written = self.writer.finish()
        self.writer = None
        assert written["lost"] == 0, written
        self.writer = RedisWriter(self.lab).wait_ready()


def main(case, cases):
    """Runs case.run(step, fault) for each; the result line, and the exit status."""
    passed = failed = skipped = 0
    for step, fault in cases:
        began = time.monotonic()
        try:
            outcome = case.run(step, fault)
        except Exception as e:
            failed += 1
            print(f"FAIL {step} {fault} ({time.monotonic() - began:.1f} s): {e}", flush=True)
            print(json.dumps({h: case.cluster.show(h, VM) for h in case.cluster.hosts})[:3000])
            print("\n".join(line for line in case.cluster.logs().splitlines() if "is armed" not in line)[-4000:], flush=True)
            case.start_over()
            continue
        passed += outcome != "not visited"
        skipped += outcome == "not visited"
        print(f"ok   {step} {fault}: {outcome} ({time.monotonic() - began:.1f} s)", flush=True)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(1 if failed else 0)
