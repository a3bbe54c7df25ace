#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The lab tests itself: commands, files, network faults, and that nothing stays behind."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from labtest import LAB_DIR, PATIENCE, Lab, Tests, wait_for  # noqa: E402

tests = Tests()
HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages")


def ping(lab, host, target, count=1):
    return lab.sh(host, "ping", "-c", count, "-W", 1, target, check=False).returncode == 0


def round_trip_ms(lab, host, target):
    """The smallest of some round trips: an emulated host adds milliseconds at random."""
    out = lab.sh(host, "ping", "-c", 5, "-i", "0.2", target).stdout
    return float(re.search(r"= ([0-9.]+)/", out).group(1))


@tests.test
def exit_code_and_streams(lab):
    done = lab.sh("h1", "echo out; echo err >&2; exit 37", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (37, "out\n", "err\n"), done
    assert lab.sh("h1", "kill -9 $$", check=False).returncode == 128 + 9


@tests.test
def several_words_keep_their_blanks(lab):
    assert lab.sh("A", "printf", "%s|", "a  b", "$HOME", "'").stdout == "a  b|$HOME|'|"


@tests.test
def stdin_passes_through(lab):
    data = "x" * 3_000_000
    assert lab.sh("h1", "cat", input=data).stdout == data
    # A command that does not read its stdin must end all the same.
    assert lab.sh("h1", "true", input=data).returncode == 0


@tests.test
def hosts_have_kvm(lab):
    for host in ("h1", "h2"):
        lab.sh(host, "test -c /dev/kvm && test -c /dev/net/tun && test -c /dev/userfaultfd && grep -q cgroup2 /proc/mounts")
        assert lab.sh(host, "hostname").stdout.strip() == host


@tests.test
def cmpxchg16b_is_right_or_absent(lab):
    """Guests die of wrong flags now and then: see gwlab/emulator.py."""
    if "cx16" not in lab.sh("h1", "cat /proc/cpuinfo").stdout.split():
        return
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(["gcc", "-O1", "-static", "-mcx16", "-o", f"{work}/cmpxchg16b", LAB_DIR / "cmpxchg16b.c"], check=True)
        lab.put("h1", f"{work}/cmpxchg16b", "/tmp")
    lab.sh("h1", "/tmp/cmpxchg16b")


@tests.test
def many_commands_at_once(lab):
    running = [lab.background("h1", f"read -r x < /proc/uptime; sleep 1; echo {n}") for n in range(20)]
    assert sorted(int(b.process.communicate(timeout=PATIENCE)[0]) for b in running) == list(range(20))


@tests.test
def client_that_dies_takes_its_command_along(lab):
    client = lab.background("h1", "sleep 4321 & setsid sleep 8765 & wait")
    wait_for(lambda: lab.sh("h1", "pgrep -f 'sleep (4321|8765)' | wc -l").stdout.strip() >= "3", "both sleeps run")
    client.kill()
    wait_for(lambda: lab.sh("h1", "pgrep -x -f 'sleep 4321'", check=False).returncode == 1, "the command's end")
    lab.sh("h1", "pgrep -x -f 'sleep 8765'")
    lab.sh("h1", "pkill -x -f 'sleep 8765'")


@tests.test
def background_jobs_live_on(lab):
    lab.sh("h1", "sleep 5555 > /dev/null 2>&1 &")
    lab.sh("h1", "pgrep -x -f 'sleep 5555' && pkill -x -f 'sleep 5555'")


@tests.test
def files_go_and_come(lab):
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "file"
        source.write_bytes(os.urandom(100_000_000))
        source.chmod(0o750)
        lab.put("h1", source, "/tmp/there")
        assert lab.sh("h1", "stat -c '%a %s' /tmp/there/file").stdout.split() == ["750", "100000000"]
        lab.get("h1", "/tmp/there/file", "/proc/version", f"{directory}/back")
        assert (Path(directory) / "back/file").read_bytes() == source.read_bytes()
        assert "Linux" in (Path(directory) / "back/version").read_text()
        lab.sh("h1", "rm -r /tmp/there")


@tests.test
def trees_go_and_running_programs_are_replaced(lab):
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "tree/sub").mkdir(parents=True)
        (Path(directory) / "tree/sub/leaf").write_text("leaf")
        lab.put("h1", f"{directory}/tree", "/tmp")
        assert lab.sh("h1", "cat /tmp/tree/sub/leaf").stdout == "leaf"
        lab.sh("h1", "cp /bin/busybox /tmp/sleep; /tmp/sleep 60 > /dev/null 2>&1 & echo")
        (Path(directory) / "sleep").write_text("#!/bin/sh\necho new\n")
        (Path(directory) / "sleep").chmod(0o755)
        lab.put("h1", f"{directory}/sleep", "/tmp")
        assert lab.sh("h1", "/tmp/sleep").stdout == "new\n"
        lab.sh("h1", "pkill -f '^/tmp/sleep 60'")


@tests.test
def errors_are_clear(lab):
    for words, text in ((("sh", "h9", "true"), "no host h9"), (("sh", "nobody", "true"), "no such host"),
                        (("get", "h1", "/nowhere", "/tmp"), "No such file"), (("put", "h1", "/nowhere", "/tmp"), "No such file"),
                        (("net", "h1", "h1", "cut"), "are the same"), (("net", "h1", "h2", "delay", "much"), "milliseconds"),
                        (("net", "h1", "sideways"), "down|up"), (("exec", "/nowhere"), "No such file"), (("up",), "up already")):
        done = lab.lab(*words, check=False)
        assert done.returncode and text in done.stderr, (words, done)
    done = subprocess.run([LAB_DIR / "lab", "status"], env={**os.environ, "LAB": "nosuchlab"}, capture_output=True, text=True)
    assert done.returncode == 1 and "not up" in done.stderr, done


@tests.test
def cable_out_and_in(lab):
    assert ping(lab, "h1", "h2")
    lab.net("h2", "down")
    assert not ping(lab, "h1", "h2")
    assert ping(lab, "h1", "driver")
    # The management path does not care.
    lab.sh("h2", "true")
    lab.net("h2", "up")
    wait_for(lambda: ping(lab, "h1", "h2"), "h2 answers again")


@tests.test
def cut_and_heal_between_two(lab):
    lab.net("A", "B", "cut")
    assert not ping(lab, "h1", "h2") and not ping(lab, "h2", "h1")
    assert ping(lab, "h1", "driver") and ping(lab, "h2", "driver")
    assert lab.status()["links"] == {"h1 h2": "cut"}
    lab.net("A", "B", "heal")
    assert ping(lab, "h1", "h2")
    lab.net("driver", "h2", "cut")
    assert not ping(lab, "h2", "driver") and ping(lab, "h2", "h1")
    lab.net("driver", "h2", "heal")
    assert ping(lab, "h2", "driver")
    assert lab.status()["links"] == {}


def transfer(lab, source, target, producer):
    """Sends what a command writes to /tmp/received of the target; returns the seconds by the target's clock."""
    clock = "cut -d' ' -f1 /proc/uptime"
    lab.sh(target, "cat > /tmp/sink; chmod +x /tmp/sink", input=f"#!/bin/sh\n({clock}; cat > /tmp/received; {clock}) > /tmp/times\n")
    lab.sh(target, "rm -f /tmp/times; busybox nc -l -p 5001 -e /tmp/sink > /dev/null 2>&1 &")
    wait_for(lambda: lab.sh(target, "ss -Hltn sport = :5001").stdout, "nc listens")
    lab.sh(source, f"{producer} | busybox nc {target} 5001")
    times = wait_for(lambda: (t := lab.sh(target, "cat /tmp/times").stdout.split()) and len(t) == 2 and t, "all bytes")
    return float(times[1]) - float(times[0])


def transfer_mbit(lab, source, target, size=2_000_000):
    return size * 8 / 1e6 / transfer(lab, source, target, f"head -c {size} /dev/zero")


@tests.test
def delay_between_two(lab):
    lab.net("h1", "h2", "delay", 100)
    assert 200 <= round_trip_ms(lab, "h1", "h2") < 300
    assert round_trip_ms(lab, "h1", "driver") < 100
    # Large segments pass it whole: the data must arrive unchanged.
    lab.sh("h1", "head -c 8000000 /dev/urandom > /tmp/sent")
    transfer(lab, "h1", "h2", "cat /tmp/sent")
    assert lab.sh("h1", "md5sum < /tmp/sent").stdout == lab.sh("h2", "md5sum < /tmp/received").stdout
    lab.sh("h1", "rm /tmp/sent")
    lab.sh("h2", "rm /tmp/received")
    lab.net("h1", "h2", "delay", 0)
    assert round_trip_ms(lab, "h1", "h2") < 100


@tests.test
def rate_between_two(lab):
    lab.net("h1", "h2", "rate", 8)
    slow, back = transfer_mbit(lab, "h1", "h2"), transfer_mbit(lab, "h2", "h1")
    lab.net("h1", "h2", "heal")
    free = transfer_mbit(lab, "h1", "h2", 20_000_000)
    # A busy machine makes all of them slower, but never faster than the limit (with its burst).
    assert 3 < slow < 9 and 3 < back < 9 and free > 16, (slow, back, free)


@tests.test
def delay_rate_and_cut_together(lab):
    lab.net("h1", "h2", "rate", 8)
    lab.net("h1", "h2", "delay", 40)
    assert 80 <= round_trip_ms(lab, "h1", "h2") < 180
    rate = transfer_mbit(lab, "h1", "h2")
    lab.net("h1", "h2", "cut")
    assert not ping(lab, "h1", "h2")
    lab.net("h1", "h2", "heal")
    assert ping(lab, "h1", "h2") and 2 < rate < 9, rate


@tests.test
def driver_is_on_the_network(lab):
    out = lab.exec("ip", "-j", "address", "show", "dev", "drv").stdout
    assert json.loads(out)[0]["addr_info"][0]["local"] == "10.77.0.254"
    assert lab.exec("sh", "-c", "exit 9", check=False).returncode == 9


@tests.test
def power_off_and_on(lab):
    lab.sh("h2", "touch /tmp/mark")
    lab.lab("power", "h2", "off")
    assert not lab.status()["hosts"]["h2"]["running"]
    lab.lab("power", "h2", "on")
    lab.sh("h2", "test ! -e /tmp/mark && test -c /dev/kvm")
    wait_for(lambda: ping(lab, "h1", "h2"), "h2 answers again")


@tests.test
def panic_shows_on_the_console(lab):
    assert "GUEST" not in lab.lab("console", "h2").stdout
    lab.background("h2", "echo c > /proc/sysrq-trigger")
    wait_for(lambda: "Kernel panic" in lab.lab("console", "h2").stdout, "the panic's text")
    lab.lab("power", "h2", "off")
    lab.lab("power", "h2", "on")


def processes_of(lab):
    """All processes of a lab: those in its network and its guardian."""
    facts = json.loads((lab.directory / "lab.json").read_text())
    inode = facts["netns"]
    found = {facts["guardian"]}
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.stat(f"/proc/{entry}/ns/net").st_ino == inode:
                found.add(int(entry))
        except OSError:
            pass
    return facts, found


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


def check_nothing_left(name, victims, kill_signal):
    """Kills some of a fresh lab's processes and expects that all the others, and what they hold, go."""
    before = int(HUGE_PAGES.read_text())
    lab = Lab(hosts=1, name=name, memory="512M", cpus=1)
    lab.net("h1", "driver", "delay", 1)
    inside = subprocess.Popen(lab.exec_command("sleep", "1000"), env=lab.environment)
    # Guardian, supervisor, emulator, a netdelay each way, sleep.
    wait_for(lambda: len(processes_of(lab)[1]) >= 6, "lab exec is inside")
    facts, pids = processes_of(lab)
    assert (not facts["hugepages"] or int(HUGE_PAGES.read_text()) == before + facts["hugepages"])
    for who in victims:
        os.kill(facts[who], kill_signal)
    if len(victims) == 2:
        # Nobody is left to tidy up: the lab's own processes end all the same, the rest goes with the next lab command.
        wait_for(lambda: all(gone(pid) for pid in pids - {inside.pid}), "the lab's processes end")
        lab.lab("down", check=False)
    wait_for(lambda: all(gone(pid) for pid in pids), f"processes end after {victims}")
    inside.wait(timeout=PATIENCE)
    wait_for(lambda: not lab.directory.exists(), "state directory goes")
    assert int(HUGE_PAGES.read_text()) == before


@tests.test
def supervisor_killed_leaves_nothing(lab):
    check_nothing_left("test-killed-s", ["supervisor"], signal.SIGKILL)


@tests.test
def guardian_killed_leaves_nothing(lab):
    check_nothing_left("test-killed-g", ["guardian"], signal.SIGKILL)


@tests.test
def both_killed_leave_nothing(lab):
    check_nothing_left("test-killed-b", ["guardian", "supervisor"], signal.SIGKILL)


@tests.test
def lab_ends_with_its_owner(lab):
    owner = subprocess.Popen(["sleep", "1000"])
    environment = {**os.environ, "LAB": "test-owner"}
    subprocess.run([LAB_DIR / "lab", "up", "--hosts", "1", "--memory", "512M", "--owner", str(owner.pid)], env=environment, check=True,
                   stdout=subprocess.DEVNULL)
    owner.kill()
    owner.wait()
    wait_for(lambda: not Path("/run/godwit-lab/test-owner").exists(), "the lab ends")


@tests.test
def up_that_is_killed_leaves_nothing(lab):
    before = int(HUGE_PAGES.read_text())
    state = Path("/run/godwit-lab/test-up")
    up = subprocess.Popen([LAB_DIR / "lab", "up", "--hosts", "1", "--memory", "512M"], env={**os.environ, "LAB": "test-up"})
    wait_for((state / "control").exists, "the supervisor runs")
    up.kill()
    up.wait()
    wait_for(lambda: not state.exists(), "the lab ends")
    assert int(HUGE_PAGES.read_text()) == before


if __name__ == "__main__":
    tests.main(hosts=2, memory="1024M")
