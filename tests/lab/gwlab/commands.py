# SPDX-License-Identifier: Apache-2.0
"""What each `lab` command does."""

import json
import os
import select
import sys
import time
from pathlib import Path
from . import console, control, hostimage, names, programs, remote, supervisor, system
from .emulator import default_cpus, hardware_kvm
from .errors import LabError
from .state import State, reclaim_dead

UP_DEADLINE = 120
# An emulated host boots in 6 to 10 s, on a very busy machine in 40; about one in a hundred hangs on the way.
BOOT_PATIENCE = 60


def parse_memory(text):
    """1536M, 2G or plain MiB."""
    units = {"M": 1, "G": 1024}
    number, unit = (text[:-1], text[-1].upper()) if text and text[-1].upper() in units else (text, "M")
    if not number.isdigit() or not 256 <= int(number) * units[unit] <= 1 << 20:
        raise LabError(f"--memory {text}: a size such as 1536M or 2G, at least 256M")
    return int(number) * units[unit]


def up(args):
    if os.geteuid() != 0:
        raise LabError("root is needed (network namespaces, tap devices)")
    if not 1 <= args.hosts <= names.MAX_HOSTS:
        raise LabError(f"--hosts {args.hosts}: 1 to {names.MAX_HOSTS}")
    cpus = default_cpus() if args.cpus is None else args.cpus
    if not 1 <= cpus <= 32:
        raise LabError(f"--cpus {cpus}: 1 to 32")
    memory = parse_memory(args.memory)
    began = time.monotonic()
    reclaim_dead()
    image = hostimage.build(args.with_qemu)
    state = State()
    lock = state.lock()
    if not lock:
        raise LabError(f"lab {state.name} is up already (lab down, or choose another name by LAB=)")
    config = supervisor.Config(args.hosts, memory, cpus, args.owner, image, programs.program("netdelay"))
    ready = supervisor.launch(state, config)
    lock.close()
    for host in config.hosts:
        _wait_boot(state, host)
    os.write(ready, b"1")
    os.close(ready)
    how = "hardware KVM" if hardware_kvm() else "emulated"
    print(f"lab {state.name}: {', '.join(config.hosts)} up ({how}, {args.memory} and {cpus} CPU{'s' * (cpus > 1)} each) "
          f"after {time.monotonic() - began:.1f} s")


def _wait_boot(state, host):
    """Waits for a host; one that hangs in its boot gets its power cut and a second chance."""
    try:
        remote.wait_ready(state, host, time.monotonic() + BOOT_PATIENCE)
        return
    except LabError as e:
        print(f"lab: {e}; starting it anew\n{console.last_words(state, host)}", file=sys.stderr)
    control.ask(state, {"do": "power", "host": host, "on": False})
    control.ask(state, {"do": "power", "host": host, "on": True})
    try:
        remote.wait_ready(state, host, time.monotonic() + UP_DEADLINE)
    except LabError as e:
        raise LabError(f"{e}\n{console.last_words(state, host)}") from e


def down(_):
    state = State()
    if not state.directory.is_dir():
        print(f"lab {state.name} is not up")
        return
    if state.control.exists() and (facts := state.load()):
        try:
            guardian = os.pidfd_open(facts["guardian"])
        except ProcessLookupError:
            guardian = None
        try:
            control.ask(state, {"do": "down"})
        except LabError:
            pass
        if guardian is not None:
            _wait_end(guardian, state)
    reclaim_dead()
    print(f"lab {state.name}: down")


def _wait_end(pidfd, state):
    """The lab's state goes when everything else has been given back."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(60000):
        raise LabError(f"lab {state.name} does not end (see {state.directory})")


def status(args):
    reclaim_dead()
    state = State()
    answer, _ = control.ask(state, {"do": "status"})
    if args.json:
        print(json.dumps(answer))
        return
    print(f"lab {answer['name']}, driver {answer['driver_ip']}")
    for name, host in answer["hosts"].items():
        condition = "running" if host["running"] else f"off ({host['failure']})"
        print(f"  {name}  {host['ip']}  {condition}, pid {host['pid']}, link {'up' if host['link'] else 'down'}"
              f"{', huge pages' if host['huge_pages'] else ''}")
    for pair, text in answer["links"].items():
        print(f"  {pair}: {text}")


def sh(args):
    state, host = State(), names.host_name(args.host)

    def write_to(fd):
        def write(data):
            while data:
                data = data[os.write(fd, data):]
        return write

    words = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not words:
        raise LabError("sh: which command? (lab sh HOST COMMAND...)")
    try:
        return remote.execute(state, host, words, None if args.no_stdin else 0, write_to(1), write_to(2))
    except BrokenPipeError:
        return 141


def put(args):
    state, host = State(), names.host_name(args.host)
    for source in args.file:
        source = Path(source)
        if source.is_dir():
            _put_tree(state, host, source, f"{args.dir}/{source.name}")
        else:
            _make_directory(state, host, args.dir)
            remote.put_file(state, host, source, f"{args.dir}/{source.name}")


def _make_directory(state, host, directory):
    errors = []
    if remote.execute(state, host, ["mkdir", "-p", directory], on_stderr=errors.append):
        raise LabError(f"{host}: {b''.join(errors).decode(errors='replace').strip()}")


def _put_tree(state, host, source, target):
    for directory, _, files in os.walk(source):
        there = os.path.normpath(os.path.join(target, os.path.relpath(directory, source)))
        _make_directory(state, host, there)
        for file in files:
            remote.put_file(state, host, os.path.join(directory, file), f"{there}/{file}")


def get(args):
    state, host = State(), names.host_name(args.host)
    directory = Path(args.dir)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise LabError(f"{directory}: {e.strerror}") from e
    for file in args.file:
        remote.get_file(state, host, file, directory / os.path.basename(file))


def _value(words, what, unit):
    try:
        number = float(words[0]) if len(words) == 1 else -1.0
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1e6:
        raise LabError(f"{what} needs a number of {unit}")
    return number


NET_USAGE = "net HOST down|up, or net A B cut|heal|delay MS|rate MBIT (A or B may be: driver)"


def net(args):
    state, words = State(), args.words
    if len(words) == 2 and words[1] in ("down", "up"):
        control.ask(state, {"do": "host", "host": names.host_name(words[0]), "up": words[1] == "up"})
        return
    if len(words) < 3:
        raise LabError(NET_USAGE)
    a, b, what, rest = names.member_name(words[0]), names.member_name(words[1]), words[2], words[3:]
    if a == b:
        raise LabError(f"{words[0]} and {words[1]} are the same")
    request = {"do": "link", "a": a, "b": b, "what": what}
    if what == "delay":
        request["value"] = _value(rest, "delay", "milliseconds")
    elif what == "rate":
        request["value"] = _value(rest, "rate", "Mbit/s")
    elif what not in ("cut", "heal") or rest:
        raise LabError(NET_USAGE)
    control.ask(state, request)


def power(args):
    state, host = State(), names.host_name(args.host)
    control.ask(state, {"do": "power", "host": host, "on": args.what == "on"})
    if args.what == "on":
        remote.wait_ready(state, host, time.monotonic() + UP_DEADLINE)


def show_console(args):
    state, host = State(), names.host_name(args.host)
    state.require()
    if sys.stdin.isatty() and sys.stdout.isatty() and not args.log and not args.follow:
        console.converse(state, host)
    else:
        console.show_log(state, host, args.follow)


def execute(args):
    facts = State().require()
    words = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not words:
        raise LabError("exec: which command? (lab exec COMMAND...)")
    system.enter_network(facts["supervisor"])
    try:
        os.execvp(words[0], words)
    except OSError as e:
        raise LabError(f"{words[0]}: {e.strerror}") from e


def ip(args):
    member = names.member_name(args.host)
    if member != names.DRIVER and member not in (facts := State().require())["hosts"]:
        raise LabError(f"lab {facts['name']} has no host {member}")
    print(names.ip(member))
