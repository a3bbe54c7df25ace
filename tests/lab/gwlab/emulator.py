# SPDX-License-Identifier: Apache-2.0
"""One emulated host: the emulator's command line and its life."""

import os
import subprocess
from . import names
from .errors import LabError
from .system import die_with_parent

EMULATOR = "qemu-system-x86_64"
# QEMU 7.2's cmpxchg16b takes the flags from a stale state: after `cmp` they are an operand's low half. Nobody sees it until an exit or an interrupt
# comes right then; a guest that goes on with such flags dies. Kernels use the instruction in their allocators, when there is one.
CPU = "EPYC,+svm,+npt,-cx16"

# Each guest that boots and moves adds about 120 MiB of translated code. A host whose cache is full throws it all away and stands nearly still
# for a second, its guests with it. A larger one is worse: with 2047 MiB encrypted moves of a busy guest took half as long again.
TRANSLATION_CACHE_MIB = 384


def hardware_kvm():
    """Whether this machine can give its hosts hardware virtualization, nested."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    for module in ("kvm_intel", "kvm_amd"):
        try:
            with open(f"/sys/module/{module}/parameters/nested") as f:
                return f.read().strip() in ("1", "Y")
        except OSError:
            continue
    return False


def default_cpus():
    """
    Emulated CPUs that run side by side in one host are not kept coherent well enough for a hypervisor: with two of them about one guest in ten
    died within a minute, of an instruction fetch through page tables that are not there, right after VMRUN (with and without a move). With
    one, none did.
    """
    return 2 if hardware_kvm() else 1


def accelerator_arguments(cpus):
    if hardware_kvm():
        return ["-accel", "kvm", "-cpu", "host"]
    # One thread for all CPUs of a host takes turns with them, and so keeps them coherent.
    thread = "multi" if cpus == 1 else "single"
    return ["-accel", f"tcg,thread={thread},tb-size={TRANSLATION_CACHE_MIB}", "-cpu", CPU]


def _network_arguments(name, tap, mac):
    return ["-netdev", f"tap,id={name},ifname={tap},script=no,downscript=no",
            "-device", f"virtio-net-pci,netdev={name},mac={mac},romfile="]


class Host:
    def __init__(self, name, directory, image, memory_mib, cpus, huge):
        self.name = name
        self.directory = directory
        self.image = image
        self.memory_mib = memory_mib
        self.cpus = cpus
        self.huge = huge
        self.process = None

    @property
    def console_log(self):
        return self.directory / f"{self.name}.console.log"

    def command(self):
        n = self.name
        memory = f"memory-backend-memfd,id=memory,size={self.memory_mib}M,prealloc=on,prealloc-threads=2"
        if self.huge:
            memory += ",hugetlb=on,hugetlbsize=2M"
        kernel_line = f"console=ttyS0 mitigations=off tsc=reliable nokaslr loglevel=5 lab.host={names.number(n)}" + \
            ("" if hardware_kvm() else " lab.emulated")
        return [EMULATOR, "-name", f"godwit-lab-{n}", "-nodefaults", "-no-user-config", "-display", "none",
                *accelerator_arguments(self.cpus),
                "-M", "q35,memory-backend=memory,hpet=off,vmport=off", "-m", f"{self.memory_mib}M", "-smp", str(self.cpus),
                "-object", memory,
                "-kernel", str(self.image.kernel), "-initrd", str(self.image.initramfs), "-append", kernel_line,
                *_network_arguments("data", names.port(n), names.data_mac(n)),
                *_network_arguments("mgmt", names.management_tap(n), names.management_mac(n)),
                "-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng",
                "-chardev", f"socket,id=console,path={self.directory}/{n}.console,server=on,wait=off,"
                            f"logfile={self.console_log},logappend=on",
                "-serial", "chardev:console",
                "-qmp", f"unix:{self.directory}/{n}.qmp,server=on,wait=off"]

    def start(self):
        if self.running():
            raise LabError(f"{self.name} is running")
        with open(self.directory / f"{self.name}.emulator.log", "ab") as log:
            try:
                self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                                preexec_fn=die_with_parent)
            except FileNotFoundError as e:
                raise LabError(f"{EMULATOR} is not installed (tests/lab/deps installs what the lab needs)") from e

    def running(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        """The power goes off: nothing in the host can prepare for it."""
        if self.running():
            self.process.kill()
            self.process.wait()

    def failure(self):
        """Why the emulator ended, from what it wrote."""
        try:
            text = (self.directory / f"{self.name}.emulator.log").read_text(errors="replace").strip()
        except OSError:
            text = ""
        return text or f"the emulator ended with status {self.process.returncode if self.process else '?'}"
