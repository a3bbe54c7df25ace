# SPDX-License-Identifier: Apache-2.0
"""System calls that Python 3.11 has no names for: namespaces, parent-death signal, process name."""

import ctypes
import os
import signal
from .errors import LabError

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result, what):
    if result < 0:
        error = ctypes.get_errno()
        raise LabError(f"{what}: {os.strerror(error)}")


def unshare_network():
    _check(_libc.unshare(CLONE_NEWNET), "private network namespace (the lab needs root)")


def enter_network(pid):
    try:
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    except OSError as e:
        raise LabError(f"the lab's network: {e.strerror} (the lab needs root)") from e
    _check(_libc.setns(fd, CLONE_NEWNET), "entering the lab's network (needs root)")
    os.close(fd)


def die_with_parent():
    """For a child, before exec: the kernel kills it when its parent dies, however that dies."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def set_process_name(name):
    _libc.prctl(PR_SET_NAME, name.encode()[:15])


def network_inode(pid="self"):
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def processes_in_network(inode):
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if network_inode(entry) == inode:
                    found.append(int(entry))
            except OSError:
                pass
    return found
