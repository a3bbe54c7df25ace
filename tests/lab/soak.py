#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Moves a guest that writes memory and disk and checks its own writes back and forth; with --verify-digest the two VMMs also compare a
digest over all RAM at every hand-off. The guest's last word decides: 0 faults. One vCPU by default: the emulation that carries a lab's hosts
does not keep code coherent between processors, and a guest with several that patches its own code dies of that now and then.

    soak.py [--moves 200] [--kind 6.12-cloud] [--cpus 1]
"""

import argparse
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from cluster import Cluster, Guest, SharedDisk  # noqa: E402
from labtest import Lab, Probe, evidence  # noqa: E402


def soak(lab, moves, kind="6.12-cloud", cpus=1, say=print):
    """Raises on the first failed move or fault; returns the outside blackouts in ms."""
    cluster = Cluster(lab)
    disk = SharedDisk(lab, size_mib=64)
    vm = Guest(lab, name="soak", kind=kind, memory_mib=128, cpus=cpus, jobs="heartbeat,dirty:10:16,disk:/dev/vda:32", disk=disk.uri)
    cluster.create("h1", vm.vm_file())
    cluster.godwit("h1", "start", "soak")
    probe = Probe(lab).wait_ready()
    source, target, gaps = "h1", "h2", []
    try:
        for i in range(1, moves + 1):
            probe.result()
            report = cluster.move(source, "soak", target, "--verify-digest", "--channels", 2)
            gaps.append(probe.outage())
            faultless, verdict = lab.check_workload()
            if not faultless:
                raise AssertionError(f"after move {i}: {verdict}")
            if i % 10 == 0 or i == moves:
                say(f"move {i}: blackout {report['blackout_us'] / 1000:.1f} ms (outside {gaps[-1]:.1f} ms), {report['bytes_sent'] >> 20} MiB; {verdict}")
            source, target = target, source
    except Exception:
        print(cluster.logs(), evidence(lab))
        raise
    finally:
        probe.kill()
        cluster.remove("soak")
        disk.close()
    return gaps


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--moves", type=int, default=200)
    p.add_argument("--kind", default="6.12-cloud")
    p.add_argument("--cpus", type=int, default=1)
    args = p.parse_args()
    began = time.monotonic()
    with Lab(hosts=2) as lab:
        try:
            gaps = sorted(soak(lab, args.moves, args.kind, args.cpus))
        except Exception as e:
            print(f"FAIL {e}\n0 passed, 1 failed")
            return 1
    print(f"{args.moves} moves in {time.monotonic() - began:.0f} s, 0 faults, RAM equal at every hand-off; outside blackout "
          f"median {gaps[len(gaps) // 2]:.1f} ms, max {gaps[-1]:.1f} ms")
    print(f"{args.moves} passed, 0 failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
