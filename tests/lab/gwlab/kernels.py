# SPDX-License-Identifier: Apache-2.0
"""Debian's kernels: the vmlinuz as shipped, the ELF inside it, and its modules in loading order."""

import lzma
import os
import struct
import subprocess
import zlib
from pathlib import Path
from . import debian
from .errors import LabError
from .paths import cache_dir

KINDS = {
    "6.1-cloud": r"linux-image-6\.1\.0-[0-9]+-cloud-amd64",
    "6.1-generic": r"linux-image-6\.1\.0-[0-9]+-amd64",
    "6.12-cloud": r"linux-image-6\.12\.[0-9]+(\+deb[0-9]+)?-cloud-amd64",
    "6.12-generic": r"linux-image-6\.12\.[0-9]+(\+deb[0-9]+)?-amd64",
}


class Kernel:
    def __init__(self, kind):
        if kind not in KINDS:
            raise LabError(f"no such kernel: {kind} (there are {', '.join(KINDS)})")
        self.kind = kind
        self.root = debian.unpacked(f"kernel-{kind}", KINDS[kind])
        self.vmlinuz = next((self.root / "boot").glob("vmlinuz-*"))
        self.release = self.vmlinuz.name[len("vmlinuz-"):]
        self.modules_dir = next(p for p in (self.root / "lib/modules", self.root / "usr/lib/modules") if p.is_dir()) / self.release

    def vmlinux(self):
        """The ELF kernel inside the bzImage, for PVH boot; cached beside it."""
        path = cache_dir() / f"vmlinux-{self.release}"
        with debian.cache_lock(path.name):
            if not path.exists():
                new = path.with_suffix(".new")
                new.write_bytes(extract_vmlinux(self.vmlinuz.read_bytes()))
                os.rename(new, path)
        return path

    def builtin(self):
        return {_plain(line) for line in (self.modules_dir / "modules.builtin").read_text().split()}

    def _dependencies(self):
        """Plain module name -> (path, paths it needs), from modules.dep, which depmod makes from the modules alone."""
        path = self.modules_dir / "modules.dep"
        with debian.cache_lock(f"depmod-{self.release}"):
            if not path.exists():
                # depmod wants .../lib/modules/RELEASE below its base directory, which is where they are.
                debian.run(["depmod", "-b", self.modules_dir.parents[2], self.release])
        table = {}
        for line in path.read_text().splitlines():
            module, needs = line.split(":", 1)
            table[_plain(module)] = (module, needs.split())
        return table

    def modules(self, names, optional=()):
        """The files of the modules and of all they depend on, in loading order; what is built in is left out."""
        table, builtin, order = self._dependencies(), self.builtin(), []

        def add(path):
            _, needs = table[_plain(path)]
            # modules.dep lists the nearest dependency first.
            for need in reversed(needs):
                if need not in order:
                    order.append(need)
            if path not in order:
                order.append(path)

        for name in list(names) + list(optional):
            if _plain(name) in table:
                add(table[_plain(name)][0])
            elif _plain(name) not in builtin and name not in optional:
                raise LabError(f"kernel {self.release} has no module {name}")
        return [self.modules_dir / path for path in order]


def _plain(path):
    """kernel/net/tls/tls.ko.xz -> tls; the kernel takes - and _ for the same."""
    return Path(path).name.split(".")[0].replace("-", "_")


def module_bytes(path):
    """A module as the kernel loads it: Debian 6.12 compresses them, and busybox cannot undo that."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def _decompress_by_tool(tool, payload):
    # Trailing bytes behind the stream are expected (the kernel appends the size), so that only the output counts.
    done = subprocess.run([tool, "-dc"], input=payload, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return done.stdout


def decompress(payload):
    if payload[:2] == b"\x1f\x8b":
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(payload)
    if payload[:6] == b"\xfd7zXZ\0":
        return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)
    if payload[:3] == b"\x5d\0\0":
        return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(payload)
    if payload[:4] == b"\x28\xb5\x2f\xfd":
        return _decompress_by_tool("zstd", payload)
    if payload[:4] == b"\x02\x21\x4c\x18":
        return _decompress_by_tool("lz4", payload)
    raise LabError("the kernel's payload has an unknown compression")


def extract_vmlinux(image):
    """The payload of a bzImage. Linux x86 boot protocol: setup_sects at 0x1f1, "HdrS" at 0x202, payload_offset at 0x248
    (relative to the protected-mode code) and payload_length at 0x24c, both since protocol 2.08."""
    if image[0x202:0x206] != b"HdrS" or struct.unpack_from("<H", image, 0x206)[0] < 0x208:
        raise LabError("not a bzImage of boot protocol 2.08 or later")
    start = ((image[0x1f1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    elf = decompress(image[start + offset:start + offset + length])
    if elf[:4] != b"\x7fELF":
        raise LabError("the kernel's payload is not an ELF file")
    return elf
