# SPDX-License-Identifier: Apache-2.0
"""The driver's side of labd (../labd.c tells the protocol): run commands in a host, put and get files."""

import os
import select
import socket
import stat
import struct
import time
from . import control
from .errors import LabError

PORT = 7001
CHUNK = 128 * 1024


def _connect(state, host, timeout):
    """A connection to the host's labd, within timeout seconds."""
    answer, fd = control.ask(state, {"do": "socket", "host": host})
    s = socket.socket(fileno=fd)
    s.settimeout(timeout)
    try:
        s.connect((answer["address"], PORT))
    except OSError as e:
        s.close()
        raise LabError(f"{host} does not answer: {e.strerror or e} (lab status, lab console {host})") from e
    s.settimeout(None)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # A host that lost its power answers no more: notice within about 15 s.
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)
    return s


def _frame(kind, body=b""):
    return kind + struct.pack("<I", len(body)) + body


def _receive(s, size):
    parts = []
    while size:
        part = s.recv(min(size, 1 << 20))
        if not part:
            raise LabError("the host closed the connection")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _receive_frame(s):
    head = _receive(s, 5)
    return head[:1], _receive(s, struct.unpack("<I", head[1:])[0])


class Frames:
    """Cuts a byte stream into frames as it comes."""

    def __init__(self):
        self.data = bytearray()

    def feed(self, data):
        self.data += data
        while len(self.data) >= 5:
            size = struct.unpack_from("<I", self.data, 1)[0]
            if len(self.data) < 5 + size:
                return
            yield bytes(self.data[:1]), bytes(self.data[5:5 + size])
            del self.data[:5 + size]


def argv_of(words):
    """One word is a shell line; several are a command with its arguments, which keep their blanks and quotes."""
    if len(words) == 1:
        return ["/bin/sh", "-c", words[0]]
    return ["/bin/sh", "-c", '"$@"', "sh", *words]


class _Input:
    """The local stdin on its way to the command: read only when the last piece has left, so that neither side can block the
    other."""

    def __init__(self, fd):
        self.fd = fd
        self.buffer = b""

    def read(self):
        try:
            data = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.buffer = _frame(b"i", data)
        else:
            self.buffer, self.fd = _frame(b"c"), None

    def send(self, s):
        try:
            self.buffer = self.buffer[s.send(self.buffer):]
        except BlockingIOError:
            pass


def execute(state, host, words, stdin=None, on_stdout=None, on_stderr=None, connect_timeout=10):
    """Runs a command in a host and returns its exit code. stdin is a descriptor or None; output goes to the two functions."""
    with _connect(state, host, connect_timeout) as s:
        s.sendall(_frame(b"E", b"\0".join(os.fsencode(w) for w in argv_of(words))))
        s.setblocking(False)
        pipe, frames = _Input(stdin), Frames()
        if stdin is None:
            pipe.buffer = _frame(b"c")
        while True:
            poll = select.poll()
            poll.register(s, select.POLLIN | (select.POLLOUT if pipe.buffer else 0))
            if pipe.fd is not None and not pipe.buffer:
                poll.register(pipe.fd, select.POLLIN)
            ready = dict(poll.poll())
            if pipe.fd in ready:
                pipe.read()
            events = ready.get(s.fileno(), 0)
            if events & select.POLLOUT:
                try:
                    pipe.send(s)
                except OSError:
                    pipe.buffer, pipe.fd = b"", None
            if not events & ~select.POLLOUT:
                continue
            try:
                data = s.recv(1 << 20)
            except OSError as e:
                raise LabError(f"{host}: connection lost: {e.strerror}") from e
            if not data:
                raise LabError(f"{host}: connection lost before the command ended")
            for kind, body in frames.feed(data):
                if kind == b"o" and on_stdout:
                    on_stdout(body)
                elif kind == b"e" and on_stderr:
                    on_stderr(body)
                elif kind == b"f":
                    raise LabError(f"{host}: {body.decode(errors='replace')}")
                elif kind == b"x":
                    return struct.unpack("<I", body)[0]


def put_file(state, host, source, target):
    """Copies a local regular file to an absolute path in the host; it appears there whole or not at all."""
    try:
        with open(source, "rb") as f, _connect(state, host, 10) as s:
            st = os.fstat(f.fileno())
            if not stat.S_ISREG(st.st_mode):
                raise LabError(f"{source}: not a regular file")
            s.sendall(_frame(b"P", struct.pack("<IQ", stat.S_IMODE(st.st_mode), st.st_size) + os.fsencode(target)))
            s.sendfile(f)
            kind, body = _receive_frame(s)
    except OSError as e:
        raise LabError(f"{source}: {e.strerror or e}") from e
    if kind == b"f":
        raise LabError(f"{host}: {body.decode(errors='replace')}")


def get_file(state, host, source, target):
    """Copies a file of the host to a local path."""
    with _connect(state, host, 10) as s:
        s.sendall(_frame(b"G", os.fsencode(source)))
        kind, body = _receive_frame(s)
        if kind != b"s":
            raise LabError(f"{host}: {body.decode(errors='replace')}")
        mode, left = struct.unpack("<IQ", body)
        try:
            with open(target, "wb") as f:
                os.fchmod(f.fileno(), mode)
                while left:
                    data = s.recv(min(left, 1 << 20))
                    if not data:
                        raise LabError(f"{host}: connection lost in the middle of {source}")
                    f.write(data)
                    left -= len(data)
        except OSError as e:
            raise LabError(f"{target}: {e.strerror or e}") from e


def wait_ready(state, host, deadline):
    """Waits until the host executes commands and has /dev/kvm."""
    while True:
        try:
            if execute(state, host, ["test -c /dev/kvm"], connect_timeout=1) == 0:
                return
            raise LabError(f"{host} is up but has no /dev/kvm (lab console {host})")
        except LabError as e:
            if time.monotonic() > deadline or "/dev/kvm" in str(e):
                raise
        status, _ = control.ask(state, {"do": "status"})
        if status["hosts"][host]["failure"]:
            raise LabError(f"{host} did not start: {status['hosts'][host]['failure']}")
        time.sleep(0.05)
