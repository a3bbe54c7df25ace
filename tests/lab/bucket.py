# SPDX-License-Identifier: Apache-2.0
"""An S3 server for a lab's hosts: Ceph's gateway (tests/s3/rgw.py) on this machine, reached at the driver's address on the lab's network."""

import os
import socket
import sys
import threading
from pathlib import Path

from gwlab import system
from gwlab.state import State

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "s3"))
import rgw  # noqa: E402

ADDRESS = "10.77.0.254"


def _listen(lab, ret):
    """A socket belongs to the network of the thread that makes it."""
    system.enter_network(State(lab.name).require()["supervisor"])
    ret.append(socket.create_server((ADDRESS, 0)))
    system.enter_network(os.getpid())


def _copy(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for s in (source, target):
            s.close()


class Bucket:
    """`with Bucket(lab, hosts) as bucket`: bucket.url names it, and the hosts have its credentials."""

    def __init__(self, lab, hosts):
        self.lab, self.hosts, self.server = lab, hosts, rgw.Server()

    def __enter__(self):
        self.server.__enter__()
        made = []
        thread = threading.Thread(target=_listen, args=(self.lab, made))
        thread.start()
        thread.join()
        self.listener = made[0]
        threading.Thread(target=self._relay, daemon=True).start()
        self.url = f"s3://lab/repo?endpoint=http://{ADDRESS}:{self.listener.getsockname()[1]}"
        text = f"[default]\naws_access_key_id = {self.server.KEY}\naws_secret_access_key = {self.server.SECRET}\n"
        for host in self.hosts:
            self.lab.sh(host, "mkdir -p ${HOME:-}/.aws; cat > ${HOME:-}/.aws/credentials", input=text)
        return self

    def __exit__(self, *_):
        self.listener.close()
        self.server.stop()

    def _relay(self):
        while True:
            try:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.server.port))
            except OSError:
                return
            for pair in ((client, server), (server, client)):
                threading.Thread(target=_copy, args=pair, daemon=True).start()
