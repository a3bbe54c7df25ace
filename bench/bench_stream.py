# SPDX-License-Identifier: Apache-2.0
"""bench/run stream [--quick] [--mib N] [--runs N]

The migration engine alone, memory to memory over loopback TCP with both ends on this machine, both memories touched beforehand: clear
(a bench-only build) and encrypted, on one and on two data channels, beside the machine's limit measured in the same run (one
connection, 512 KiB a call, nothing else). GB/s of guest memory; ratios are medians of neighbours in time.
"""

import argparse
import json
import subprocess
from pathlib import Path

from gwbench import report, stats
from gwbench.build import make

TOP = Path(__file__).resolve().parents[1]
MODES = {"limit": ("1", "limit"), "clear_1": ("1", "clear"), "clear_2": ("2", "clear"), "tls_1": ("1", "tls"), "tls_2": ("2", "tls")}


def run(arguments):
    p = argparse.ArgumentParser(prog="bench/run stream", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="2 runs of 1 GiB instead of 5 of 2 GiB")
    p.add_argument("--mib", type=int)
    p.add_argument("--runs", type=int)
    args = p.parse_args(arguments)
    size, runs = args.mib or (1024 if args.quick else 2048), args.runs or (2 if args.quick else 5)
    program = TOP / "build/bench/tests/bench-stream"
    make(program.relative_to(TOP), bench=True)
    speeds, ciphers = {mode: [] for mode in MODES}, set()
    for _ in range(runs):
        for mode, words in MODES.items():
            done = subprocess.run([program, str(size), *words], stdout=subprocess.PIPE, text=True, check=True)
            result = json.loads(done.stdout)
            speeds[mode].append(result["gb_per_s"])
            if mode.startswith("tls"):
                ciphers.add(result["cipher"])
    rows = [(mode, *(stats.summary(values)[key] for key in ("median", "min", "max"))) for mode, values in speeds.items()]
    report.print_table(f"The engine alone, {size} MiB, GB/s", ("mode", "median", "lowest", "highest"), rows)
    result = {mode: {"gb_per_s": stats.summary(values)} for mode, values in speeds.items()}
    for mode in MODES:
        if mode != "limit":
            result[mode]["of_limit"] = stats.paired_ratio(speeds[mode], speeds["limit"])
    return {"ok": True, "mib": size, "ciphers": sorted(ciphers), **result}
