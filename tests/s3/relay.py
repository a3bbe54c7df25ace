# SPDX-License-Identifier: Apache-2.0
"""A TCP relay that tests can cut: connections are reset, or stand still as on a network that has gone.

    relay = Relay(("127.0.0.1", port))
    relay.cut(frozen=True); relay.heal()
    relay.cut_after(100000, frozen=False)   # when so many more bytes have passed
"""

import contextlib
import socket
import struct
import threading

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST


class Relay:
    def __init__(self, target, listener=None):
        self.target = target
        self.listener = listener or socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.lock = threading.Lock()
        self.sockets = set()   # under lock, as the next three
        self.refusing = False
        self.budget = None     # bytes until it is cut
        self.frozen = False    # how it is cut then
        self.passed = 0        # bytes so far
        self.flow = threading.Event()
        self.flow.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, frozen=False):
        with self.lock:
            self._cut_locked(frozen)

    def cut_after(self, count, frozen=False):
        with self.lock:
            self.budget, self.frozen = count, frozen

    def heal(self):
        with self.lock:
            self.refusing, self.budget = False, None
            self.flow.set()

    def is_cut(self):
        with self.lock:
            return self.refusing or not self.flow.is_set()

    def close(self):
        self.cut()
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self.listener.close()

    def _cut_locked(self, frozen):
        self.budget = None
        if frozen:
            self.flow.clear()
            return
        self.refusing = True
        for s in self.sockets:
            _reset(s)
        self.flow.set()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client):
        self.flow.wait()
        try:
            server = socket.create_connection(self.target)
        except OSError:
            server = client
        with self.lock:
            if self.refusing or server is client:
                _reset(client)
                _reset(server)
                client.close()
                server.close()
                return
            self.sockets |= {client, server}
        back = threading.Thread(target=self._copy, args=(server, client), daemon=True)
        back.start()
        self._copy(client, server)
        back.join()
        with self.lock:
            self.sockets -= {client, server}
            client.close()
            server.close()

    def _copy(self, source, target):
        try:
            while data := source.recv(65536):
                self._count(len(data))
                self.flow.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            _reset(source)
            _reset(target)

    def _count(self, count):
        with self.lock:
            self.passed += count
            if self.budget is not None:
                self.budget -= count
                if self.budget < 0:
                    self._cut_locked(self.frozen)


def _reset(s):
    """Whoever closes it last resets it; whoever reads or writes it ends now."""
    with contextlib.suppress(OSError):
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        s.shutdown(socket.SHUT_RDWR)
