# SPDX-License-Identifier: Apache-2.0
"""The image of an emulated host: Debian's kernel and an initramfs with busybox, tools, our binaries and labd.

Built again only when an input changed: the name of the cached file is a digest over all inputs.
"""

import hashlib
import os
from pathlib import Path
from . import debian, names
from .cpio import Archive
from .errors import LabError
from .kernels import Kernel, module_bytes
from .paths import bin_dir, cache_dir
from .programs import program, shared_libraries

KERNEL = os.environ.get("HOST_KERNEL") or "6.12-cloud"
BUSYBOX = Path("/usr/bin/busybox")
MODULES = ["virtio_pci", "irqbypass", "kvm", "kvm-amd", "kvm-intel", "failover", "net_failover", "virtio_net", "stp", "llc", "bridge", "tun",
           "vhost_net", "aesni-intel", "tls", "virtio_rng", "virtio_blk", "loop"]
# Absent in some kernels, or built in there.
OPTIONAL_MODULES = ["vhost_vsock", "sch_netem", "sch_tbf", "gcm", "ccm", "chacha20poly1305"]
# These are loaded only where the CPU has the flag.
NEEDS_FLAG = {"kvm-amd": "svm", "kvm-intel": "vmx"}
# Better than busybox's own. busybox's shell would prefer its applets to these, so that the shells come from the driver machine.
TOOLS = ["dash", "bash", "ip", "tc", "bridge", "ss", "tcpdump", "strace", "nsenter", "unshare", "taskset", "prlimit", "pgrep", "pkill"]
PROGRAMS = ["labd", "keyhold"]
QEMU_TOOLS = ["qemu-system-x86_64", "qemu-img"]
QEMU_DATA = ["/usr/share/qemu", "/usr/share/seabios"]
QEMU_DATA_NAMES = ["bios-256k.bin", "bios.bin", "bios-microvm.bin", "pvh.bin", "linuxboot.bin", "linuxboot_dma.bin", "multiboot.bin",
                   "multiboot_dma.bin", "kvmvapic.bin", "efi-virtio.rom", "qboot.rom"]

INIT = """#!/bin/busybox sh
# The initramfs root has no parent mount, which pivot_root demands; a bind mount of it has one, and costs no copy.
/bin/busybox mount --bind / /newroot
cd /newroot
/bin/busybox mount --move . /
exec /bin/busybox chroot . /bin/busybox init
"""

INITTAB = """::sysinit:/etc/rcS
::respawn:/etc/labd
ttyS0::respawn:-/usr/bin/bash
::ctrlaltdel:/sbin/reboot
"""

RC = """#!/bin/busybox sh
export PATH=/usr/bin:/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tracefs tracefs /sys/kernel/tracing
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
for d in /dev/shm /tmp /run /var; do mount -t tmpfs -o mode=1777,size=90% tmpfs $d; done
chmod 755 /run /var
mkdir -p /var/lib /var/log /var/run /var/tmp /run/lock
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# As on a host that systemd set up; and these too change static keys (keyhold.c) when they are first used.
for c in $(cat /sys/fs/cgroup/cgroup.controllers); do echo +$c > /sys/fs/cgroup/cgroup.subtree_control; done
mkdir /sys/fs/cgroup/system.slice
ln -sf /proc/self/fd /dev/fd
@INSMOD@
n=$(sed 's/.*lab.host=\\([0-9]*\\).*/\\1/' /proc/cmdline)
hostname h$n
ip link set lo up
# The bridge keeps its own address, whichever ports come and go; guests' taps join it beside eth0.
ip link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0
ip link set br0 address $(cat /sys/class/net/eth0/address)
ip link set eth0 master br0
ip link set eth0 up
ip link set br0 up
ip address add @PREFIX@$n/24 dev br0
chmod 666 /dev/kvm /dev/net/tun
keyhold
echo 1 > /proc/sys/kernel/panic_on_oops
"""

LABD = """#!/bin/busybox sh
n=$(sed 's/.*lab.host=\\([0-9]*\\).*/\\1/' /proc/cmdline)
export PATH=/usr/bin:/bin:/sbin:/usr/sbin HOME=/root TERM=linux
# OpenSSL chooses its code by what a processor has, not by how fast that is: emulated, SHA-256 with vectors takes four times as long as without.
# The emulator translates code for the address at which it lies: with random ones each program would be translated anew each time that it starts.
grep -q lab.emulated /proc/cmdline && export OPENSSL_ia32cap=~0x20000000000 && echo 0 > /proc/sys/kernel/randomize_va_space
exec /sbin/labd eth1 10.78.$n.1
"""


class Image:
    def __init__(self, kernel, initramfs):
        self.kernel = kernel
        self.initramfs = initramfs


def _godwit_binaries():
    directory = bin_dir()
    if "BIN" in os.environ and not directory.is_dir():
        raise LabError(f"BIN={directory} is not a directory")
    if not directory.is_dir():
        return []
    return sorted(p for p in directory.iterdir() if p.is_file() and os.access(p, os.X_OK))


def _tool(name):
    for directory in ("/usr/bin", "/usr/sbin", "/bin", "/sbin"):
        path = Path(directory) / name
        if path.exists():
            return path
    return None


def _executables(with_qemu):
    found = [t for t in map(_tool, TOOLS) if t]
    if with_qemu:
        for name in QEMU_TOOLS:
            path = _tool(name)
            if not path:
                raise LabError(f"{name} is not installed (tests/lab/deps installs what the lab needs)")
            found.append(path)
    return found + _godwit_binaries()


def _qemu_data():
    return [path for directory in QEMU_DATA for name in QEMU_DATA_NAMES if (path := Path(directory) / name).exists()]


def _digest(paths, *more):
    digest = hashlib.sha256()
    for path in [*paths, *Path(__file__).parent.glob("*.py")]:
        st = os.stat(path)
        digest.update(f"{path} {st.st_size} {st.st_mtime_ns}\n".encode())
    digest.update(repr(more).encode())
    return digest.hexdigest()[:16]


def _add_users(archive):
    archive.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
                               "godwit:x:990:990:godwit:/var/lib/godwit:/bin/false\n")
    archive.file("etc/group", "root:x:0:\nkvm:x:104:\nnogroup:x:65534:\ngodwit:x:990:\n")
    archive.file("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n")
    hosts = "".join(f"{names.ip(h)} {h}\n" for h in [f"h{n}" for n in range(1, names.MAX_HOSTS + 1)] + [names.DRIVER])
    archive.file("etc/hosts", "127.0.0.1 localhost\n" + hosts)


def _add_modules(archive, kernel):
    lines = []
    for path in kernel.modules(MODULES, OPTIONAL_MODULES):
        name = path.name.split(".")[0]
        archive.file(f"lib/modules/{name}.ko", module_bytes(path))
        condition = f"grep -qw {NEEDS_FLAG[name]} /proc/cpuinfo && " if name in NEEDS_FLAG else ""
        lines.append(f"{condition}insmod /lib/modules/{name}.ko")
    return "\n".join(lines)


def _add_busybox(archive):
    archive.copy(BUSYBOX, "bin/busybox", 0o755)
    for applet in debian.run([str(BUSYBOX), "--list"]).split():
        if applet != "busybox":
            archive.symlink(f"bin/{applet}", "busybox")
    archive.symlink("bin/sh", "/usr/bin/dash")
    archive.symlink("sbin", "bin")


def _add_executables(archive, executables):
    libraries = {}
    for path in executables:
        archive.copy(path, f"usr/bin/{path.name}", 0o755)
        for library in shared_libraries(path):
            libraries[str(library)] = library
    for name, library in libraries.items():
        # /lib64/ld-linux-x86-64.so.2 and friends keep the path by which they are looked up.
        archive.copy(library, name, 0o755)


def _fill(archive, kernel, executables, data):
    for directory in ("newroot", "proc", "sys", "dev", "run", "var", "root", "etc", "mnt", "usr/bin", "usr/sbin"):
        archive.directory(directory)
    archive.directory("tmp", 0o1777)
    archive.device("dev/console", 5, 1)
    archive.file("init", INIT, 0o755)
    _add_busybox(archive)
    archive.file("etc/inittab", INITTAB)
    insmod = _add_modules(archive, kernel)
    archive.file("etc/rcS", RC.replace("@INSMOD@", insmod).replace("@PREFIX@", names.PREFIX), 0o755)
    archive.file("etc/labd", LABD, 0o755)
    archive.file("etc/profile", "export PATH=/usr/bin:/bin:/sbin:/usr/sbin HOME=/root TERM=linux\ncd\n")
    _add_users(archive)
    if os.path.exists("/etc/ssl/openssl.cnf"):
        archive.copy("/etc/ssl/openssl.cnf", "etc/ssl/openssl.cnf", 0o644)
        archive.symlink("usr/lib/ssl", "/etc/ssl")
    for name in PROGRAMS:
        archive.copy(program(name), f"bin/{name}", 0o755)
    _add_executables(archive, executables)
    for path in data:
        archive.copy(path, str(path), 0o644)


def _prune(directory, keep):
    """Old images go; another lab that starts at the same moment uses one of the newest."""
    images = sorted(directory.glob("host-*.cpio"), key=lambda p: p.stat().st_mtime, reverse=True)
    for old in images[4:]:
        if old != keep:
            old.unlink(missing_ok=True)


def build(with_qemu=False):
    kernel = Kernel(KERNEL)
    if not BUSYBOX.exists():
        raise LabError("busybox-static is not installed (tests/lab/deps installs what the lab needs)")
    executables = _executables(with_qemu)
    data = _qemu_data() if with_qemu else []
    libraries = [library for path in executables for library in shared_libraries(path)]
    key = _digest([BUSYBOX, *map(program, PROGRAMS), kernel.vmlinuz, *executables, *libraries, *data], with_qemu)
    directory = cache_dir() / "images"
    directory.mkdir(exist_ok=True)
    target = directory / f"host-{key}.cpio"
    with debian.cache_lock("host-image"):
        if not target.exists():
            archive = Archive()
            _fill(archive, kernel, executables, data)
            archive.write(target.with_suffix(".new"))
            os.rename(target.with_suffix(".new"), target)
            _prune(directory, target)
        os.utime(target)
    return Image(kernel.vmlinux(), target)
