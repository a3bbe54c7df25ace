# SPDX-License-Identifier: Apache-2.0
"""The supervisor: the one process that owns a lab, and the guardian beside it.

    lab up --fork--> guardian --fork--> supervisor --fork--> emulators, netdelays (die with it)

The guardian waits for the supervisor's end and reclaims; the supervisor ends, and reclaims itself, when the guardian dies.
Until `lab up` has said that all is well the supervisor also ends when `lab up` dies: its pipe shows that.
"""

import os
import selectors
import signal
import socket
import sys
from . import control, hugepages, names
from .emulator import Host
from .errors import LabError
from .network import Network
from .state import reclaim
from .system import network_inode, set_process_name, unshare_network


class Config:
    def __init__(self, hosts, memory_mib, cpus, owner, image, netdelay):
        self.hosts = [f"h{n}" for n in range(1, hosts + 1)]
        self.memory_mib = memory_mib
        self.cpus = cpus
        self.owner = owner
        self.image = image
        self.netdelay = netdelay


class Supervisor:
    def __init__(self, state, config, up_pipe, guardian):
        self.state = state
        self.config = config
        self.up_pipe = up_pipe
        self.guardian = guardian
        self.network = Network(config.hosts, config.netdelay)
        self.hosts = {}
        self.hugepages = 0
        self.selector = selectors.DefaultSelector()
        self.ending = False
        self.goodbye = []

    def start(self):
        unshare_network()
        self._save()
        huge = self._reserve_memory()
        self._save()
        self.network.create()
        for name in self.config.hosts:
            host = Host(name, self.state.directory, self.config.image, self.config.memory_mib, self.config.cpus, huge)
            self.hosts[name] = host
            host.start()
        self._watch()

    def _reserve_memory(self):
        need = self.config.memory_mib * len(self.config.hosts) * 1024 * 1024
        if need > hugepages.memory_available():
            raise LabError(f"{len(self.config.hosts)} hosts of {self.config.memory_mib} MiB need {need >> 20} MiB of memory; "
                           f"{hugepages.memory_available() >> 20} MiB are available")
        pages = -(-self.config.memory_mib * 1024 * 1024 // hugepages.SIZE) * len(self.config.hosts)
        if hugepages.reserve(pages):
            self.hugepages = pages
            return True
        return False

    def _save(self):
        self.state.save({"name": self.state.name, "supervisor": os.getpid(), "guardian": self.guardian, "netns": network_inode(),
                         "hugepages": self.hugepages, "hosts": self.config.hosts, "memory_mib": self.config.memory_mib,
                         "cpus": self.config.cpus})

    def _watch(self):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.state.control))
        listener.listen(64)
        self.selector.register(listener, selectors.EVENT_READ, self._on_request)
        self.selector.register(self.up_pipe, selectors.EVENT_READ, self._on_up)
        self.selector.register(os.pidfd_open(self.guardian), selectors.EVENT_READ, self._on_end)
        if self.config.owner:
            try:
                self.selector.register(os.pidfd_open(self.config.owner), selectors.EVENT_READ, self._on_end)
            except ProcessLookupError as e:
                raise LabError(f"--owner {self.config.owner}: no such process") from e

    def _on_up(self, pipe):
        """`lab up` wrote that the lab is ready, or died before that."""
        if os.read(pipe, 1) == b"":
            self.ending = True
        self.selector.unregister(pipe)
        os.close(pipe)

    def _on_end(self, _):
        self.ending = True

    def _on_request(self, listener):
        connection, _ = listener.accept()
        control.serve(connection, self._answer)

    def run(self):
        while not self.ending:
            for key, _ in self.selector.select():
                key.data(key.fileobj)
        for host in self.hosts.values():
            host.kill()
        # With the guardian alive it is the guardian's work: two must not reclaim, a new lab may start after the first.
        if os.getppid() != self.guardian:
            reclaim(self.state, spare=os.getpid())

    # ---- requests ----

    def _answer(self, request):
        handler = {"status": self._do_status, "host": self._do_host, "link": self._do_link, "socket": self._do_socket,
                   "power": self._do_power, "down": self._do_down}.get(request.get("do"))
        if not handler:
            raise LabError("unknown request")
        return handler(request)

    def _host(self, name):
        if name not in self.hosts:
            raise LabError(f"lab {self.state.name} has no host {name} (it has {', '.join(self.hosts)})")
        return self.hosts[name]

    def _do_status(self, _):
        hosts = {}
        for name, host in self.hosts.items():
            hosts[name] = {"running": host.running(), "pid": host.process.pid, "ip": names.ip(name), "link": self.network.is_up(name),
                           "huge_pages": host.huge, "failure": None if host.running() else host.failure()}
        return {"name": self.state.name, "hosts": hosts, "links": self.network.describe(), "driver_ip": names.DRIVER_IP}, None

    def _do_host(self, request):
        self._host(request["host"])
        self.network.set_host(request["host"], request["up"])
        return {}, None

    def _do_link(self, request):
        for member in (request["a"], request["b"]):
            if member != names.DRIVER:
                self._host(member)
        self.network.change(request["a"], request["b"], request["what"], request.get("value", 0.0))
        return {}, None

    def _do_socket(self, request):
        """An unconnected socket of the lab's network; the asker connects it in its own time."""
        self._host(request["host"])
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
            return {"address": names.management_ip(request["host"])}, s.detach()

    def _do_power(self, request):
        host = self._host(request["host"])
        if request["on"]:
            host.start()
        else:
            host.kill()
        return {}, None

    def _do_down(self, _):
        self.ending = True
        return {}, None


def _report(pipe, text):
    os.write(pipe, text.encode())


def _supervise(state, config, up_pipe, report, guardian):
    set_process_name("lab-supervisor")
    supervisor = Supervisor(state, config, up_pipe, guardian)
    try:
        supervisor.start()
    except (LabError, OSError) as e:
        _report(report, f"failed: {e}")
        for host in supervisor.hosts.values():
            host.kill()
        return
    _report(report, "started")
    os.close(report)
    supervisor.run()


def _detach_streams(state):
    """The supervisor's own complaints go into its state directory; nothing of the caller's terminal stays open."""
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(state.directory / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(null)
    os.close(log)


def _guard(state, config, up_pipe, report):
    """The guardian: starts the supervisor, waits for its end, reclaims."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _detach_streams(state)
    guardian = os.getpid()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _supervise(state, config, up_pipe, report, guardian)
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    os.close(up_pipe)
    os.close(report)
    set_process_name("lab-guardian")
    os.waitpid(child, 0)
    reclaim(state)


def launch(state, config):
    """Starts guardian and supervisor; returns the pipe on which to say that the lab is ready. The caller holds the lab's lock,
    which the two inherit."""
    up_read, up_write = os.pipe()
    report_read, report_write = os.pipe()
    if os.fork() == 0:
        try:
            os.close(up_write)
            os.close(report_read)
            _guard(state, config, up_read, report_write)
        finally:
            os._exit(0)
    os.close(up_read)
    os.close(report_write)
    with os.fdopen(report_read) as report:
        text = report.read()
    if text != "started":
        raise LabError(text.removeprefix("failed: ") or "the supervisor ended at once")
    return up_write
