# SPDX-License-Identifier: Apache-2.0
"""A guest's disk image from Debian packages: redis-server, nginx and a small init of our own, as one ext4 file system.

The packages are chosen by apt's own solver against an empty system and only unpacked: no maintainer script runs, no loop device
is mounted (mke2fs -d fills the image).
"""

import hashlib
import os
import shutil
from pathlib import Path
from . import debian, guestinitrd
from .hostimage import BUSYBOX
from .paths import cache_dir
from .programs import program

# libc-bin for ldconfig: the loader needs its cache to find libraries below /lib/x86_64-linux-gnu quickly.
PACKAGES = ["redis-server", "nginx-light", "libc-bin"]
EXCLUDED = ["./usr/share/doc/*", "./usr/share/man/*", "./usr/share/locale/*", "./usr/share/info/*", "./usr/share/perl*/*"]
USERS = {"www-data": 33, "redis": 100, "nobody": 65534}

INIT = r"""#!/usr/bin/busybox sh
export PATH=/usr/local/bin:/usr/bin:/usr/sbin HOME=/root TERM=linux
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts 2>/dev/null
mount -o remount,rw /
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mkdir -p /run/redis /var/lib/redis /var/log/nginx /var/lib/nginx
. /etc/functions
start_redis() {
	redis-server --port 6379 --bind 0.0.0.0 --protected-mode no --save '' --dir /tmp --daemonize yes > /dev/null
	nginx
}
hostname guest
network
acpid 2>/dev/null
start_jobs "$(gw gw.run)"
echo "ttyS0::respawn:-/usr/bin/busybox sh" > /run/inittab
[ -c /dev/hvc0 ] && echo "hvc0::respawn:-/usr/bin/busybox sh" >> /run/inittab
echo "::ctrlaltdel:/usr/bin/busybox reboot" >> /run/inittab
echo "::shutdown:/usr/bin/busybox sync" >> /run/inittab
if (echo "$(gw gw.run)" | grep -q redis); then
	n=0
	until redis-cli ping 2>/dev/null | grep -q PONG || [ $n -ge 200 ]; do usleep 100000; n=$((n+1)); done
fi
echo "GUEST-READY $(uname -r) cpus=$(grep -c ^processor /proc/cpuinfo) uptime=$(cut -d' ' -f1 /proc/uptime)"
exec busybox init
"""


def _download(work):
    debs = work / "debs"
    (debs / "partial").mkdir(parents=True)
    (work / "status").write_text("")
    debian.say(f"guest: downloading {' '.join(PACKAGES)} and what they need")
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "--download-only", "-o", f"Dir::State::status={work}/status",
               "-o", f"Dir::Cache::archives={debs}", "-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1", *PACKAGES]
    debian.with_fresh_lists(lambda: debian.run(command))
    return sorted(debs.glob("*.deb"))


def _unpack(debs, root):
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    exclude = " ".join(f"--exclude='{pattern}'" for pattern in EXCLUDED)
    for deb in debs:
        debian.run(["sh", "-c", f"dpkg-deb --fsys-tarfile '{deb}' | tar -C '{root}' -x --keep-directory-symlink {exclude}"])


def _configure(root):
    for name in ("proc", "sys", "dev", "run", "tmp", "root", "mnt", "usr/local/bin", "etc/acpi/PWRF", "var/log"):
        (root / name).mkdir(parents=True, exist_ok=True)
    users = {"root": 0, **USERS}
    (root / "etc/passwd").write_text("".join(f"{u}:x:{i}:{i}::{'/root' if u == 'root' else '/var'}:/bin/sh\n" for u, i in users.items()))
    (root / "etc/group").write_text("".join(f"{u}:x:{i}:\n" for u, i in users.items()) + "adm:x:4:\n")
    (root / "etc/functions").write_text(guestinitrd.FUNCTIONS)
    (root / "etc/acpi/PWRF/00000080").write_text("#!/bin/sh\npoweroff\n")
    (root / "etc/acpi/PWRF/00000080").chmod(0o755)
    shutil.copy(BUSYBOX, root / "usr/bin/busybox")
    for applet in debian.run([str(BUSYBOX), "--list"]).split():
        path = root / "usr/bin" / applet
        if not path.exists() and not path.is_symlink() and not (root / "usr/sbin" / applet).exists():
            path.symlink_to("busybox")
    init = root / "usr/sbin/init"
    init.unlink(missing_ok=True)
    init.write_text(INIT)
    init.chmod(0o755)
    (root / "etc/inittab").unlink(missing_ok=True)
    (root / "etc/inittab").symlink_to("/run/inittab")
    shutil.copy(program("workload"), root / "usr/local/bin/workload")
    # nginx serves Debian's default site on port 80; the unpacked package lacks the link that its script would make.
    enabled = root / "etc/nginx/sites-enabled"
    if enabled.is_dir() and not (enabled / "default").is_symlink():
        (enabled / "default").symlink_to("/etc/nginx/sites-available/default")
    (root / "var/www/html").mkdir(parents=True, exist_ok=True)
    (root / "var/www/html/index.html").write_text("<!doctype html><title>guest</title><p>A Godwit guest.</p>\n")
    debian.run(["chroot", root, "/sbin/ldconfig"])


def _used_mib(root):
    return sum(os.lstat(os.path.join(d, f)).st_size + 4096 for d, _, files in os.walk(root) for f in files) >> 20


def build():
    here = Path(__file__).parent
    inputs = [program("workload"), BUSYBOX, here / "rootfs.py", here / "guestinitrd.py"]
    key = hashlib.sha256("".join(f"{p} {os.stat(p).st_size} {os.stat(p).st_mtime_ns}\n" for p in inputs).encode()).hexdigest()[:12]
    directory = cache_dir() / "images"
    directory.mkdir(exist_ok=True)
    target = directory / f"rootfs-{key}.ext4"
    with debian.cache_lock("rootfs"):
        if not target.exists():
            work = directory / "rootfs.work"
            shutil.rmtree(work, ignore_errors=True)
            (work / "root").mkdir(parents=True)
            _unpack(_download(work), work / "root")
            _configure(work / "root")
            size = _used_mib(work / "root") * 13 // 10 + 64
            debian.run(["mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", work / "root", work / "image", f"{size}M"])
            for old in directory.glob("rootfs-*.ext4"):
                old.unlink()
            os.rename(work / "image", target)
            shutil.rmtree(work)
    return target
