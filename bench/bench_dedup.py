# SPDX-License-Identifier: Apache-2.0
"""bench/run dedup [--quick] [--vms N] [--mib N] [--runs N] [--only native|lab]

Sharing of identical pages, Godwit beside kernel KSM in the same run. Native: processes with the engine's own guest RAM and its sharer, and the
same memory under KSM tuned to its fastest (bench/dedup.c tells the content). Memory is measured from outside: MemAvailable, which pays for all
metadata of the kernel, of the daemon and of the processes. Lab: Linux guests in an emulated host (bench/gwbench/duplab.py).

"ok" says that memory still holds what it held, and that all of docs/SPEC.md's targets were met, savings within the one percent that MemAvailable is off by.
"""

import argparse
import json
import os
import socket
import struct
import subprocess
import time
from pathlib import Path

from gwbench import duplab, report, stats
from gwbench.build import make

TOP = Path(__file__).resolve().parents[1]
KSM = Path("/sys/kernel/mm/ksm")
WORK = TOP / "build" / "bench" / "dedup"


def mem_available():
    """Bytes; with what the kernel keeps at hand for each processor after much was freed, which MemAvailable leaves out."""
    free = 0
    for line in [*open("/proc/meminfo", encoding="ascii"), *open("/proc/zoneinfo", encoding="ascii")]:
        words = line.split()
        if words[0] == "MemAvailable:":
            free += int(words[1]) << 10
        elif words[0] == "count:":
            free += int(words[1]) << 12
    return free


def pss(pid):
    for line in open(f"/proc/{pid}/smaps_rollup", encoding="ascii"):
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    return 0


def anonymous(pid):
    """Bytes of a process' own memory, without what it shares."""
    for line in open(f"/proc/{pid}/status", encoding="ascii"):
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def thread_cpu(pid, name=None):
    """Seconds of processor that a process' threads (those of that name) took, by the scheduler's account."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        if name is None or (task / "comm").read_text().strip() == name:
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def build_content(size):
    """A file of the contents of this machine's packages' files, in order of their names."""
    path = WORK / "content"
    WORK.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size == size:
        return path
    with open(path, "wb") as out:
        for folder, folders, files in os.walk("/usr"):
            folders.sort()
            for name in sorted(files):
                source = os.path.join(folder, name)
                if os.path.islink(source) or not os.path.isfile(source) or os.path.getsize(source) < 16384:
                    continue
                with open(source, "rb") as f:
                    while chunk := f.read(1 << 20):
                        out.write(chunk)
                out.write(bytes(-out.tell() % 4096))
                if out.tell() >= size:
                    out.truncate(size)
                    return path
    raise OSError("this machine has too few files")


class Worker:
    def __init__(self, number, args, content, mode, fd=None, cpu=100):
        self.hashes = WORK / f"hashes.{number}"
        command = [str(TOP / "build/tests/bench-dedup"), str(number), str(args.mib), str(content), str(self.hashes), mode]
        if fd is not None:
            command += [str(fd), str(cpu)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[fd] if fd is not None else [])
        self.pid = self.process.pid

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a bench process died")
        return json.loads(line)

    def ask(self, what):
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)


def varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


class Daemon:
    """godwit-ksmd with this bench as its agent (proto/share.proto)."""

    def __init__(self):
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.process = subprocess.Popen([str(TOP / "build/bin/godwit-ksmd"), "--control-fd", str(theirs.fileno())], pass_fds=[theirs.fileno()])
        theirs.close()
        self.pid = self.process.pid

    def attach(self, name):
        """The client's end of a new session."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        body = field(1, field(1, name.encode()) + field(2, b"bench") + field(3, bytes(range(32))))
        socket.send_fds(self.control, [struct.pack("<IHH", len(body), 32, 1) + body], [theirs.fileno()])
        theirs.close()
        head = self.control.recv(8, socket.MSG_WAITALL)
        length = struct.unpack("<IHH", head)[0]
        reply = self.control.recv(length, socket.MSG_WAITALL) if length else b""
        if reply[:1] == b"\x08":
            raise RuntimeError(f"godwit-ksmd: {reply!r}")
        return ours

    def close(self):
        self.control.close()
        self.process.wait(30)


class Ksm:
    """The kernel's, tuned to its fastest: no pause, zero pages merged, and every scan takes in all."""

    FASTEST = {"pages_to_scan": "100000", "sleep_millisecs": "0", "use_zero_pages": "1", "smart_scan": "0", "advisor_mode": "none"}
    DEFAULTS = {"pages_to_scan": "100", "sleep_millisecs": "20"}

    def __init__(self):
        self.pid = next(int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and self._comm(p) == "ksmd")
        self.before = {f.name: f.read_text().strip() for f in KSM.iterdir() if f.name in (*self.FASTEST, "run")}
        self.before["advisor_mode"] = "none"
        self._set("run", "2")
        self.set(self.FASTEST)

    @staticmethod
    def _comm(process):
        try:
            return (process / "comm").read_text().strip()
        except OSError:
            return ""

    @staticmethod
    def _set(name, value):
        if (KSM / name).exists():
            (KSM / name).write_text(value)

    def set(self, values):
        for name, value in values.items():
            self._set(name, value)

    def start(self):
        self._set("run", "1")

    @staticmethod
    def metadata():
        """Bytes, of the kernel's account of its profit (Documentation/admin-guide/mm/ksm.rst); None where it keeps none."""
        def value(name):
            return int((KSM / name).read_text())
        if not (KSM / "general_profit").exists():
            return None
        pages = value("pages_sharing") + (value("ksm_zero_pages") if (KSM / "ksm_zero_pages").exists() else 0)
        return pages * 4096 - value("general_profit")

    def close(self):
        self._set("run", "2")
        self.set({k: v for k, v in self.before.items() if k != "run"})
        self._set("run", "0")


def upper_bound(workers):
    """Bytes that sharing could save at best, of each content but zeros one page stays: zeros, and what is there again within a VM and in another."""
    import array
    seen, found = set(), {"zero_bytes": 0, "within_bytes": 0, "between_bytes": 0}
    for w in workers:
        hashes = array.array("Q", w.hashes.read_bytes())
        own = set(hashes) - {0}
        zero = hashes.count(0)
        found["zero_bytes"] += zero * 4096
        found["within_bytes"] += (len(hashes) - zero - len(own)) * 4096
        found["between_bytes"] += len(own & seen) * 4096
        seen |= own
    return found


def wait_plateau(baseline, began, cpu, limit=180):
    """Waits until memory stops coming back. Returns the saving, when 98 percent of it was there, and the processor time that it had taken by then."""
    samples = []
    while True:
        time.sleep(0.1)
        now, saved = time.monotonic() - began, mem_available() - baseline
        samples.append((now, saved, cpu()))
        recent = [s for t, s, _ in samples if t > now - 4]
        if (now > 6 and saved > 64 << 20 and max(recent) - min(recent) < max(saved // 200, 2 << 20)) or now > limit:
            break
    final = stats.median([s for t, s, _ in samples if t > now - 4])
    return final, *next((t, spent) for t, s, spent in samples if s >= final * 0.98)


def worst(beats):
    return {key: max(b[key] for b in beats) for key in ("p50_us", "p99_us", "p999_us", "max_us")}


def one_side(mode, args, content, steady_s):
    daemon, ksm = (Daemon(), None) if mode == "share" else (None, Ksm())
    workers = []
    try:
        for i in range(args.vms):
            end = daemon.attach(f"vm{i}") if daemon else None
            workers.append(Worker(i, args, content, mode, end.fileno() if end else None, args.cpu))
            if end:
                end.close()
        for w in workers:
            w.answer()
        for w in workers:
            w.ask("beats")
        time.sleep(3)
        calm = worst([w.ask("beats") for w in workers])

        def cpu():
            if ksm:
                return thread_cpu(ksm.pid)
            return thread_cpu(daemon.pid) + sum(thread_cpu(w.pid, "share") for w in workers)

        bound = upper_bound(workers)
        baseline, cpu_before, pss_before = mem_available(), cpu(), sum(pss(w.pid) for w in workers)
        began = time.monotonic()
        for w in workers:
            w.ask("share")
        if ksm:
            ksm.start()
        saved, converged, spent = wait_plateau(baseline, began, cpu)
        beats = worst([w.ask("beats") for w in workers])
        metadata = sum(w.ask("stats")["metadata"] for w in workers) + anonymous(daemon.pid) if daemon else ksm.metadata()
        pss_saved = pss_before - sum(pss(w.pid) for w in workers) - (pss(daemon.pid) if daemon else 0)
        if ksm:
            ksm.set(Ksm.DEFAULTS)
        steady_before, steady_began = cpu(), time.monotonic()
        time.sleep(steady_s)
        steady = (cpu() - steady_before) / (time.monotonic() - steady_began)
        own = [w.ask("stats") for w in workers] if daemon else []
        same = all(w.ask("check")["same"] for w in workers)
        return {"saved_bytes": saved, "pss_saved_bytes": pss_saved, **bound, "of_upper_bound": saved / sum(bound.values()), "metadata_bytes": metadata,
                "converge_s": converged, "cpu_s": spent - cpu_before, "steady_cpu": steady, "calm": calm, "beats": beats, "same": same,
                "maps_per_vm": stats.median([len(open(f"/proc/{w.pid}/maps", encoding="ascii").readlines()) for w in workers]), "own": own}
    finally:
        for w in workers:
            w.close()
        (daemon or ksm).close()


def native(args):
    content = build_content(args.mib * 1024 * 1024)
    make("build/tests/bench-dedup", "build/bin/godwit-ksmd", bench=False)
    sides = {"share": [], "ksm": []}
    for _ in range(args.runs):
        for mode, results in sides.items():
            results.append(one_side(mode, args, content, 10 if args.quick else 30))
            if args.verbose:
                print(mode, json.dumps(results[-1]))
    return sides


def median_of(results, *keys):
    values = []
    for r in results:
        for key in keys:
            r = r[key]
        values.append(r)
    return stats.median(values)


def run(arguments):
    p = argparse.ArgumentParser(prog="bench/run dedup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="one run of each side with 4 VMs of 256 MiB")
    p.add_argument("--vms", type=int)
    p.add_argument("--mib", type=int)
    p.add_argument("--runs", type=int)
    p.add_argument("--cpu", type=int, default=100, help="percent of a processor that each VM's sharer may take")
    p.add_argument("--only", choices=("native", "lab"))
    p.add_argument("--lab-vms", type=int)
    p.add_argument("--lab-mib", type=int, default=192)
    p.add_argument("--lab-runs", type=int, help="every second one with nginx and redis, and two kernels")
    p.add_argument("--busy", action="store_true", help="all lab runs with nginx and redis, and two kernels")
    p.add_argument("--verbose", action="store_true")
    args = p.parse_args(arguments)
    args.vms, args.mib, args.runs = args.vms or (4 if args.quick else 6), args.mib or (256 if args.quick else 512), args.runs or (1 if args.quick else 3)
    args.lab_vms, args.lab_runs = args.lab_vms or (2 if args.quick else 4), args.lab_runs or (1 if args.quick else 2)
    result, ok = {}, True
    if args.only != "lab":
        result["native"], fine = run_native(args)
        ok = ok and fine
    if args.only != "native":
        result["lab"], fine = run_lab(args)
        ok = ok and fine
    return {"ok": ok, **result}


def on_target(result):
    return result["saved_ratio"] >= 0.99 and result["cpu_ratio"] <= 1.0 and result["wall_ratio"] <= 1.0 and result["steady_cpu_ratio"] <= 0.1


def native_figures(results):
    keys = ("saved_bytes", "zero_bytes", "within_bytes", "between_bytes", "metadata_bytes", "converge_s", "cpu_s", "steady_cpu", "maps_per_vm")
    figures = {key: median_of(results, key) for key in keys if results[0][key] is not None}
    return {**figures, **{f"stall_{key}": median_of(results, "beats", key) for key in ("p50_us", "p99_us", "max_us")}}


def run_native(args):
    sides = native(args)
    rows = []
    for name, mode in (("godwit", "share"), ("ksm", "ksm")):
        r = sides[mode]
        rows.append((name, f"{median_of(r, 'saved_bytes') / 2**20:.0f}", f"{100 * median_of(r, 'of_upper_bound'):.1f}", f"{median_of(r, 'converge_s'):.1f}",
                     f"{median_of(r, 'cpu_s'):.2f}", f"{100 * median_of(r, 'steady_cpu'):.2f}", f"{median_of(r, 'beats', 'p99_us')}",
                     f"{median_of(r, 'beats', 'max_us')}", f"{median_of(r, 'maps_per_vm'):.0f}",
                     f"{median_of(r, 'metadata_bytes') / 2**20:.1f}" if r[0]["metadata_bytes"] is not None else "-"))
    report.print_table(f"Native, {args.vms} VMs of {args.mib} MiB", ("", "saved MiB", "% of bound", "converge s", "cpu s", "steady cpu %", "beat p99 us",
                                                                    "beat max us", "maps", "metadata MiB"), rows)

    def ratio(*keys):
        return stats.paired_ratio([_get(r, keys) for r in sides["share"]], [_get(r, keys) for r in sides["ksm"]])

    result = {"saved_ratio": ratio("saved_bytes"), "of_upper_bound": median_of(sides["share"], "of_upper_bound"), "cpu_ratio": ratio("cpu_s"),
              "wall_ratio": ratio("converge_s"), "steady_cpu_ratio": ratio("steady_cpu"), "stall_ratio": ratio("beats", "p99_us"),
              "stall_max_ratio": ratio("beats", "max_us"), "godwit": native_figures(sides["share"]), "ksm": native_figures(sides["ksm"])}
    fine = all(r["same"] for results in sides.values() for r in results)
    return result, fine and on_target(result) and result["of_upper_bound"] >= 0.95 and result["stall_ratio"] <= 1.0


def run_lab(args):
    make("all", bench=False)
    seen = {side.name: [] for side in duplab.SIDES}
    for run_number in range(args.lab_runs):
        for side in duplab.SIDES:
            seen[side.name].append(duplab.one_side(side, args.lab_vms, args.lab_mib, run_number % 2 == 1 or args.busy, 20 if args.quick else 60))
            if args.verbose:
                print(side.name, json.dumps({key: value for key, value in seen[side.name][-1].items() if key != "curve"}), flush=True)
    rows = [(name, f"{median_of(r, 'saved_bytes') / 2**20:.0f}", f"{100 * median_of(r, 'of_upper_bound'):.1f}", f"{median_of(r, 'converge_s'):.1f}",
             f"{median_of(r, 'cpu_s'):.2f}", f"{100 * median_of(r, 'steady_cpu'):.2f}", f"{median_of(r, 'maps_per_vm'):.0f}") for name, r in seen.items()]
    report.print_table(f"Lab, {args.lab_vms} Linux guests of {args.lab_mib} MiB", ("", "saved MiB", "% of bound", "converge s", "cpu s", "steady cpu %", "maps"),
                       rows)

    def ratio(key):
        return stats.paired_ratio([r[key] for r in seen["godwit"]], [r[key] for r in seen["ksm"]])

    def to_save(run, saving):
        """Seconds and processor time until so much was saved."""
        return next((at, spent) for at, saved, spent in run["curve"] if saved >= saving)

    same = [(to_save(g, least), to_save(k, least)) for g, k in zip(seen["godwit"], seen["ksm"]) for least in [0.97 * min(g["saved_bytes"], k["saved_bytes"])]]
    keys = ("saved_bytes", "zero_bytes", "within_bytes", "between_bytes", "converge_s", "cpu_s", "steady_cpu", "maps_per_vm")
    result = {"saved_ratio": ratio("saved_bytes"), "of_upper_bound": median_of(seen["godwit"], "of_upper_bound"), "cpu_ratio": ratio("cpu_s"),
              "wall_ratio": ratio("converge_s"), "steady_cpu_ratio": ratio("steady_cpu"),
              "same_saving_wall_ratio": stats.paired_ratio([g[0] for g, _ in same], [k[0] for _, k in same]),
              "same_saving_cpu_ratio": stats.paired_ratio([g[1] for g, _ in same], [k[1] for _, k in same]),
              **{name: {k: median_of(r, k) for k in keys} for name, r in seen.items()}}
    return result, on_target(result)


def _get(r, keys):
    for key in keys:
        r = r[key]
    return r
