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
from relay import Relay  # noqa: E402

ADDRESS = "10.77.0.254"


def _listen(lab, ret):
    """A socket belongs to the network of the thread that makes it."""
    system.enter_network(State(lab.name).require()["supervisor"])
    ret.append(socket.create_server((ADDRESS, 0)))
    system.enter_network(os.getpid())


class Bucket:
    """`with Bucket(lab, hosts) as bucket`: bucket.url names it, the hosts have its credentials, and bucket.relay can cut them off."""

    def __init__(self, lab, hosts):
        self.lab, self.hosts, self.server = lab, hosts, rgw.Server()

    def __enter__(self):
        self.server.__enter__()
        made = []
        thread = threading.Thread(target=_listen, args=(self.lab, made))
        thread.start()
        thread.join()
        self.relay = Relay(("127.0.0.1", self.server.port), made[0])
        self.url = f"s3://lab/repo?endpoint=http://{ADDRESS}:{self.relay.port}"
        text = f"[default]\naws_access_key_id = {self.server.KEY}\naws_secret_access_key = {self.server.SECRET}\n"
        for host in self.hosts:
            self.lab.sh(host, "mkdir -p ${HOME:-}/.aws; cat > ${HOME:-}/.aws/credentials", input=text)
        return self

    def __exit__(self, *_):
        self.relay.close()
        self.server.stop()
