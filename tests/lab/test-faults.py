#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A move is struck at each of its steps: a process is killed with SIGKILL, or the hosts are cut off from one another. Then, always:
never two running copies; exactly one in the end wherever the source's VMM lived; no acknowledged redis write lost; nothing
left behind where the VM is not; and the VM moves again.

    test-faults.py              at each step: the process that is there is killed; at the engine's from STOP on also: the hosts are cut
    test-faults.py --brief      at the steps of the hand-over only, by turns: the process that is there is killed; the hosts are cut
    test-faults.py --all        at each step: each of the four processes is killed in turn, and the hosts are cut
    test-faults.py STEP[:FAULT] one case; FAULT: src-vmm dst-vmm src-agent dst-agent cut
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
import faults  # noqa: E402
from faults import VM  # noqa: E402
from labtest import Lab, wait_for  # noqa: E402

FAULTS = ("src-vmm", "dst-vmm", "src-agent", "dst-agent", "cut")
# Where a cut asks most of the hand-over.
CUT_STEPS = ("move-src-copy", "move-src-stop", "move-src-ready", "move-src-commit-journalled", "move-src-commit-sent", "move-dst-ready-sent",
             "move-dst-commit-received", "move-dst-owner-journalled", "move-dst-started", "move-dst-running-sent")
# The source has heard by then that the destination runs the VM, and let go of it.
RELEASED_STEPS = ("move-dst-running-sent", "move-src-running", "agent-src-released", "agent-src-recorded", "agent-dst-arrived",
                  "agent-dst-decided", "agent-dst-committed")


class Move(faults.Struck):
    def __init__(self, lab):
        # {name: the process that visits it}
        self.steps = {name: f"{side}-{program}" for name, (side, program) in faults.steps("(?:move|agent)-(src|dst)-[a-z-]+").items()}
        super().__init__(lab, self.steps)

    def wait_hit(self, step, host):
        """The step is reached, or the move ended without visiting it."""
        def hit():
            if self.is_hit(step, host):
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
            self.kill_vmm(victim)

    def run(self, step, fault):
        self.ensure_guest()
        source, target = self.host, self.other()
        at = source if self.steps[step].startswith("src") else target
        self.arm(step, at)
        # The target is generous: these tests are not about convergence on a busy machine.
        self.mover = self.lab.background(source, "godwit", "move", VM, target, "--json", "--downtime", "2000")
        try:
            reached = self.wait_hit(step, at)
            if reached == "hit":
                self.strike(fault)
                self.never_two()
        finally:
            self.disarm()
        if reached != "hit":
            # Steps of a failed move are not visited by one that succeeds.
            self.host = wait_for(lambda: self.settled(("running",)), "settled")[0]
            return "not visited"
        # While the fault lasts a VM in doubt stays paused; nobody may run it a second time.
        for _ in range(3):
            self.never_two()
        if fault == "cut":
            self.heal()
        self.restart_dead_agents()
        self.mover.kill()
        may_crash = fault == "src-vmm" or (fault == "dst-vmm" and step in RELEASED_STEPS)
        final = ("running", "crashed", "stopped") if may_crash else ("running",)
        where, word = wait_for(lambda: self.settled(final), f"{step}:{fault}: settled")
        self.check_nothing_left(where)
        if word == "running":
            self.host = where
            self.check_guest()
        else:
            self.forget_guest()
        return f"{word} on {where}"


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


if __name__ == "__main__":
    with Lab(hosts=2) as lab:
        move = Move(lab)
        faults.main(move, cases(sys.argv[1:], move.steps))
