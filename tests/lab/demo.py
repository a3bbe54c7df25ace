#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The main job: a Linux guest with redis and a memory dirtier moves from host A to host B and back, live and encrypted, while a client
outside writes to redis and another probes the guest each millisecond. Prints a table, and as its last line RESULT {json}."""

import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from cluster import Cluster, Failed, Guest, SharedDisk  # noqa: E402
from labtest import Lab, Probe, RedisWriter, guest  # noqa: E402

COLUMNS = ("move", "total", "sent", "rounds", "blackout (VMM)", "worst silence (outside)", "encrypted by")


def say(text):
    print(f"[{time.monotonic() - BEGAN:6.1f} s] {text}", flush=True)


def move(cluster, clients, name, source, target):
    """One move with what was seen of it from outside: the worst that any client saw, at any time of the move."""
    for client in clients:
        client.result()
    began = time.monotonic()
    report = cluster.move(source, name, target, "--timeout", 60, "--policy", "stop")
    total_ms = (time.monotonic() - began) * 1000
    outside_ms = max(client.outage() for client in clients)
    if not report["encrypted"]:
        raise Failed("the move was not encrypted")
    return {"way": f"{source} -> {target}", "total_ms": round(total_ms), "bytes": report["bytes_sent"], "rounds": report["round"],
            "blackout_ms": round(report["blackout_us"] / 1000, 1), "outside_ms": round(outside_ms, 1),
            "cipher": report["cipher"]}


def print_table(moves):
    rows = [COLUMNS] + [(m["way"], f"{m['total_ms'] / 1000:.2f} s", f"{m['bytes'] / 2**20:.0f} MiB", str(m["rounds"]), f"{m['blackout_ms']:.1f} ms",
                         f"{m['outside_ms']:.1f} ms", m["cipher"]) for m in moves]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    for row in rows:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths)))


def demo(lab):
    say("two hosts are up; starting their agents")
    cluster = Cluster(lab)
    disk = SharedDisk(lab, image=guest("rootfs"))
    vm = Guest(lab, name="demo", memory_mib=384, cpus=1, jobs="heartbeat,redis,dirty:2:16", disk=disk.uri, root="/dev/vda")
    cluster.create("h1", vm.vm_file())
    cluster.godwit("h1", "start", "demo")
    say("the guest starts on h1: redis, nginx, and a program that dirties 2 MB/s and checks what it wrote")
    probe = Probe(lab).wait_ready()
    writer = RedisWriter(lab).wait_ready()
    say("the guest answers; a client writes to redis and a probe asks each millisecond from outside")
    moves = []
    for source, target in (("h1", "h2"), ("h2", "h1")):
        moves.append(move(cluster, (probe, writer), "demo", source, target))
        say(f"moved {source} -> {target}")
    faultless, verdict = lab.check_workload()
    written = writer.finish()
    probe.finish()
    cluster.remove("demo")
    disk.close()
    print()
    print_table(moves)
    print(f"\n  redis writes acknowledged {written['acked']}, found again {written['acked'] - written['lost']}, connections lost {written['reconnects']}")
    print("  " + verdict.replace("\n", "\n  ") + "\n")
    return {"ok": faultless and written["lost"] == 0 and written["acked"] > 0, "moves": len(moves), "encrypted": True,
            "blackout_ms": [m["blackout_ms"] for m in moves], "outside_blackout_ms": [m["outside_ms"] for m in moves],
            "total_ms": [m["total_ms"] for m in moves], "bytes": [m["bytes"] for m in moves],
            "writes_acked": written["acked"], "writes_lost": written["lost"]}


def main():
    say("starting two emulated hosts")
    try:
        with Lab(hosts=2) as lab:
            result = demo(lab)
    except (Failed, RuntimeError, TimeoutError) as e:
        print(f"demo: {e}", file=sys.stderr)
        result = {"ok": False, "error": str(e)}
    print("RESULT " + json.dumps({"bench": "demo", **result}))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    BEGAN = time.monotonic()
    sys.exit(main())
