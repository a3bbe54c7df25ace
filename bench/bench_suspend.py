# SPDX-License-Identifier: Apache-2.0
"""bench/run suspend [--quick] [--rounds N] [--only lab|native]

Suspending to a repository and resuming, beside QEMU in the same run (its migration to a file, and -incoming from it).

lab: a Linux guest of 512 MiB with 300 MiB that do not compress is suspended on a host and resumed there, with Godwit (encrypted, to a directory) and with QEMU (clear,
to a file) in turn; then Godwit's with 2 GiB. A program in the guest sends a datagram each 10 ms: "first tick" is from the command to the first of them that is seen outside. "first answer" is from the command
to the answer of another program there, which a client asks from that tick on. The guest checks its memory when it is asked. Then two small guests of one image are suspended, and one of them twice; and one of 512 MiB is cloned, once and eight times, on a host that shares memory.
native: 2 GiB of RAM, 1.8 GiB of it random, to a directory and to an S3 server (Ceph's gateway), against QEMU without a guest whose RAM is the same, to a file; and memory
that is touched page by page after a resume, against the same bytes read eagerly. "Linux": the RAM of a guest that has read all of its disk, saved by us and, where it is, by QEMU.
"""

import argparse
import json
import mmap
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from bench_move import _Hosts, _Shape, inside_network
from cluster import TOP, Cluster, Guest, SharedDisk
from gwbench import report, stats
from gwbench.build import make
from gwbench.duplab import mem_available
from gwbench.qemu import Qmp, QemuVm
from labtest import GUEST_IP, Lab, Probe, guest, wait_for

HOST = "h1"
TOUCHED_MIB = 300
SETTLE_S = 12
URL = "file:///srv/repo"


class FirstTick:
    """Waits for a guest's ticks from now on; seconds() is how long after this the first came."""
    PORT = 7010

    def __init__(self, ip=GUEST_IP):
        self.ip, self.came = ip, None
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("", self.PORT))
        self.began = time.monotonic()
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self):
        with self.socket:
            while self.came is None:
                if self.socket.recvfrom(2048)[1][0] == self.ip:
                    self.came = time.monotonic()

    def seconds(self):
        wait_for(lambda: self.came, "the guest ticks", poll=0.002)
        return self.came - self.began

    def answer(self):
        """Asks the guest's heartbeat every 2 ms; how long after the beginning the first answer came."""
        deadline = time.monotonic() + 60
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(0.002)
            while time.monotonic() < deadline:
                try:
                    s.sendto(bytes(16), (self.ip, 7000))
                    s.recv(2048)
                    return time.monotonic() - self.began
                except OSError:
                    time.sleep(0.001)
        raise TimeoutError("the guest does not answer")


# ---- lab ----

class Godwit:
    """The host's agent, and a repository in a directory that its own key opens."""

    def __init__(self, lab, build, share=False):
        self.lab = lab
        self.cluster = Cluster(lab, hosts=(HOST,), bin=build, share=share)
        lab.sh(HOST, f"rm -rf /srv/repo; echo of a bench > /tmp/pass; godwit repo init {URL} --passphrase-file /tmp/pass > /tmp/made && "
                     f"godwit repo key add {URL} --passphrase-file /tmp/pass --new-cert /etc/godwit/{HOST}.crt")
        fingerprint = lab.sh(HOST, "sed -n 's/^fingerprint *//p' /tmp/made").stdout.strip()
        self.key = ("--fingerprint", fingerprint)

    def start(self, vm):
        self.cluster.create(HOST, vm.vm_file())
        self.cluster.godwit(HOST, "start", vm.name)

    def save(self, vm):
        begin = time.monotonic()
        done = self.cluster.godwit(HOST, "suspend", vm.name, "--to", URL, *self.key, "--json")
        return time.monotonic() - begin, json.loads(done.stdout.splitlines()[-1])["result"]

    def resume(self, vm):
        self.cluster.godwit(HOST, "resume", vm.name, "--from", URL, *self.key)

    def await_resident(self, vm):
        wait_for(lambda: self.cluster.show(HOST, vm.name)["load"]["phase"] == "done", "all of its memory is here", poll=0.1)

    def resumed_after(self, vm):
        """Seconds to the first tick, the first answer, and to all of its memory."""
        first = FirstTick(vm.ip)
        self.resume(vm)
        tick, answer = first.seconds(), first.answer()
        self.await_resident(vm)
        return tick, answer, time.monotonic() - first.began

    def one(self, vm):
        self.start(vm)
        warm(self.lab, vm)
        save_s, told = self.save(vm)
        tick_s, answer_s, resident_s = self.resumed_after(vm)
        check(self.lab, vm)
        self.cluster.remove(vm.name)
        return {"save_s": save_s, "first_tick_s": tick_s, "first_answer_s": answer_s, "resident_s": resident_s, "stored_bytes": told["stored_bytes"]}


class Qemu:
    STATE = "/srv/qemu-state"

    def __init__(self, lab, cluster):
        self.lab, self.hosts = lab, _Hosts(lab, cluster)

    def one(self, vm):
        source = QemuVm(self.hosts, HOST, _Shape(vm))
        try:
            warm(self.lab, vm)
            save_s = source.save_to(self.STATE)
        finally:
            source.end()
        size = int(self.lab.sh(HOST, f"stat -c %s {self.STATE}").stdout)
        first = FirstTick(vm.ip)
        again = QemuVm(self.hosts, HOST, _Shape(vm), incoming=self.STATE)
        try:
            again.go_on()
            tick_s, answer_s = first.seconds(), first.answer()
            check(self.lab, vm)
        finally:
            again.end()
            self.lab.sh(HOST, f"rm {self.STATE}")
        return {"save_s": save_s, "first_tick_s": tick_s, "first_answer_s": answer_s, "resident_s": tick_s, "stored_bytes": size}


def warm(lab, vm):
    """The guest answers, its memory is filled, and what Linux does once in its first 15 s is over (router solicitations, deferred probes): by chance it would be done after the
    resume, or not."""
    Probe(lab, vm.ip).wait_ready().kill()
    check(lab, vm)
    time.sleep(SETTLE_S)


def check(lab, vm):
    faultless, verdict = lab.check_workload(vm.ip)
    if not faultless:
        raise RuntimeError(verdict)


def paired(lab, godwit, rounds):
    sides = {"godwit": godwit, "qemu": Qemu(lab, godwit.cluster)}
    seen = {name: {} for name in sides}
    jobs = f"heartbeat,tick:10,dirty:0:{TOUCHED_MIB}:asked"
    small = Guest(lab, hosts=(HOST,), name="bench", memory_mib=512, jobs=jobs)
    large = Guest(lab, hosts=(HOST,), name="large", memory_mib=2048, jobs=jobs)
    for _ in range(rounds):
        for name, side, vm in (("godwit", godwit, small), ("qemu", sides["qemu"], small), ("large", godwit, large)):
            figures = side.one(vm)
            print(f"  {name:8} save {figures['save_s']:6.2f} s  first tick {figures['first_tick_s'] * 1000:6.0f} ms  answer {figures['first_answer_s'] * 1000:6.0f} ms  resident {figures['resident_s']:6.2f} s  "
                  f"{figures['stored_bytes'] / 1e6:6.1f} MB", flush=True)
            for key, value in figures.items():
                seen.setdefault(name, {}).setdefault(key, []).append(value)
    return seen


def booted(vm):
    """Its services answer: before that one guest has read more of the image than the other, by chance."""
    def answers(port, question, answer):
        try:
            with socket.create_connection((vm.ip, port), timeout=2) as s:
                s.sendall(question)
                return answer in s.recv(4096)
        except OSError:
            return False
    wait_for(lambda: answers(6379, b"PING\r\n", b"+PONG"), f"redis in {vm.name} answers")
    wait_for(lambda: answers(80, b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.1"), f"nginx in {vm.name} answers")


def images(lab, godwit):
    """What a second VM of one image stores, and the first when it is suspended again."""
    disks = [SharedDisk(lab, image=guest("rootfs"), port=10830 + i) for i in range(2)]
    try:
        vms = [Guest(lab, hosts=(HOST,), name=f"image{i}", memory_mib=256, jobs="heartbeat,redis", disk=disks[i].uri, root="/dev/vda", ip=f"10.77.0.{110 + i}",
                     mac=f"52:54:00:77:01:{i:02x}") for i in range(2)]
        stored = []
        for vm in vms:
            godwit.start(vm)
            booted(vm)
            stored.append(godwit.save(vm)[1]["stored_bytes"])
        godwit.resume(vms[0])
        godwit.await_resident(vms[0])
        again = godwit.save(vms[0])[1]["stored_bytes"]
        for vm in vms:
            godwit.cluster.godwit(HOST, "rm", vm.name, check=False)
        return {"first_stored_bytes": stored[0], "second_vm_stored_bytes": stored[1], "second_vm_stored": round(stored[1] / stored[0], 3),
                "second_suspend_stored_bytes": again}
    finally:
        for disk in disks:
            disk.close()


def mem_settled(lab, deadline_s=60):
    """Bytes available, once what was given back before has come back: no more than 2 MiB in 3 s."""
    deadline, last = time.monotonic() + deadline_s, 0
    while (now := mem_available(lab)) - last > 2 << 20 and time.monotonic() < deadline:
        last = now
        time.sleep(3)
    return now


def clones(lab, godwit, count, deadline_s=420):
    """Memory of so many, as the host has less of it, once all of theirs is there and no more comes to be shared; seconds until all run, and until all is there."""
    names = [f"clone-{i + 1}" for i in range(count)]
    free, begin = mem_settled(lab), time.monotonic()
    godwit.cluster.godwit(HOST, "clone", "origin", count, "--name", "clone", "--from", URL, *godwit.key)
    took = time.monotonic() - begin
    while not all(godwit.cluster.show(HOST, name)["load"]["phase"] == "done" for name in names):
        if time.monotonic() - begin > 2 * deadline_s:
            raise TimeoutError(f"the memory of {count} clones is not here after {2 * deadline_s} s")
        time.sleep(2)
    loaded = time.monotonic() - begin
    least, since = free - mem_available(lab), time.monotonic()
    while time.monotonic() - since < 30 and time.monotonic() - begin < loaded + deadline_s:
        time.sleep(2)
        now = free - mem_available(lab)
        if now < least * 0.99:
            since = time.monotonic()
        least = min(least, now)
    for name in names:
        godwit.cluster.remove(name)
    return least, took, loaded


def run_clones(lab, build):
    godwit = Godwit(lab, build, share=True)
    vm = Guest(lab, hosts=(HOST,), name="origin", memory_mib=512, jobs=f"heartbeat,dirty:0:{TOUCHED_MIB}:asked")
    godwit.start(vm)
    warm(lab, vm)
    godwit.save(vm)
    one, _, one_loaded = clones(lab, godwit, 1)
    eight, took, eight_loaded = clones(lab, godwit, 8)
    print(f"  clones   one {one / 1e6:.0f} MB, eight {eight / 1e6:.0f} MB, made in {took:.1f} s, all there in {eight_loaded:.0f} s (one in {one_loaded:.0f} s)", flush=True)
    return {"clone_bytes": one, "clone8_bytes": eight, "clone8_memory_ratio": round(eight / one, 3), "clones_per_s": round(8 / took, 2),
            "clone_loaded_s": round(one_loaded, 1), "clone8_loaded_s": round(eight_loaded, 1)}


def run_lab(rounds, build):
    guest("rootfs")
    with Lab(hosts=1, memory="6144M", with_qemu=True, bin=build) as lab, inside_network(lab):
        godwit = Godwit(lab, build)
        seen = paired(lab, godwit, rounds)
        result = {name: {key: stats.summary(values) for key, values in figures.items()} for name, figures in seen.items()}
        for name, key in (("first_tick_ratio", "first_tick_s"), ("first_answer_ratio", "first_answer_s"), ("save_ratio", "save_s")):
            result[name] = stats.paired_ratio(seen["godwit"][key], seen["qemu"][key])
        result["first_tick_size_ratio"] = stats.paired_ratio(seen["large"]["first_tick_s"], seen["godwit"]["first_tick_s"])
        result["save_rate_ratio"] = round(1 / result["save_ratio"], 3)
        # Each with a repository of its own: what was saved before would be known.
        return {**result, **images(lab, Godwit(lab, build)), **run_clones(lab, build)}


# ---- native ----

RAM_MIB, FILLED_MIB = 2048, 1843


def warm_memory(mib=RAM_MIB):
    """So much memory was touched a moment ago, as bench-suspend does before each of its parts."""
    with mmap.mmap(-1, mib << 20) as memory:
        for at in range(0, mib << 20, mmap.PAGESIZE):
            memory[at] = 1


def save_by_qemu(control, work):
    """Seconds until what QEMU wrote is on the disk, as a suspended VM must be."""
    state = Path(work, "state")
    warm_memory()
    begin = time.monotonic()
    control("migrate", uri=f"exec:cat > {state}; sync {state}")
    control.wait_migrated(300)
    with open(state, "rb") as f:
        os.fsync(f.fileno())
    took = time.monotonic() - begin
    state.unlink()
    return took


class NativeLinux:
    """A Linux guest in QEMU, emulated, that has read all of its disk and stands still; and its RAM as a file."""
    MIB = 512

    def __init__(self, work):
        self.work, self.ram = work, Path(work, "guest-ram")
        serial, qmp = Path(work, "serial"), Path(work, "guest-qmp")
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-M", "q35,accel=tcg", "-m", f"{self.MIB}M", "-nodefaults", "-display", "none", "-kernel", guest("kernel", "6.12-cloud"),
             "-initrd", guest("initrd", "6.12-cloud"), "-append", "console=ttyS0 quiet gw.root=/dev/vda gw.run=redis", "-drive",
             f"file={guest('rootfs')},format=raw,if=virtio,snapshot=on", "-serial", f"unix:{serial},server=on,wait=off", "-qmp", f"unix:{qmp},server=on,wait=off"],
            stdin=subprocess.DEVNULL)
        try:
            self.control = Qmp(str(qmp), time.monotonic() + 30)
            self.control("migrate-set-parameters", **{"max-bandwidth": 100 << 30})
            with socket.socket(socket.AF_UNIX) as console:
                console.connect(str(serial))
                console.settimeout(120)
                self._read_until(console, b"GUEST-READY")
                console.sendall(b"\nfind / -xdev -type f -exec cat {} + > /dev/null; echo ALL-$((1 + 1))-READ\n")
                self._read_until(console, b"ALL-2-READ")
            self.control("stop")
            self.control("pmemsave", val=0, size=self.MIB << 20, filename=str(self.ram))
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _read_until(console, what):
        seen = b""
        while what not in seen:
            more = console.recv(4096)
            if not more:
                raise RuntimeError(f"the guest's console has ended: {seen[-500:]!r}")
            seen += more

    def save(self):
        took = save_by_qemu(self.control, self.work)
        # What was saved once is not saved again unless it ran meanwhile.
        self.control("cont")
        self.control("stop")
        return took

    def close(self):
        self.process.kill()
        self.process.wait()


class NativeQemu:
    """QEMU without a guest, whose RAM is a file with what it is to save."""

    def __init__(self, work):
        self.work = work
        self.ram = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else work, f"godwit-bench-{os.getpid()}")
        with open(self.ram, "wb") as f:
            for _ in range(FILLED_MIB):
                f.write(os.urandom(1 << 20))
            f.truncate(RAM_MIB << 20)

    def save(self):
        qmp = Path(self.work, "qmp")
        command = ["qemu-system-x86_64", "-M", "q35,accel=tcg,memory-backend=m0", "-m", f"{RAM_MIB}M", "-nodefaults", "-display", "none", "-S", "-object",
                   f"memory-backend-file,id=m0,size={RAM_MIB}M,mem-path={self.ram},share=on", "-qmp", f"unix:{qmp},server=on,wait=off"]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
            try:
                control = Qmp(str(qmp), time.monotonic() + 30)
                control("migrate-set-parameters", **{"max-bandwidth": 100 << 30})
                took = save_by_qemu(control, self.work)
                control("quit")
                control.close()
            finally:
                process.kill()
        qmp.unlink(missing_ok=True)
        return took

    def close(self):
        self.ram.unlink()


def godwit_native(url, environment=None, content=("--fill", FILLED_MIB), ram_mib=RAM_MIB):
    done = subprocess.run([TOP / "build/bench/tests/bench-suspend", *map(str, content), url, str(ram_mib)], stdout=subprocess.PIPE,
                          check=True, env={**os.environ, **(environment or {})}, text=True)
    return json.loads(done.stdout)


def run_linux(work, rounds):
    """Seconds that saving the RAM of one Linux guest took, each time into an empty repository, and QEMU; and bytes stored."""
    linux, ours, theirs = NativeLinux(work), [], []
    try:
        for _ in range(rounds):
            ours.append(godwit_native(f"file://{work}/repo", content=("--from", linux.ram), ram_mib=linux.MIB))
            shutil.rmtree(f"{work}/repo")
            theirs.append(linux.save())
            print(f"  Linux    save {ours[-1]['save_s']:.3f} s, QEMU {theirs[-1]:.3f} s; {ours[-1]['save_stored_bytes'] / 1e6:.1f} MB stored", flush=True)
    finally:
        linux.close()
    return ours, theirs


def run_native(rounds):
    make("build/bench/tests/bench-suspend", bench=True)
    ours, s3, theirs = [], [], []
    # All that the first round takes beside its RAM: files in the page cache, and QEMU's.
    warm_memory(min(4 * RAM_MIB, os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE // 2 >> 20))
    with tempfile.TemporaryDirectory(prefix="godwit-bench-", dir=os.environ.get("TMPDIR", "/var/tmp")) as work:
        linux, linux_theirs = run_linux(work, rounds)
    with tempfile.TemporaryDirectory(prefix="godwit-bench-", dir=os.environ.get("TMPDIR", "/var/tmp")) as work:
        qemu = NativeQemu(work)
        try:
            for _ in range(rounds):
                ours.append(godwit_native(f"file://{work}/repo"))
                shutil.rmtree(f"{work}/repo")
                theirs.append(qemu.save())
                print(f"  native   save {ours[-1]['save_s']:.2f} s, QEMU {theirs[-1]:.2f} s; lazy {ours[-1]['lazy_touch_s']:.2f} s, eager {ours[-1]['eager_s']:.2f} s", flush=True)
        finally:
            qemu.close()
    import rgw
    rgw.install()
    for _ in range(rounds):
        with rgw.Server() as server:
            s3.append(godwit_native(f"s3://bench/run?endpoint={server.url}", server.environment))
            print(f"  S3       save {s3[-1]['save_s']:.2f} s; lazy {s3[-1]['lazy_touch_s']:.2f} s, eager {s3[-1]['eager_s']:.2f} s", flush=True)

    def medians(runs):
        return {key: stats.summary([run[key] for run in runs]) for key in runs[0]}
    written = FILLED_MIB / 20 * (1 << 20)
    return {"directory": medians(ours), "s3": medians(s3), "qemu_save_s": stats.summary(theirs), "linux": medians(linux), "linux_qemu_save_s": stats.summary(linux_theirs),
            "linux_save_ratio": stats.paired_ratio(linux_theirs, [run["save_s"] for run in linux]),
            "save_ratio": stats.paired_ratio(theirs, [run["save_s"] for run in ours]),
            "save_gb_per_s": round(FILLED_MIB * (1 << 20) / 1e9 / stats.summary([run["save_s"] for run in ours])["median"], 3),
            "lazy_touch_ratio": stats.paired_ratio([run["eager_s"] for run in ours], [run["lazy_touch_s"] for run in ours]),
            "lazy_touch_ratio_s3": stats.paired_ratio([run["eager_s"] for run in s3], [run["lazy_touch_s"] for run in s3]),
            "second_suspend_extra": round(stats.summary([run["save_5_percent_stored_bytes"] for run in ours])["median"] / written, 3)}


def run(arguments):
    p = argparse.ArgumentParser(prog="bench/run suspend", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="1 round instead of 3")
    p.add_argument("--rounds", type=int)
    p.add_argument("--only", choices=("lab", "native"))
    args = p.parse_args(arguments)
    rounds = args.rounds or (1 if args.quick else 3)
    build = make("all", bench=True)
    result, ok = {}, True
    if args.only != "lab":
        result["native"] = n = run_native(rounds)
        ok = ok and n["save_ratio"] >= 1.0 and n["linux_save_ratio"] >= 2 and n["lazy_touch_ratio"] >= 0.7 and n["second_suspend_extra"] <= 1.05
        report.print_table("Natively, ratios", ("save rate over QEMU's", "of a Linux guest", "lazy over eager", "the same, S3", "stored over written", "GB/s"),
                           [(n["save_ratio"], n["linux_save_ratio"], n["lazy_touch_ratio"], n["lazy_touch_ratio_s3"], n["second_suspend_extra"], n["save_gb_per_s"])])
    if args.only != "native":
        result["lab"] = s = run_lab(rounds, build)
        ok = ok and s["first_tick_ratio"] <= 0.2 and s["first_tick_size_ratio"] <= 1.5 and s["save_rate_ratio"] >= 2 and s["second_vm_stored"] <= 0.25 and s["clone8_memory_ratio"] <= 1.3
        report.print_table("In the lab, medians [lowest to highest]", ("side", "save s", "first tick s", "first answer s", "resident s", "stored bytes"),
                           [(name, *(f"{s[name][key]['median']:,.2f} [{s[name][key]['min']:,.2f} to {s[name][key]['max']:,.2f}]"
                                     for key in ("save_s", "first_tick_s", "first_answer_s", "resident_s", "stored_bytes"))) for name in ("godwit", "qemu", "large")])
        report.print_table("Godwit over QEMU", ("first tick", "first answer", "2 GiB over 512 MiB", "save rate", "second VM stores", "8 clones over 1"),
                           [(s["first_tick_ratio"], s["first_answer_ratio"], s["first_tick_size_ratio"], s["save_rate_ratio"], s["second_vm_stored"], s["clone8_memory_ratio"])])
    return {"ok": ok, **result}
