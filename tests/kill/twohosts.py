# SPDX-License-Identifier: Apache-2.0
"""Two agents on loopback with VMMs that need no KVM (tests/unit/agent-vmm.h), and repositories in a directory or a bucket; whatever goes over
a network goes through relays that can be cut (tests/s3/relay.py)."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "s3"))
import rgw  # noqa: E402
from relay import Relay  # noqa: E402

TOP = rgw.TOP
BIN = TOP / "build/bin"
VM = "v"
PATIENCE = 120  # seconds; only failures cost it

CONFIG = """[agent]
name = {name}
listen = 127.0.0.1:{port}
data-listen = 127.0.0.1:{data}
socket = {dir}/{name}.sock
state = {dir}/{name}.state
run = {dir}/{name}.run
vmm = {vmm}
[tls]
ca = {dir}/pki/ca.crt
cert = {dir}/pki/{name}.crt
key = {dir}/pki/{name}.key
[peers]
{other} = 127.0.0.1:{relay}
[share]
enable = no
[memory]
reserve = 0%
"""


class Failed(Exception):
    """Something that must not happen, did."""


def wait_for(condition, what):
    end = time.monotonic() + PATIENCE
    while not (result := condition()):
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {PATIENCE} s")
        time.sleep(0.02)
    return result


def die_with_us():
    rgw.libc.prctl(rgw.PR_SET_PDEATHSIG, signal.SIGKILL)


class Agent:
    def __init__(self, site, name, other):
        self.site, self.name, self.other = site, name, other
        self.port, self.process = rgw.free_port(), None
        self.relay = Relay(("127.0.0.1", self.port))  # what the other one reaches it by

    def configure(self):
        (self.site.dir / f"{self.name}.conf").write_text(CONFIG.format(
            name=self.name, other=self.other.name, port=self.port, data=rgw.free_port(), relay=self.other.relay.port, dir=self.site.dir,
            vmm=TOP / "build/tests/kill-vmm"))

    def start(self):
        with open(self.site.dir / f"{self.name}.log", "ab") as log:
            self.process = subprocess.Popen([BIN / "godwitd", "--config", self.site.dir / f"{self.name}.conf"], stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, preexec_fn=die_with_us,
                                            env={**os.environ, "GW_TEST_DIR": str(self.site.dir), "GW_TEST_REMEMBER": "1"})
        wait_for(lambda: self.run("ls").returncode == 0, f"agent {self.name} answers")

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait()
        self.process = None

    def command(self, *words):
        return [BIN / "godwit", "--socket", self.site.dir / f"{self.name}.sock", *map(str, words)]

    def run(self, *words):
        return self.site.run(self.command(*words))

    def show(self):
        """None: it does not know the VM."""
        done = self.run("show", VM, "--json")
        if done.returncode not in (0, 3):
            raise Failed(f"{self.name}: {done.stdout}")
        return json.loads(done.stdout) if done.returncode == 0 else None

    def vmms(self):
        """Process ids of its VMMs."""
        found, mark = [], f"{self.site.dir}/{self.name}.run/".encode()
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                text = entry.read_bytes()
            except OSError:
                continue
            if text.startswith(b"godwit-vmm\0") and mark in text:
                found.append(int(entry.parent.name))
        return found


class Site:
    """`with Site(server)`: server, an rgw.Server, for repositories in a bucket, or None for directories."""

    def __init__(self, server):
        self.server = server
        self.network = Relay(("127.0.0.1", server.port)) if server else None

    def __enter__(self):
        self.dir = Path(tempfile.mkdtemp(prefix="godwit-kill-"))
        h1, h2 = Agent(self, "h1", None), Agent(self, "h2", None)
        h1.other, h2.other, self.agents = h2, h1, (h1, h2)
        (self.dir / "kernel").write_text("no kernel at all")
        (self.dir / "passphrase").write_text("correct horse\n")
        (self.dir / "v.vm").write_text(f"[vm]\nname = {VM}\nmemory = 64M\nkernel = {self.dir}/kernel\n")
        self.must([BIN / "godwit", "pki", "init", self.dir / "pki"])
        for agent in self.agents:
            self.must([BIN / "godwit", "pki", "issue", "--dir", self.dir / "pki", "--ip", "127.0.0.1", agent.name])
            agent.configure()
            agent.start()
        self.repo, self.copy = self.make_repository("repo"), self.make_repository("copy")
        return self

    def __exit__(self, *_):
        for agent in self.agents:
            agent.kill()
            for pid in agent.vmms():
                os.kill(pid, signal.SIGKILL)
            wait_for(lambda agent=agent: not agent.vmms(), "VMMs end")
            agent.relay.close()
        if self.network:
            self.network.close()
        shutil.rmtree(self.dir)

    def relays(self):
        return [agent.relay for agent in self.agents] + ([self.network] if self.network else [])

    def run(self, command):
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")

    def must(self, command):
        done = self.run(command)
        if done.returncode:
            raise Failed(f"{' '.join(map(str, command))}: exit {done.returncode}: {done.stdout.strip()[-1500:]}")
        return done.stdout

    def make_repository(self, name):
        """Options that tell the agents of it; they open it by their own keys."""
        url = f"file://{self.dir}/{name}"
        if self.server:
            url = f"s3://kill/{self.dir.name}/{name}?endpoint=http://127.0.0.1:{self.network.port}&retry=2"
        secret = ("--repo", url, "--passphrase-file", self.dir / "passphrase")
        made = json.loads(self.must([BIN / "godwit", "repo", "init", *secret, "--json"]))
        for agent in self.agents:
            self.must([BIN / "godwit", "repo", "key", "add", *secret, "--new-cert", self.dir / f"pki/{agent.name}.crt"])
        return url, "--fingerprint", made["fingerprint"]

    def repo_command(self, repo, *words):
        return [BIN / "godwit", "repo", *words, "--repo", repo[0], "--key-file", self.dir / "pki/h1.key", *repo[1:]]

    def told(self, what):
        """How often the VMMs told this (tests/unit/agent-vmm.h)."""
        try:
            return (self.dir / f"{VM}.{what}").stat().st_size
        except FileNotFoundError:
            return 0

    def logs(self):
        return "\n".join(f"---- {p.name}\n" + "\n".join(p.read_text(errors="replace").splitlines()[-40:]) for p in sorted(self.dir.rglob("*.log")) if p.name != "events.log")
