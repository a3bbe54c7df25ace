#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Suspend, resume, prune and copy, struck at a random moment: SIGKILL to the VMM, an agent or the command, or the network goes (connections are
reset, or stand still; for less or more than a client goes on trying). With repositories in directories, and in a bucket of a real S3 server.

After each, always: the next command has the VM run again, with the memory that its guest has written; it never ran twice, and was lost by nothing but
the end of the VMM that ran it; `repo check --read-data` finds nothing wrong; the same command succeeds when it is given again.

    test-kill.py [--trials 100] [--seed N] [--only directory|bucket]

Victim and moment of a trial are made from the seed and its number; what it strikes at that moment is for the machine to tell.
"""

import argparse
import collections
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from twohosts import PATIENCE, VM, Failed, Site, rgw, wait_for  # noqa: E402

REFUSED = 4  # exit status: not in this state
OPERATIONS = ("suspend", "prune", "copy", "resume")  # of a round, in this order


class Trials:
    """A VM that is suspended and resumed again and again; it is where `at` says."""

    def __init__(self, site, seed):
        self.site, self.seed = site, seed
        self.at = site.agents[0]
        self.seconds = {}  # what an operation takes when nothing strikes
        self.bytes = {}    # and how much it moves
        site.must(self.at.command("create", site.dir / "v.vm"))
        site.must(self.at.command("start", VM))

    # ---- commands ----

    def suspend(self, random_):
        self.suspender = self.at
        live = ["--live"] if random_.random() < 0.5 else []
        return self.at.command("suspend", VM, "--to", *self.site.repo, *live)

    def resume(self, random_):
        """On either host; once taken over, where it is: any other would ask the one that suspended it."""
        self.target = random_.choice(self.site.agents) if self.at is self.suspender else self.at
        asked = random_.choice((self.at, self.target))
        on = ["--on", self.target.name] if asked is not self.target else []
        return asked.command("resume", VM, "--from", *self.site.repo, *on)

    def prune(self, random_):
        return self.site.repo_command(self.site.repo, "prune", "--exclusive", "--waste", random_.choice(("1", "20", "50")))

    def copy(self, _):
        to = self.site.copy
        return [*self.site.repo_command(self.site.repo, "copy"), "--to", to[0], "--to-key-file", self.site.dir / "pki/h1.key", "--to-fingerprint", to[2]]

    # ---- what must hold ----

    def check(self, repo):
        self.site.must(self.site.repo_command(repo, "check", "--read-data"))
        self.check_machines()

    def check_machines(self):
        for wrong in ("two", "wrong"):
            if self.site.told(wrong):
                raise Failed({"two": "it ran twice", "wrong": "its memory is not what it wrote"}[wrong])

    def settled(self):
        """(state, agent that has it) once nothing is under way; a VM that nobody has recorded was handed over and not taken: "claimed"."""
        known = {agent: agent.show() for agent in self.site.agents}
        if any(info and (info["operation"] or info["state"] in ("saving", "incoming")) for info in known.values()):
            return None
        states = {agent: info["state"] for agent, info in known.items() if info and info["state"] != "moved"}
        agent, state = next(iter(states.items()), (self.target, "claimed"))
        vmms = sum(len(agent.vmms()) for agent in self.site.agents)
        return (state, agent) if len(states) <= 1 and vmms == (state == "running") else None

    def all_here(self, before):
        """Until the VMM has looked at all of the memory that it loaded."""
        wait_for(lambda: self.site.told("equal") + self.site.told("wrong") > before, "all of its memory is here")
        self.check_machines()

    def recover(self, state, before, from_snapshot, random_):
        """Has it run. `before`: told("equal") when it was suspended for certain."""
        if state == "running":
            return
        if state == "crashed" and not from_snapshot:
            self.site.must(self.at.command("start", VM))
            return
        if state == "suspended":
            command = self.resume(random_)
        else:
            self.target = self.at
            command = self.at.command("resume", VM, "--from", *self.site.repo, *(["--force"] if state == "crashed" else []))
        if state == "crashed":
            before = self.site.told("equal")
        wait_for(lambda: self.brought(command), "it runs again")
        self.all_here(before)

    def brought(self, command):
        """A command whose sender was killed may still be under way, from one agent to the other, where nobody sees it: this one is refused then."""
        done = self.site.run(command)
        self.what += f"; {done.stdout.strip()}" if done.stdout.strip() not in self.what else ""
        if done.returncode not in (0, REFUSED):
            raise Failed(f"{' '.join(map(str, command))}: exit {done.returncode}: {done.stdout.strip()}")
        state, self.at = wait_for(self.settled, "nothing is under way")
        return state == "running"

    # ---- striking ----

    def victims(self, operation):
        names = {"suspend": ["vmm", "agent", "command"], "resume": ["vmm", "agent", "other agent", "command", "peers"]}.get(operation, ["command"])
        return names + (["network"] if self.site.network else [])

    def strike(self, victim, operation, process, random_):
        """At a moment between the command's beginning and a little after its end. Returns whether there was something to strike."""
        moment = random_.random() * 1.1
        if victim in ("network", "peers"):
            return self.cut(victim, moment, operation, process, random_)
        try:
            process.wait(timeout=moment * self.seconds[operation])
            running = False
        except subprocess.TimeoutExpired:
            running = True
        target = self.target if operation == "resume" else self.at
        if victim == "command":
            process.kill()
        elif victim == "vmm":
            pids = [pid for agent in {self.at, target} for pid in agent.vmms()]
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            return bool(pids)
        else:
            agent = target.other if victim == "other agent" else target
            agent.kill()
            time.sleep(random_.choice((0, 0.1)))
            agent.start()
        return running

    def cut(self, victim, moment, operation, process, random_):
        relays = [self.site.network] if victim == "network" else [agent.relay for agent in self.site.agents]
        frozen, seconds = random_.random() < 0.5, random_.choice((0.05, 0.5, 4))
        for relay in relays:
            relay.cut_after(int(moment * self.bytes[operation][victim]), frozen)
        end = time.monotonic() + PATIENCE
        while process.poll() is None and not any(relay.is_cut() for relay in relays) and time.monotonic() < end:
            time.sleep(0.002)
        struck = any(relay.is_cut() for relay in relays)
        if struck:
            time.sleep(seconds)
        for relay in relays:
            relay.heal()
        return struck

    def measure(self, operation, command):
        """Once, undisturbed."""
        relays, began, before = self.site.relays(), time.monotonic(), self.site.told("equal")
        passed = [relay.passed for relay in relays]
        self.site.must(command)
        self.seconds[operation] = time.monotonic() - began
        if operation == "resume":
            self.at = self.target
            self.all_here(before)
        now = [relay.passed - was for relay, was in zip(relays, passed)]
        self.bytes[operation] = {"peers": max(now[:2]), "network": sum(now[2:])}

    # ---- a round ----

    def prepare(self, operation, number):
        if operation == "prune":
            self.site.must(self.site.repo_command(self.site.repo, "rm", VM, "--keep-last", "1"))
        elif operation == "copy" and operation in self.seconds and number % 3 == 0:
            self.site.must(self.site.repo_command(self.site.copy, "rm", VM, "--all"))

    def trial(self, operation, number):
        """One of them, struck; returns (victim, outcome)."""
        random_ = random.Random(f"{self.seed} {operation} {number}")
        self.target = self.at
        self.prepare(operation, number)
        command, before, ran = getattr(self, operation)(random_), self.site.told("equal"), self.site.told("ran")
        if operation not in self.seconds:
            self.measure(operation, command)
            return None
        victim = random_.choice(self.victims(operation))
        self.what = f"{operation} {number} (victim: {victim})"
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            struck = self.strike(victim, operation, process, random_)
            status = process.wait(timeout=PATIENCE)
        finally:
            process.kill()
            process.wait()
        if operation in ("prune", "copy"):
            self.check(self.site.copy if operation == "copy" else self.site.repo)
            self.site.must(command)  # what that leaves is checked by the next trial
            outcome = "done" if status == 0 else "broken off"
        else:
            outcome = self.follow(operation, victim, status, before, ran, random_)
        return victim, outcome if struck else f"{outcome}, struck too late"

    def follow(self, operation, victim, status, before, ran, random_):
        state, self.at = wait_for(self.settled, "nothing is under way")
        if state not in ("running", "suspended", "claimed", "crashed") or (state == "crashed" and victim != "vmm"):
            raise Failed(f"the VM is {state}")
        if victim == "vmm" and operation == "resume" and state == "suspended" and self.site.told("ran") > ran:
            raise Failed("it has run, and is still suspended in the old snapshot")
        if status == 0 and victim != "vmm" and state != {"suspend": "suspended", "resume": "running"}[operation]:
            raise Failed(f"{operation} succeeded, and the VM is {state}")
        self.check(self.site.repo)
        if state == "running" and operation == "resume":
            self.all_here(before)
        self.recover(state, before, operation == "resume", random_)
        if operation == "suspend":
            self.site.must(self.suspend(random_))
        return state

    def round(self, number):
        """Yields each trial's (operation, victim, outcome); the first round is undisturbed."""
        for operation in OPERATIONS:
            result = self.trial(operation, number)
            if result:
                yield (operation, *result)


def tell(where, counts):
    for operation in OPERATIONS:
        by_victim = collections.defaultdict(list)
        for (what, victim, outcome), count in sorted(counts.items()):
            if what == operation:
                by_victim[victim].append(f"{count} {outcome}")
        total = sum(count for (what, _, _), count in counts.items() if what == operation)
        print(f"     {operation}, {where}: {total} trials; " + "; ".join(f"{v}: {', '.join(o)}" for v, o in by_victim.items()), flush=True)


def run(where, server, trials, seed):
    """Returns how many trials failed."""
    failed, number, counts = 0, 0, collections.Counter()
    while number <= trials:
        with Site(server) as site:
            all_, number = Trials(site, f"{seed} {where}"), number - (number > 0)  # anew, it measures first
            try:
                while number <= trials:
                    for result in all_.round(number):
                        counts[result] += 1
                    if number and number % 10 == 0:
                        print(f"     {where}: {number} of {trials} rounds, {sum(counts.values())} trials", flush=True)
                    number += 1
            except (Failed, subprocess.TimeoutExpired) as e:
                failed += 1
                print(f"FAIL {where}: {getattr(all_, 'what', 'measuring')}: {e}\n{site.logs()}", flush=True)
                if not all_.seconds:
                    break
                number += 2
    tell(where, counts)
    return failed, sum(counts.values())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    parser.add_argument("--only", choices=("directory", "bucket"))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    subprocess.run(["make", "-s", "build/tests/kill-vmm"], cwd=rgw.TOP, check=True)
    print(f"     --seed {options.seed}", flush=True)
    failed = passed = 0
    for where in [options.only] if options.only else ["directory", "bucket"]:
        if where == "directory":
            lost, good = run(where, None, options.trials, options.seed)
        else:
            with rgw.Server() as server:
                os.environ.update(server.environment)
                lost, good = run(where, server, options.trials, options.seed)
        failed, passed = failed + lost, passed + good
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
