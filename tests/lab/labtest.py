# SPDX-License-Identifier: Apache-2.0
"""What lab tests and bench drivers written in Python share: a lab of one's own, commands in its hosts, waiting for events,
probes of guests, and the result line.

A test script:

    from labtest import Lab, Tests, wait_for
    tests = Tests()

    @tests.test
    def host_answers(lab):
        assert lab.sh("h1", "echo hi").stdout == "hi\\n"

    if __name__ == "__main__":
        tests.main(hosts=2)
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

LAB_DIR = Path(__file__).resolve().parent
GUEST_IP = "10.77.0.100"
NO_ANSWER = 2  # exit status of `workload check`


class Skip(Exception):
    """Raised by a test that cannot run here; it says why, and is counted."""


def tool(name, *arguments):
    """Runs one of the lab's tools and returns what it printed."""
    done = subprocess.run([LAB_DIR / name, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} {' '.join(map(str, arguments))}: {done.stderr.strip()}")
    return done.stdout.strip()


def guest(what, *arguments):
    """The path of a guest artefact: guest("kernel", "6.12-cloud")."""
    return Path(tool("guest", what, *arguments))


# Seconds that anything is waited for: far more than it takes on a slow machine that has other work, as only failures cost it.
PATIENCE = 300


def wait_for(condition, what=None, poll=0.05):
    """Waits until condition() returns something true, and returns that; fails after PATIENCE seconds."""
    end = time.monotonic() + PATIENCE
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > end:
            raise TimeoutError(f"{what or getattr(condition, '__name__', 'condition')}: not within {PATIENCE} s")
        time.sleep(poll)


class Background:
    """A program of the driver that runs beside the test; it ends with the lab at the latest."""

    def __init__(self, command, **kwargs):
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)

    def wait_ready(self):
        """Waits for the line "ready" on stderr, which probe and redis-writer print when the first answer has come."""
        fd = self.process.stderr.fileno()
        os.set_blocking(fd, False)
        seen = b""

        def ready():
            nonlocal seen
            # Not by the file object, whose decoder takes no "nothing yet" for an answer.
            with contextlib.suppress(BlockingIOError):
                seen += os.read(fd, 65536)
            if self.process.poll() is not None:
                raise RuntimeError(f"ended with {self.process.returncode}: {seen.decode(errors='replace')}")
            return b"ready\n" in seen

        wait_for(ready, f"{self.process.args}: ready")
        return self

    def finish(self):
        """Asks it to end (SIGTERM) and returns the JSON object it prints."""
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=PATIENCE)
        if not out.strip():
            raise RuntimeError(f"{self.process.args} printed no result: {err}")
        return json.loads(out.strip().splitlines()[-1])

    def kill(self):
        self.process.kill()
        self.process.wait()


class Client(Background):
    """Asks a guest from outside; result() gives the figures since the last call and goes on."""

    def result(self):
        self.process.send_signal(signal.SIGUSR1)
        return json.loads(self.process.stdout.readline())

    def outage(self):
        """The longest time without an answer since the last call, in ms, once the guest answers: one that is still open is not over."""
        longest = 0

        def closed():
            nonlocal longest
            seen = self.result()
            longest = max(longest, seen["longest_gap_ms"])
            return seen["received"] > 0 and seen["open_gap_ms"] < 50
        wait_for(closed, "the guest answers")
        return longest


class Probe(Client):
    """Probes a guest's heartbeat each millisecond."""

    def __init__(self, lab, ip=GUEST_IP, port=7000, *options):
        super().__init__(lab.exec_command(guest("program", "probe"), ip, port, *options), env=lab.environment)


class RedisWriter(Client):
    """Writes to redis and waits for each acknowledgement."""

    def __init__(self, lab, ip=GUEST_IP, *options):
        super().__init__(lab.exec_command(LAB_DIR / "redis-writer", ip, *options), env=lab.environment)


class Lab:
    """A lab that lives as long as this process, or as a `with` block. `bin`: Godwit's programs for the hosts, instead of BIN's or the tree's own."""

    def __init__(self, hosts=2, name=None, memory=None, cpus=None, with_qemu=False, bin=None):
        self.name = name or f"test-{os.getpid()}"
        self.environment = {**os.environ, "LAB": self.name, **({"BIN": str(bin)} if bin else {})}
        command = ["up", "--hosts", hosts, "--owner", os.getpid()]
        command += ["--memory", memory] if memory else []
        command += ["--cpus", cpus] if cpus else []
        command += ["--with-qemu"] if with_qemu else []
        self.lab(*command)
        self.directory = Path("/run/godwit-lab") / self.name

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.down()

    def lab(self, *words, check=True, **kwargs):
        """Any lab command; raises unless it succeeds, or returns its CompletedProcess with check=False."""
        if "input" not in kwargs:
            kwargs.setdefault("stdin", subprocess.DEVNULL)
        done = subprocess.run([LAB_DIR / "lab", *map(str, words)], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, **kwargs)
        if check and done.returncode:
            raise RuntimeError(f"lab {' '.join(map(str, words))}: exit {done.returncode}: {done.stderr.strip()} {done.stdout.strip()}")
        return done

    def sh(self, host, *words, check=True, **kwargs):
        """A command in a host: .stdout, .stderr, .returncode. One word is a shell line."""
        return self.lab("sh", host, *words, check=check, **kwargs)

    def background(self, host, *words):
        """A command in a host that runs on; killing the returned Background ends it there too."""
        return Background([LAB_DIR / "lab", "sh", "-n", host, *map(str, words)], env=self.environment)

    def put(self, host, *files_and_directory):
        self.lab("put", host, *files_and_directory)

    def get(self, host, *files_and_directory):
        self.lab("get", host, *files_and_directory)

    def net(self, *words):
        self.lab("net", *words)

    def exec_command(self, *words):
        return [LAB_DIR / "lab", "exec", *map(str, words)]

    def exec(self, *words, check=True, **kwargs):
        """A command of the driver inside the lab's network."""
        return self.lab("exec", *words, check=check, **kwargs)

    def status(self):
        return json.loads(self.lab("status", "--json").stdout)

    def check_workload(self, ip=GUEST_IP):
        """The workloads' own verdict: (no faults, what they said). A guest that has just arrived may take a while to answer."""
        def verdict():
            done = self.exec(guest("program", "workload"), "check", ip, check=False)
            return done if done.returncode != NO_ANSWER else None

        done = wait_for(verdict, f"the workload at {ip} answers")
        return done.returncode == 0, (done.stdout + done.stderr).strip()

    def down(self):
        self.lab("down", check=False)


class Tests:
    """Collects test functions, runs them on one lab and prints the result line `N passed, N failed[, N skipped]`."""

    def __init__(self):
        self.functions = []

    def test(self, function):
        self.functions.append(function)
        return function

    def main(self, **lab_options):
        wanted = [f for f in self.functions if not sys.argv[1:] or f.__name__ in sys.argv[1:]]
        counts = {"passed": 0, "failed": 0, "skipped": 0}
        try:
            with Lab(**lab_options) as lab:
                for function in wanted:
                    counts[_run_one(function, lab)] += 1
        except RuntimeError as e:
            print(f"FAIL no lab: {e}")
            counts["failed"] += 1
        print(f"{counts['passed']} passed, {counts['failed']} failed" + (f", {counts['skipped']} skipped" if counts["skipped"] else ""))
        sys.exit(1 if counts["failed"] else 0)


# What VMMs and guests do, before the next test removes them. Twice the threads' CPU time (ticks) and KVM's counters: what stands still and what
# does not.
_EVIDENCE = """
grep -q debugfs /proc/mounts || mount -t debugfs debugfs /sys/kernel/debug
for pid in $(pidof godwit-vmm); do
    for i in 1 2; do
        for counter in exits halt_exits halt_wakeup irq_injections mmio_exits; do
            echo -n "$counter $(cat /sys/kernel/debug/kvm/$counter) "
        done; echo
        for task in /proc/$pid/task/*; do
            echo "$(cat $task/comm) $(cat $task/wchan) $(cut -d ' ' -f 3,14,15 $task/stat)"
        done
        kill -USR1 $pid # registers go to its log
        sleep 1
    done
done
for vm in $(ls /var/lib/godwit/vms 2> /dev/null); do
    echo "== log and console of $vm"; tail -n 40 /var/lib/godwit/vms/$vm/vmm.log
    sleep 2 | timeout 5 godwit console $vm | tail -c 2000
done
"""


def evidence(lab):
    """What the hosts show after a failure; empty for tests that run no VMM."""
    text = ""
    for host in ("h1", "h2"):
        with contextlib.suppress(Exception):  # the failure itself must be told
            done = lab.sh(host, _EVIDENCE, check=False, timeout=60)
            text += f"---- {host}\n{done.stdout}{done.stderr}" if done.stdout.strip() else ""
    return text


def _run_one(function, lab):
    began = time.monotonic()
    try:
        function(lab)
        outcome, detail = "passed", ""
    except Skip as e:
        outcome, detail = "skipped", f": {e}"
    except Exception:  # whatever a test raises is its failure
        outcome, detail = "failed", "\n" + traceback.format_exc() + evidence(lab)
    word = {"passed": "ok  ", "failed": "FAIL", "skipped": "SKIP"}[outcome]
    print(f"{word} {function.__name__} ({time.monotonic() - began:.1f} s){detail}", flush=True)
    return outcome
