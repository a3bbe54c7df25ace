#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Unmodified distribution kernels boot in godwit-vmm, with several vCPUs and sizes of memory, by both boot protocols, with disk and
network, give memory back by their balloon, and end when the guest powers off or reboots."""

import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from cluster import Cluster, Guest  # noqa: E402
from labtest import Lab, Tests, guest, wait_for  # noqa: E402

tests = Tests()
KINDS = ("6.1-cloud", "6.12-cloud", "6.1-generic", "6.12-generic")
CONSOLE = "/tmp/console"


class Vm:
    """godwit-vmm by hand in a host; its serial console goes to a file and is fed by a FIFO."""

    def __init__(self, lab, *options, kind="6.12-cloud", kernel=None, cmdline="", host="h1"):
        self.lab, self.host = lab, host
        files = [kernel or guest("kernel", kind), guest("initrd", kind)]
        lab.put(host, *files, "/srv")
        command = ["godwit-vmm", "--kernel", f"/srv/{files[0].name}", "--initrd", f"/srv/{files[1].name}",
                   "--cmdline", f"console=ttyS0 quiet {cmdline}", *options]
        quoted = " ".join(f"'{word}'" for word in command)
        lab.sh(host, f"rm -f /tmp/in {CONSOLE} /tmp/code; mkfifo /tmp/in; ( {{ {quoted} < /tmp/in > {CONSOLE} 2>&1; echo $? > /tmp/code; }} & "
                     f"sleep 1000 > /tmp/in & echo $! > /tmp/feeder )")

    def console(self):
        return self.lab.sh(self.host, f"cat {CONSOLE}").stdout

    def wait_console(self, text, count=1):
        def seen():
            if self.code() is not None and self.console().count(text) < count:
                raise AssertionError(f"the VM ended before '{text}': {self.console()[-2000:]}")
            return self.console().count(text) >= count
        try:
            wait_for(seen, text, poll=0.2)
        except TimeoutError as e:
            raise AssertionError(f"{e}: {self.console()[-3000:]}") from e

    def type(self, line):
        self.lab.sh(self.host, f"echo '{line}' > /tmp/in")

    def ask(self, line, answer):
        """Types a shell line and waits for what it prints."""
        self.type(line)
        self.wait_console(answer)

    def code(self):
        text = self.lab.sh(self.host, "cat /tmp/code", check=False).stdout.strip()
        return int(text) if text else None

    def wait_end(self):
        return wait_for(lambda: {"code": self.code()} if self.code() is not None else None, "godwit-vmm ends")["code"]

    def end(self):
        self.lab.sh(self.host, "kill $(cat /tmp/feeder); killall -9 godwit-vmm; while pidof godwit-vmm; do usleep 20000; done", check=False)


def boot(lab, *options, expect, **kwargs):
    vm = Vm(lab, *options, **kwargs)
    try:
        vm.wait_console("GUEST-READY")
        vm.wait_console(expect)
        vm.type("poweroff -f")
        code = vm.wait_end()
        assert code == 0, f"exit code {code}: {vm.console()[-500:]}"
    finally:
        vm.end()


def _add_boot_tests():
    def make(name, *options, **kwargs):
        def test(lab):
            boot(lab, *options, **kwargs)
        test.__name__ = name
        tests.test(test)

    for kind in KINDS:
        make(f"boots_{kind}_2_cpus", "--memory", "256M", "--cpus", "2", kind=kind, expect="cpus=2")
    make("boots_1_cpu_128M", "--memory", "128M", "--cpus", "1", expect="cpus=1")
    make("boots_8_cpus_512M", "--memory", "512M", "--cpus", "8", expect="cpus=8")


_add_boot_tests()


@tests.test
def boots_across_the_hole(lab):
    vm = Vm(lab, "--memory", "3584M", "--cpus", "2", "--overcommit")
    try:
        vm.wait_console("GUEST-READY")
        vm.ask("set -- $(grep MemTotal /proc/meminfo); echo total-$(($2/1048576))", "total-3")
        vm.type("poweroff -f")
        assert vm.wait_end() == 0
    finally:
        vm.end()


@tests.test
def boots_elf_by_pvh(lab):
    for kind in ("6.1-cloud", "6.12-cloud"):
        boot(lab, "--memory", "256M", "--cpus", "2", kind=kind, kernel=guest("vmlinux", kind), expect="cpus=2")


@tests.test
def guest_reboot_restarts_and_poweroff_ends(lab):
    vm = Vm(lab, "--memory", "256M", "--cpus", "2")
    try:
        vm.wait_console("GUEST-READY")
        vm.type("reboot -f")
        vm.wait_console("GUEST-READY", count=2)
        vm.type("poweroff -f")
        assert vm.wait_end() == 0
    finally:
        vm.end()


@tests.test
def root_on_a_disk_with_shell_and_redis(lab):
    lab.put("h1", guest("rootfs"), "/srv")
    disk = f"/srv/{guest('rootfs').name}"
    lab.sh("h1", "ip tuntap add tap0 mode tap && ip link set tap0 master br0 && ip link set tap0 up")
    vm = Vm(lab, "--memory", "384M", "--cpus", "2", "--disk", f"path={disk}", "--net", "tap=tap0",
            cmdline="gw.root=/dev/vda gw.ip=10.77.0.100/24 gw.run=redis,heartbeat")
    try:
        vm.wait_console("GUEST-READY")
        done = lab.exec("bash", "-c", "exec 3<>/dev/tcp/10.77.0.100/6379; printf 'PING\\r\\n' >&3; read -t 60 x <&3; echo $x")
        assert "PONG" in done.stdout, done
        vm.ask("dd if=/dev/urandom of=/big bs=1M count=8 2>/dev/null; sync; md5sum < /big > /sum; echo 3 > /proc/sys/vm/drop_caches; "
               "md5sum < /big | cmp - /sum && echo disk-$((40+2))", "disk-42")
        vm.type("sync; poweroff -f")
        assert vm.wait_end() == 0
    finally:
        vm.end()
        lab.sh("h1", "ip tuntap del tap0 mode tap; rm -f /srv/*.ext4", check=False)


@tests.test
def the_balloon_gives_memory_back(lab):
    """Linux reports free pages by itself, follows a target down and up, and tells how it uses its memory."""
    mib = 1 << 20
    cluster = Cluster(lab, hosts=("h1",))
    cluster.create("h1", Guest(lab, hosts=("h1",), name="vm", memory_mib=256).vm_file())
    cluster.godwit("h1", "start", "vm")
    lab.sh("h1", "rm -f /tmp/in; mkfifo /tmp/in; sleep 1000 > /tmp/in & echo $! > /tmp/feeder")
    console = lab.background("h1", f"godwit console vm < /tmp/in > {CONSOLE}")

    def said(text):
        return lambda: text in lab.sh("h1", f"cat {CONSOLE}", check=False).stdout

    def balloon(*options):
        return json.loads(cluster.godwit("h1", "balloon", "vm", "--json", *options).stdout)

    def next_figures():
        """Figures that come after this call began; a guest gives some when it is asked, once a second at most."""
        began = time.monotonic()

        def figures():
            asked = time.monotonic()
            memory = balloon()["memory"]
            return memory if memory and asked - memory["age_ms"] / 1000 > began else None
        return wait_for(figures, "the guest tells of its memory", poll=0.2)

    def free_now():
        next_figures()  # these may have been on their way already
        return next_figures()["free"]

    def resident():
        return int(lab.sh("h1", "grep ^Rss: /proc/$(pidof godwit-vmm)/smaps_rollup").stdout.split()[1]) * 1024

    def at_target(target):
        def reached():
            status = balloon()
            return status if status["actual"] == status["target"] == target else None
        return reached

    try:
        wait_for(said("GUEST-READY"), "the guest is ready", poll=0.2)
        wait_for(lambda: balloon()["driver"], "the guest drives its balloon")
        lab.sh("h1", "echo 'dd if=/dev/zero of=/tmp/fill bs=1M count=64 2> /dev/null; echo filled-$((40+2))' > /tmp/in")
        wait_for(said("filled-42"), "64 MiB are filled", poll=0.2)
        full, reported = resident(), balloon()["reported"]
        lab.sh("h1", "echo 'rm /tmp/fill' > /tmp/in")
        wait_for(lambda: resident() <= full - 40 * mib, "free memory goes back", poll=0.5)
        assert balloon()["reported"] >= reported + 40 * mib

        roomy = free_now()
        status = balloon("--target", "160M")
        assert status["target"] == 160 * mib, status
        status = wait_for(at_target(160 * mib), "the balloon is filled", poll=0.5)
        assert cluster.show("h1", "vm")["balloon"] == 96 * mib
        memory = status["memory"]
        assert 0 < memory["free"] < memory["total"] <= 256 * mib and memory["minor_faults"] > 0 and memory["age_ms"] < 60000, memory
        taken = free_now()
        assert taken < roomy - 64 * mib, (taken, roomy)
        assert resident() <= 160 * mib + 32 * mib, "the host still has what the guest gave away"
        balloon("--target", "256M")
        wait_for(at_target(256 * mib), "the balloon is empty", poll=0.5)
        assert (free := free_now()) > taken + 64 * mib, (free, taken)
        refused = cluster.godwit("h1", "balloon", "vm", "--target", "32M", check=False)
        assert refused.returncode == 1 and "64" in refused.stderr, refused
    finally:
        console.kill()
        lab.sh("h1", "kill $(cat /tmp/feeder)", check=False)
        cluster.remove("vm")
        cluster.kill_agent("h1")


@tests.test
def bad_input_is_told_and_nothing_starts(lab):
    kernel = guest("kernel", "6.12-cloud")
    lab.put("h1", kernel, "/srv")
    k = f"/srv/{kernel.name}"
    lab.sh("h1", f"head -c 100000 {k} > /tmp/short; head -c 4096 /dev/urandom > /tmp/noise; : > /tmp/empty; gzip -c /tmp/noise > /tmp/noise.gz; "
                 "head -c 1000 /dev/zero > /tmp/odd; ip tuntap add tapx mode tap 2>/dev/null; true")
    cases = {
        "missing kernel": (["--kernel", "/nowhere"], "/nowhere"),
        "truncated kernel": (["--kernel", "/tmp/short"], "truncated"),
        "noise as kernel": (["--kernel", "/tmp/noise"], "/tmp/noise"),
        "empty kernel": (["--kernel", "/tmp/empty"], "/tmp/empty"),
        "gzip as kernel": (["--kernel", "/tmp/noise.gz"], "gzip"),
        "missing initrd": (["--kernel", k, "--initrd", "/nowhere"], "/nowhere"),
        "memory beyond the host": (["--kernel", k, "--memory", "512G"], "memory"),
        "no memory": (["--kernel", k, "--memory", "0"], "memory"),
        "too many cpus": (["--kernel", k, "--cpus", "33"], "32"),
        "odd disk": (["--kernel", k, "--disk", "path=/tmp/odd"], "/tmp/odd"),
        "missing disk": (["--kernel", k, "--disk", "path=/nowhere"], "/nowhere"),
        "missing tap": (["--kernel", k, "--net", "tap=nosuchtap"], "nosuchtap"),
        "unreachable nbd": (["--kernel", k, "--disk", "path=nbd://10.77.0.254:1"], "nbd"),
        "bad option": (["--kernel", k, "--disk", "nonsense=1"], "nonsense"),
    }
    for what, (options, word) in cases.items():
        done = lab.sh("h1", "timeout", "30", "godwit-vmm", *(["--memory", "128M"] if "--memory" not in options else []), *options, check=False)
        said = done.stdout + done.stderr
        assert done.returncode not in (0, 124, 134, 139), f"{what}: exit {done.returncode}: {said[-500:]}"
        assert word.lower() in said.lower(), f"{what}: '{word}' is not in: {said[-500:]}"


@tests.test
def a_taken_tap_is_told(lab):
    lab.sh("h1", "ip tuntap add tapt mode tap; ip link set tapt up")
    first = Vm(lab, "--memory", "128M", "--net", "tap=tapt")
    try:
        first.wait_console("GUEST-READY")
        done = lab.sh("h1", "timeout", "30", "godwit-vmm", "--kernel", f"/srv/{guest('kernel', '6.12-cloud').name}", "--memory", "128M",
                      "--net", "tap=tapt", check=False)
        assert done.returncode not in (0, 124) and "tapt" in done.stderr and "use" in done.stderr, done
    finally:
        first.end()
        lab.sh("h1", "ip tuntap del tapt mode tap", check=False)


@tests.test
def without_kvm_it_says_what_to_do(lab):
    lab.sh("h1", "mv /dev/kvm /dev/kvm.away")
    try:
        done = lab.sh("h1", "godwit-vmm", "--kernel", "/srv/x", "--memory", "128M", check=False)
        assert done.returncode != 0 and "/dev/kvm" in done.stderr and "modprobe" in done.stderr, done
    finally:
        lab.sh("h1", "mv /dev/kvm.away /dev/kvm")


if __name__ == "__main__":
    tests.main(hosts=1, memory="2G")
