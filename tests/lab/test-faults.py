#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A move is struck at each of its steps: a process is killed with SIGKILL, or the hosts are cut off from one another. Then, always:
never two running copies; exactly one in the end wherever the source's VMM lived; no acknowledged redis write lost; nothing
left behind where the VM is not; and the VM moves again.

Every step is a failpoint at which the process waits for a file. All are armed in every process, with their files in place; a case takes
one file away, starts the move, strikes when the step is reached, and puts the file back.

    test-faults.py              at each step: the process that is there is killed; at the engine's from STOP on also: the hosts are cut
    test-faults.py --brief      at the steps of the hand-over only, by turns: the process that is there is killed; the hosts are cut
    test-faults.py --all        at each step: each of the four processes is killed in turn, and the hosts are cut
    test-faults.py STEP[:FAULT] one case; FAULT: src-vmm dst-vmm src-agent dst-agent cut
"""

import json
import os
import re
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from cluster import TOP, Cluster, Guest, SharedDisk  # noqa: E402
from labtest import Lab, RedisWriter, guest, wait_for  # noqa: E402

FAULTS = ("src-vmm", "dst-vmm", "src-agent", "dst-agent", "cut")
# Where a cut asks most of the hand-over.
CUT_STEPS = ("move-src-copy", "move-src-stop", "move-src-ready", "move-src-commit-journalled", "move-src-commit-sent", "move-dst-ready-sent",
             "move-dst-commit-received", "move-dst-owner-journalled", "move-dst-started", "move-dst-running-sent")
# The source has heard by then that the destination runs the VM, and let go of it.
RELEASED_STEPS = ("move-dst-running-sent", "move-src-running", "agent-src-released", "agent-src-recorded", "agent-dst-arrived",
                  "agent-dst-decided", "agent-dst-committed")
VM = "fault"


def steps():
    """All steps, from the lists in the source: {name: the process that visits it}."""
    found = {}
    for header, program in (("migrate/failpoints.h", "vmm"), ("agent/failpoints.h", "agent")):
        for name in re.findall(r'#define \w+ "((?:move|agent)-(src|dst)-[a-z-]+)"', (TOP / header).read_text()):
            found[name[0]] = f"{name[1]}-{program}"
    return found


class Case:
    """The cluster with one VM that is struck again and again; it stands on either host."""

    def __init__(self, lab):
        self.lab, self.steps = lab, steps()
        self.armed = ",".join(f"{step}=wait:/tmp/fp/{step}" for step in self.steps)
        for host in ("h1", "h2"):
            lab.sh(host, "mkdir -p /tmp/fp; cd /tmp/fp; touch " + " ".join(self.steps))
        self.cluster = Cluster(lab, failpoints=self.armed)
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
        self.lab.net("h1", "h2", "heal")
        for host in self.cluster.hosts:
            self.lab.sh(host, "touch " + " ".join(f"/tmp/fp/{step}" for step in self.steps))
        self.cluster.start_over(self.armed)
        if self.writer:
            self.writer.kill()
        self.host = self.writer = None

    def other(self):
        return "h2" if self.host == "h1" else "h1"

    def vmm_pid(self, host):
        return self.lab.sh(host, "pidof godwit-vmm", check=False).stdout.split()

    def wait_hit(self, step):
        """The step is reached, or the move ended without visiting it."""
        host = self.host if self.steps[step].startswith("src") else self.other()

        def hit():
            if self.lab.sh(host, "test", "-e", f"/tmp/fp/{step}.hit", check=False).returncode == 0:
                return "hit"
            return "ended" if self.mover.process.poll() is not None else None
        return wait_for(hit, f"step {step}")

    def strike(self, fault):
        victim = self.host if fault.startswith("src") else self.other()
        if fault == "cut":
            self.lab.net(self.host, self.other(), "cut")
        elif fault.endswith("agent"):
            self.cluster.kill_agent(victim)
        else:
            for pid in self.vmm_pid(victim):
                self.lab.sh(victim, "kill", "-9", pid, check=False)

    def never_two(self):
        """Two VMMs may exist while a move is under way, but only one may say that it runs."""
        running = self.cluster.running_on(VM)
        assert len(running) <= 1, f"the VM runs on {running}"
        return running

    def settled(self, may_crash):
        """The host where the VM runs at last, or where it lies crashed (if the VMM was killed that it belonged to)."""
        states = {host: self.cluster.show(host, VM) for host in self.cluster.hosts}
        words = {host: info["state"] for host, info in states.items() if info}
        assert list(words.values()).count("running") <= 1, f"two run: {words}"
        busy = {"moving", "incoming", "doubt"} & set(words.values())
        if busy or any(info and info.get("operation") for info in states.values()):
            return None
        for host, word in words.items():
            if word == "running" or (may_crash and word in ("crashed", "stopped")):
                return host, word
        return None

    def run(self, step, fault):
        self.ensure_guest()
        source, target = self.host, self.other()
        at = source if self.steps[step].startswith("src") else target
        self.lab.sh(at, f"rm -f /tmp/fp/{step} /tmp/fp/*.hit")
        # The target is generous: these tests are not about convergence on a busy machine.
        self.mover = self.lab.background(source, "godwit", "move", VM, target, "--json", "--downtime", "2000")
        try:
            reached = self.wait_hit(step)
            if reached == "hit":
                self.strike(fault)
                self.never_two()
        finally:
            self.lab.sh(at, "touch", f"/tmp/fp/{step}")
        if reached != "hit":
            # Steps of a failed move are not visited by one that succeeds.
            self.host = wait_for(lambda: self.settled(False), "settled")[0]
            return "not visited"
        # While the fault lasts a VM in doubt stays paused; nobody may run it a second time.
        for _ in range(3):
            self.never_two()
        if fault == "cut":
            self.lab.net(source, target, "heal")
        for host in self.cluster.hosts:
            if fault.endswith("agent") and self.cluster.godwit(host, "ls", check=False).returncode:
                self.cluster.start_agent(host, self.armed)
        self.mover.kill()
        may_crash = fault == "src-vmm" or (fault == "dst-vmm" and step in RELEASED_STEPS)
        where, word = wait_for(lambda: self.settled(may_crash), f"{step}:{fault}: settled")
        self.check_end(where, word)
        return f"{word} on {where}"

    def check_end(self, where, word):
        elsewhere = [h for h in self.cluster.hosts if h != where][0]
        assert not self.vmm_pid(elsewhere), f"a VMM is left on {elsewhere}"
        taps = self.lab.sh(elsewhere, "ls /sys/class/net/br0/brif").stdout.split()
        assert taps == ["eth0"], f"{elsewhere}: a tap is left: {taps}"
        if word == "running":
            self.host = where
            faultless, verdict = self.lab.check_workload()
            assert faultless, verdict
            self.check_writes()
        else:
            self.writer.kill()
            self.host = self.writer = None

    def check_writes(self):
        written = self.writer.finish()
        self.writer = None
        assert written["lost"] == 0, written
        self.writer = RedisWriter(self.lab).wait_ready()


def cases(arguments, known):
    named = [a for a in arguments if not a.startswith("-")]
    if named:
        for name in named:
            step, _, fault = name.partition(":")
            yield from ((step, f) for f in ([fault] if fault else FAULTS))
        return
    for step, owner in known.items():
        if "--brief" in arguments:
            if step in CUT_STEPS:
                yield step, "cut" if CUT_STEPS.index(step) % 2 else owner
            continue
        faults = FAULTS if "--all" in arguments else (owner, "cut") if step in CUT_STEPS else (owner,)
        for fault in faults:
            yield step, fault


def main():
    passed = failed = skipped = 0
    with Lab(hosts=2) as lab:
        case = Case(lab)
        for step, fault in cases(sys.argv[1:], case.steps):
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
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
