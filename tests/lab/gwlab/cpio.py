# SPDX-License-Identifier: Apache-2.0
"""Writes initramfs archives (cpio "newc": Documentation/driver-api/early-userspace/buffer-format.rst of Linux)."""

import os
import stat


class Archive:
    """Collects an initramfs; parents of what is added are made on the way."""

    def __init__(self):
        self.entries = {}

    def _add(self, path, mode, data=b"", rdev=(0, 0)):
        path = path.strip("/")
        parent = os.path.dirname(path)
        if parent and parent not in self.entries:
            self.directory(parent)
        self.entries[path] = (mode, data, rdev)

    def directory(self, path, mode=0o755):
        self._add(path, stat.S_IFDIR | mode)

    def file(self, path, data, mode=0o644):
        self._add(path, stat.S_IFREG | mode, data.encode() if isinstance(data, str) else data)

    def copy(self, source, path, mode=None):
        with open(source, "rb") as f:
            self.file(path, f.read(), mode if mode is not None else stat.S_IMODE(os.stat(source).st_mode))

    def symlink(self, path, target):
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path, major, minor, mode=0o600):
        self._add(path, stat.S_IFCHR | mode, rdev=(major, minor))

    def write(self, target):
        with open(target, "wb") as out:
            for number, (path, (mode, data, rdev)) in enumerate(self.entries.items(), 1):
                _write_entry(out, number, path, mode, data, rdev)
            _write_entry(out, 0, "TRAILER!!!", 0, b"", (0, 0))


def _pad(out, length):
    out.write(b"\0" * (-length % 4))


def _write_entry(out, inode, path, mode, data, rdev):
    name = path.encode() + b"\0"
    fields = (inode, mode, 0, 0, 2 if stat.S_ISDIR(mode) else 1, 0, len(data), 0, 0, rdev[0], rdev[1], len(name), 0)
    out.write(b"070701" + b"".join(b"%08X" % f for f in fields) + name)
    _pad(out, 110 + len(name))
    out.write(data)
    _pad(out, len(data))
