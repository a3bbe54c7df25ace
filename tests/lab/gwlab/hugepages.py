# SPDX-License-Identifier: Apache-2.0
"""Huge pages for the hosts' memory.

They are taken as surplus pages: a lab raises vm.nr_overcommit_hugepages, which is only a limit, and the kernel makes the pages
when an emulator maps its memory and frees them when it ends, however it ends. So even a lab whose every process was killed
holds no memory; only the limit stays raised until the next lab command lowers it.
"""

import fcntl
import mmap
import os
from contextlib import contextmanager
from .paths import run_dir

SIZE = 2 * 1024 * 1024
_LIMIT = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages"


def _change_limit(by):
    """Labs share the one limit of the machine."""
    run_dir().mkdir(parents=True, exist_ok=True)
    with open(run_dir() / ".hugepages", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with open(_LIMIT) as f:
            limit = int(f.read())
        with open(_LIMIT, "w") as f:
            f.write(str(max(0, limit + by)))


def memory_available():
    with open("/proc/meminfo") as f:
        for line in f:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


@contextmanager
def _mapped(size):
    """Mapping a shared huge-page memfd makes the kernel find all its pages at once, without filling them."""
    fd = os.memfd_create("lab-trial", os.MFD_HUGETLB | os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        with mmap.mmap(fd, size):
            yield
    finally:
        os.close(fd)


def reserve(count):
    """Lets emulators take that many huge pages. False, and nothing changed, when the machine does not have them."""
    try:
        _change_limit(count)
    except (OSError, ValueError):
        return False
    try:
        with _mapped(count * SIZE):
            return True
    except OSError:
        give_back(count)
        return False


def give_back(count):
    try:
        _change_limit(-count)
    except (OSError, ValueError):
        pass
