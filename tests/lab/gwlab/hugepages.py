# SPDX-License-Identifier: Apache-2.0
"""Huge pages for the hosts' memory: raises vm.nr_hugepages by what a lab needs and lowers it by the same afterwards."""

import fcntl
from contextlib import contextmanager
from .paths import run_dir

SIZE = 2 * 1024 * 1024
_COUNT = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"


def _read():
    with open(_COUNT) as f:
        return int(f.read())


def _write(count):
    with open(_COUNT, "w") as f:
        f.write(str(count))


@contextmanager
def _locked():
    """Labs share the one counter of the machine."""
    run_dir().mkdir(parents=True, exist_ok=True)
    with open(run_dir() / ".hugepages", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def memory_available():
    with open("/proc/meminfo") as f:
        for line in f:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def reserve(count):
    """Adds that many pages to the pool. False, and nothing changed, when the machine does not have them."""
    try:
        with _locked():
            before = _read()
            _write(before + count)
            if _read() >= before + count:
                return True
            _write(before)
    except OSError:
        pass
    return False


def give_back(count):
    try:
        with _locked():
            _write(max(0, _read() - count))
    except OSError:
        pass
