# SPDX-License-Identifier: Apache-2.0
"""A lab's state directory, whether the lab is alive, and taking back what a dead one left.

The supervisor and its guardian hold one flock on DIR/lock for as long as they live: who can take that lock knows that both
are gone, whatever ended them, and may reclaim.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import time
from . import hugepages
from .errors import LabError
from .paths import run_dir
from .system import processes_in_network


def lab_name():
    name = os.environ.get("LAB") or "default"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,40}", name):
        raise LabError(f"LAB={name} is not a lab's name (letters, digits, _ . -)")
    return name


class State:
    def __init__(self, name=None):
        self.name = name or lab_name()
        self.directory = run_dir() / self.name
        self.control = self.directory / "control"

    def lock(self):
        """Takes the lab's lock: the open file to keep, or None when the lab lives."""
        path = self.directory / "lock"
        while True:
            self.directory.mkdir(parents=True, exist_ok=True)
            try:
                file = open(path, "w")
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Another may have reclaimed, and removed, the directory between the two lines above.
                if os.fstat(file.fileno()).st_ino == os.stat(path).st_ino:
                    return file
                file.close()
            except BlockingIOError:
                file.close()
                return None
            except FileNotFoundError:
                pass

    def save(self, facts):
        new = self.directory / "lab.json.new"
        new.write_text(json.dumps(facts, indent=1))
        os.rename(new, self.directory / "lab.json")

    def load(self):
        try:
            return json.loads((self.directory / "lab.json").read_text())
        except (OSError, ValueError):
            return None

    def require(self):
        """The facts of a living lab."""
        facts = self.load() if self.control.exists() else None
        if not facts:
            raise LabError(f"lab {self.name} is not up (start it: lab up)")
        return facts


def _end_processes(inode, spare):
    """Ends what still runs in the lab's network: emulators, and what `lab exec` started there."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        left = [pid for pid in processes_in_network(inode) if pid != spare]
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.02)


def reclaim(state, spare=None):
    """Takes back all that a lab without a supervisor may have left. The caller holds the lab's lock."""
    facts = state.load()
    if facts:
        _end_processes(facts["netns"], spare)
        if facts["hugepages"]:
            hugepages.give_back(facts["hugepages"])
    shutil.rmtree(state.directory, ignore_errors=True)


def reclaim_dead():
    """Reclaims every lab whose supervisor and guardian both died; any lab command may find one."""
    if not run_dir().is_dir():
        return
    for directory in run_dir().iterdir():
        if directory.is_dir():
            state = State(directory.name)
            lock = state.lock()
            if lock:
                with lock:
                    reclaim(state)
