# SPDX-License-Identifier: Apache-2.0
"""bench/run boot [--quick] [--pairs N]

A Linux guest from the start of its VMM to the line that its init prints, with Godwit and with QEMU in turn in one host of the lab: the same
kernel, initrd, memory and command line. Then what the idle VMM itself holds in memory, beside the guest's: private pages of all mappings but
the largest, which is the guest's RAM, in MiB.
"""

import argparse
import re

from gwbench import report, stats
from gwbench.build import make
from labtest import Lab, guest

KIND, MEMORY_MIB = "6.12-cloud", 256
CONSOLE = "/tmp/boot-console"
DEADLINE_S = 120
# Runs in the host: milliseconds from the start to init's line, then the process whose memory is looked at.
SCRIPT = """rm -f {console}; now() {{ echo ${{EPOCHREALTIME/./}}; }}; begin=$(now); {command} > /tmp/boot-log 2>&1 & pid=$!
while ! grep -q GUEST-READY {console} 2>/dev/null; do
	kill -0 $pid 2>/dev/null || {{ cat /tmp/boot-log >&2; exit 1; }}
	[ $(($(now) - begin)) -lt {deadline}000000 ] || exit 2
	usleep 10000
done
echo $((($(now) - begin) / 1000)); cat /proc/$pid/smaps; kill -9 $pid; wait $pid; exit 0
"""


def commands(kernel, initrd):
    shape = f"-kernel {kernel} -initrd {initrd} -append 'console=ttyS0 quiet gw.run=heartbeat'"
    return {
        "godwit": f"godwit-vmm --kernel {kernel} --initrd {initrd} --cmdline 'console=ttyS0 quiet gw.run=heartbeat' --memory {MEMORY_MIB}M "
                  f"--cpus 1 --no-tty --console-log {CONSOLE}",
        "qemu": f"qemu-system-x86_64 -M q35,accel=kvm -cpu host -m {MEMORY_MIB}M -smp 1 -nodefaults -no-user-config -display none {shape} "
                f"-serial file:{CONSOLE} -device virtio-rng-pci",
    }


def own_memory_mib(smaps):
    """Private memory of all mappings but the largest."""
    sizes = [int(kb) for kb in re.findall(r"^Size:\s+(\d+) kB", smaps, re.M)]
    private = [int(a) + int(b) for a, b in re.findall(r"^Private_Clean:\s+(\d+) kB\nPrivate_Dirty:\s+(\d+) kB", smaps, re.M)]
    return (sum(private) - private[sizes.index(max(sizes))]) / 1024


def once(lab, command):
    done = lab.sh("h1", "bash", "-c", SCRIPT.format(console=CONSOLE, command=command, deadline=DEADLINE_S))
    first, smaps = done.stdout.split("\n", 1)
    return {"boot_ms": int(first), "own_memory_mib": own_memory_mib(smaps)}


def run(arguments):
    p = argparse.ArgumentParser(prog="bench/run boot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="2 pairs instead of 5")
    p.add_argument("--pairs", type=int)
    args = p.parse_args(arguments)
    seen = {}
    with Lab(hosts=1, with_qemu=True, bin=make("all", bench=False)) as lab:
        kernel, initrd = guest("kernel", KIND), guest("initrd", KIND)
        lab.put("h1", kernel, initrd, "/srv")
        for _ in range(args.pairs or (2 if args.quick else 5)):
            for name, command in commands(f"/srv/{kernel.name}", f"/srv/{initrd.name}").items():
                figures = once(lab, command)
                print(f"  {name:8} init after {figures['boot_ms']:6} ms, own memory {figures['own_memory_mib']:6.1f} MiB", flush=True)
                for key, value in figures.items():
                    seen.setdefault(name, {}).setdefault(key, []).append(value)
    result = {name: {key: stats.summary(values) for key, values in figures.items()} for name, figures in seen.items()}
    result["boot_ratio"] = stats.paired_ratio(seen["godwit"]["boot_ms"], seen["qemu"]["boot_ms"])
    result["own_memory_ratio"] = stats.paired_ratio(seen["godwit"]["own_memory_mib"], seen["qemu"]["own_memory_mib"])
    rows = [(name, *(f"{result[name][key]['median']:,.1f} [{result[name][key]['min']:,.1f} to {result[name][key]['max']:,.1f}]"
                     for key in ("boot_ms", "own_memory_mib"))) for name in seen]
    report.print_table("Start to init, and the idle VMM's own memory, medians [lowest to highest]", ("VMM", "ms to init", "MiB"), rows)
    return {"ok": result["boot_ratio"] <= 1.25 and result["godwit"]["own_memory_mib"]["median"] <= 5, **result}
