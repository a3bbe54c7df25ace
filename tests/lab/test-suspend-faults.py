#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Suspending a VM to a bucket, and resuming it, is struck at each of its steps: the VMM or the agent is killed with SIGKILL, or the hosts are cut off
from the bucket. Then, always: never two running copies; the VM runs, or is resumed; no acknowledged redis write is lost, but by the end of a VMM whose
VM had run; nothing is left behind where the VM is not; the repository is clean; and the VM can be suspended again.

    test-suspend-faults.py              at each step: VMM killed, agent killed, repository cut off
    test-suspend-faults.py --brief      three of these
    test-suspend-faults.py STEP[:FAULT] one case; FAULT: vmm agent cut
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
import faults  # noqa: E402
from bucket import Bucket  # noqa: E402
from faults import VM  # noqa: E402
from labtest import PATIENCE, Lab, wait_for  # noqa: E402

FAULTS = ("vmm", "agent", "cut")
BRIEF = (("save-stopped", "cut"), ("save-suspended", "agent"), ("load-owned", "vmm"))


class Suspension(faults.Struck):
    def __init__(self, lab, bucket):
        self.bucket = bucket
        super().__init__(lab, faults.steps("(save|load)-[a-z]+"))
        # It gives up soon: what is cut off stays so until the command ends.
        self.repo = self.cluster.init_repository(f"{bucket.url}&retry=5")

    def heal(self):
        self.bucket.relay.heal()

    def begin(self, step):
        """Starts the command; returns it and the host where the step is to be. A VM is resumed on either host by turns."""
        at, options = self.host, []
        if step.startswith("load"):
            self.suspend()
            at = self.other()
            options = ["--on", at]
        self.arm(step, at)
        words = ("resume", VM, "--from", *self.repo, *options) if options else ("suspend", VM, "--live", "--to", *self.repo)
        return self.lab.background(self.host, "godwit", *words), at

    def suspend(self):
        self.cluster.godwit(self.host, "suspend", VM, "--live", "--to", *self.repo)

    def resume(self, *options):
        self.cluster.godwit(self.host, "resume", VM, "--from", *self.repo, *options)

    def all_here(self):
        wait_for(lambda: (self.cluster.show(self.host, VM)["load"] or {}).get("phase") == "done", "all of its memory is here")

    def wait_hit(self, step, at, command):
        """Those of a command that succeeds are all visited, if maybe just after it, but one: a round may be the last."""
        def hit():
            ended = command.process.poll()
            if self.is_hit(step, at):
                return "hit"
            return "ended" if ended or (ended == 0 and step == "save-round") else None
        return wait_for(hit, f"step {step}")

    def strike(self, fault, at):
        if fault == "cut":
            self.bucket.relay.cut()
        elif fault == "agent":
            self.cluster.kill_agent(at)
        else:
            self.kill_vmm(at)

    def run(self, step, fault):
        self.ensure_guest()
        command, at = self.begin(step)
        try:
            reached = self.wait_hit(step, at, command)
            if reached == "hit":
                self.strike(fault, at)
                self.never_two()
        finally:
            self.disarm()
        command.process.communicate(timeout=PATIENCE)
        self.never_two()
        self.heal()
        self.restart_dead_agents()
        final = ("running", "suspended", *(("crashed",) if fault == "vmm" else ()))
        self.host, word = wait_for(lambda: self.settled(final), f"{step}:{fault}: settled")
        self.check_nothing_left(self.host)
        self.cluster.check_repository(self.host, self.repo)
        outcome = f"{word} on {self.host}" if reached == "hit" else "not visited"
        if word == "crashed" and step != "load-owned":
            self.forget_guest()
            self.ensure_guest()
        elif word == "running" and step.startswith("save"):
            self.suspend()
            self.resume()
        elif word != "running":
            self.resume(*(["--force"] if word == "crashed" else []))
        if self.cluster.show(self.host, VM)["load"]:
            self.all_here()
        self.check_guest()
        return outcome


def cases(arguments, steps):
    if "--brief" in arguments:
        return BRIEF
    if not arguments:
        return [(step, fault) for step in steps for fault in FAULTS]
    named = (name.partition(":") for name in arguments)
    return [(step, f) for step, _, fault in named for f in ([fault] if fault else FAULTS)]


if __name__ == "__main__":
    with Lab(hosts=2) as lab, Bucket(lab, ("h1", "h2")) as bucket:
        case = Suspension(lab, bucket)
        faults.main(case, cases(sys.argv[1:], case.names))
