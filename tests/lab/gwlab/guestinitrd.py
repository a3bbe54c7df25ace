# SPDX-License-Identifier: Apache-2.0
"""Initramfs images for guests: busybox, a kernel's virtio modules and the workload program.

The kernel command line steers /init:
    gw.ip=10.77.0.100/24      eth0's address (lo is always up)
    gw.root=/dev/vda          mount this and run its /sbin/init instead of staying in the initramfs
    gw.run=JOB[,JOB...]       what to start: heartbeat[:PORT]  tick:MS (to UDP port 7010 of all hosts)  dirty:MB_PER_S:SIZE_MB[:asked]  disk:DEVICE[:SIZE_MB]  redis (in the rootfs)
It prints GUEST-READY on the console when all that is done, and keeps a login shell on ttyS0 (and hvc0 if there is one).
"""

import hashlib
import os
from pathlib import Path
from . import debian
from .cpio import Archive
from .errors import LabError
from .hostimage import BUSYBOX
from .kernels import Kernel, module_bytes
from .paths import cache_dir
from .programs import program

MODULES = ["virtio", "virtio_ring", "virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "ext4"]
# Built in, or not there, in some of the kernels.
OPTIONAL_MODULES = ["vmgenid", "virtio_balloon", "vmw_vsock_virtio_transport", "crc32c_generic", "crc32c-intel", "button", "evdev",
                    "rtc-cmos", "virtio_mmio"]

# The jobs that run when the command line names none.
PROFILES = {"idle": "", "heartbeat": "heartbeat", "dirty20": "heartbeat,dirty:20:64"}

# Shared by the initramfs and the root file system (rootfs.py): reads gw.* and starts the jobs.
FUNCTIONS = r"""
gw() { sed -n "s|^\(.* \)\?$1=\([^ ]*\).*|\2|p" /proc/cmdline; }
network() {
	ip link set lo up
	[ -n "$(gw gw.ip)" ] && [ -e /sys/class/net/eth0 ] || return 0
	ip address add "$(gw gw.ip)" dev eth0
	ip link set eth0 up
}
start_job() {
	kind=${1%%:*}; rest=${1#"$kind"}; rest=${rest#:}
	a=${rest%%:*}; b=${rest#"$a"}; b=${b#:}
	case $kind in
	heartbeat) workload heartbeat 0.0.0.0 "${a:-7000}" & ;;
	tick) workload tick "$(gw gw.ip | sed 's|[0-9]*/24$|255|')" 7010 "$a" & ;;
	dirty) workload dirty "$a" $(echo "$b" | tr : " ") & ;;
	disk) workload verify-disk "$a" ${b:+"$b"} & ;;
	redis) start_redis ;;
	*) echo "gw.run: no such job: $1" ;;
	esac
}
start_jobs() { for job in $(echo "$1" | tr , ' '); do start_job "$job"; done; }
"""

INIT = r"""#!/bin/sh
export PATH=/bin HOME=/root TERM=linux
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
. /etc/functions
while read -r module; do insmod "/lib/modules/$module.ko" 2>/dev/null; done < /etc/modules
root=$(gw gw.root)
if [ -n "$root" ]; then
	n=0
	while [ ! -b "$root" ] && [ $n -lt 100 ]; do usleep 50000; n=$((n+1)); done
	if mount "$root" /newroot; then
		mount --move /dev /newroot/dev
		umount /tmp /run /proc /sys 2>/dev/null
		exec switch_root /newroot /sbin/init
	fi
	echo "GUEST-FAILED cannot mount $root"
fi
hostname guest
network
acpid 2>/dev/null
jobs=$(gw gw.run)
start_jobs "${jobs:-@DEFAULT_JOBS@}"
echo "ttyS0::respawn:-/bin/sh" > /etc/inittab
[ -c /dev/hvc0 ] && echo "hvc0::respawn:-/bin/sh" >> /etc/inittab
echo "::ctrlaltdel:/bin/reboot" >> /etc/inittab
echo "::shutdown:/bin/sync" >> /etc/inittab
echo "GUEST-READY $(uname -r) cpus=$(grep -c ^processor /proc/cpuinfo) uptime=$(cut -d' ' -f1 /proc/uptime)"
exec init
"""


def _fill(archive, kernel, profile):
    for directory in ("proc", "sys", "dev", "tmp", "run", "root", "newroot", "mnt", "var/log"):
        archive.directory(directory)
    archive.device("dev/console", 5, 1)
    archive.copy(BUSYBOX, "bin/busybox", 0o755)
    for applet in debian.run([str(BUSYBOX), "--list"]).split():
        if applet != "busybox":
            archive.symlink(f"bin/{applet}", "busybox")
    archive.symlink("sbin", "bin")
    archive.copy(program("workload"), "bin/workload", 0o755)
    names = []
    for path in kernel.modules(MODULES, OPTIONAL_MODULES):
        name = path.name.split(".")[0]
        archive.file(f"lib/modules/{name}.ko", module_bytes(path))
        names.append(name)
    archive.file("etc/modules", "".join(f"{n}\n" for n in names))
    archive.file("etc/functions", FUNCTIONS)
    archive.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
    archive.file("etc/group", "root:x:0:\n")
    # What the power button does, for busybox's acpid.
    archive.file("etc/acpi/PWRF/00000080", "#!/bin/sh\npoweroff\n", 0o755)
    archive.file("init", INIT.replace("@DEFAULT_JOBS@", PROFILES[profile]), 0o755)


def build(kind, profile="idle"):
    """The path of the initrd for one kernel kind and profile."""
    if profile not in PROFILES:
        raise LabError(f"no such profile: {profile} (there are {', '.join(PROFILES)})")
    kernel = Kernel(kind)
    here = Path(__file__).parent
    inputs = [program("workload"), BUSYBOX, kernel.vmlinuz, here / "guestinitrd.py", here / "cpio.py", here / "kernels.py"]
    key = hashlib.sha256("".join(f"{p} {os.stat(p).st_size} {os.stat(p).st_mtime_ns}\n" for p in inputs).encode()).hexdigest()[:12]
    directory = cache_dir() / "images"
    directory.mkdir(exist_ok=True)
    target = directory / f"initrd-{kind}-{profile}-{key}.cpio"
    with debian.cache_lock(f"initrd-{kind}"):
        if not target.exists():
            for old in directory.glob(f"initrd-{kind}-{profile}-*"):
                old.unlink()
            archive = Archive()
            _fill(archive, kernel, profile)
            archive.write(target.with_suffix(".new"))
            os.rename(target.with_suffix(".new"), target)
    return target
