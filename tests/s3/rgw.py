# SPDX-License-Identifier: Apache-2.0
"""A real S3 server for tests: Ceph's object gateway (radosgw) with the monitor and the object store that it needs, on loopback, in memory.

    with rgw.Server() as server:
        server.url            # http://127.0.0.1:PORT, server.tls_url with server.ca
        server.environment    # AWS_... for a client
        server.timings        # seconds that each step took

The daemons are told by the kernel to die when the thread that started them does, whatever ends it; their folder goes with the server, or
when the next one starts.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
PREFIX = "godwit-rgw-"
PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None, use_errno=True)


def install():
    """Installs what is missing (root), as all that tests need; returns the seconds that took."""
    begun = time.monotonic()
    if not all(shutil.which(program) for program in ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin")):
        subprocess.run([TOP / "tests/lab/deps"], check=True)
    return time.monotonic() - begun


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def remove_leftovers():
    """Folders of servers whose process is gone."""
    for folder in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        owner = folder.name[len(PREFIX):].split("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(folder, ignore_errors=True)


class Server:
    KEY, SECRET = "AKGODWITTEST", "godwit-test/secret+key"

    def __init__(self, memory=2 << 30):
        self.memory = memory
        self.daemons = []  # the gateway last
        self.timings = {}
        self.folder = None

    def __enter__(self):
        self.timings["install"] = install()
        remove_leftovers()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        for daemon in reversed(self.daemons):
            daemon.kill()
        for daemon in self.daemons:
            daemon.wait()
        self.daemons = []
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command, timeout=60):
        done = subprocess.run([*map(str, command)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()[-1000:]}")
        return done.stdout

    def ceph(self, *arguments):
        return self.run("ceph", "-c", self.conf, *arguments)

    def daemon(self, program, *arguments):
        owner = os.getpid()

        def die_with_us():
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != owner:
                os._exit(1)

        with open(self.folder / f"log/{program}.out", "wb") as out:
            self.daemons.append(subprocess.Popen([program, "-c", self.conf, *arguments, "-f"], stdin=subprocess.DEVNULL, stdout=out,
                                                 stderr=out, preexec_fn=die_with_us))

    @contextlib.contextmanager
    def timed(self, step):
        begun = time.monotonic()
        yield
        self.timings[step] = time.monotonic() - begun

    def wait_until(self, condition, what, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            for daemon in self.daemons:
                if daemon.poll() is not None:
                    raise RuntimeError(f"{daemon.args[0]} ended with {daemon.returncode}: {self.said(daemon.args[0])}")
            if time.monotonic() > end:
                raise TimeoutError(f"{what}: not within {seconds} s; {self.said('radosgw')}")
            time.sleep(0.05)

    def said(self, program):
        with contextlib.suppress(OSError):
            return (self.folder / f"log/{program}.out").read_text(errors="replace")[-1500:]
        return ""

    def start(self):
        for name in ("mon", "osd", "run", "log"):
            (self.folder / name).mkdir()
        self.port, self.tls_port = free_port(), free_port()
        self.url, self.tls_url = f"http://127.0.0.1:{self.port}", f"https://127.0.0.1:{self.tls_port}"
        self.make_certificate()
        self.conf = self.folder / "ceph.conf"
        self.cluster_id = str(uuid.uuid4())
        mon = f"[v2:127.0.0.1:{free_port()}]"
        self.conf.write_text(self.configuration(mon))
        begun = time.monotonic()
        with self.timed("monitor"):
            self.start_monitor(mon)
        with self.timed("store"):
            self.start_store()
        with self.timed("gateway"):
            self.daemon("radosgw", "-n", "client.rgw")
            self.wait_until(self.answers, "the gateway answers")
        with self.timed("user"):
            self.run("radosgw-admin", "-c", self.conf, "user", "create", "--uid=godwit", "--display-name=godwit",
                     f"--access-key={self.KEY}", f"--secret-key={self.SECRET}")
        self.timings["start"] = time.monotonic() - begun

    def configuration(self, mon):
        settings = {
            "fsid": self.cluster_id, "mon_initial_members": "a", "mon_host": mon, "public_addr": "127.0.0.1",
            # Without real keys the gateway stands still.
            "auth_cluster_required": "cephx", "auth_service_required": "cephx", "auth_client_required": "cephx",
            "osd_pool_default_size": 1, "osd_pool_default_min_size": 1, "mon_allow_pool_size_one": "true",
            "osd_pool_default_pg_num": 1, "osd_pool_default_pgp_num": 1, "osd_pool_default_pg_autoscale_mode": "off",
            "mon_max_pg_per_osd": 1000, "osd_crush_chooseleaf_type": 0,
            "osd_objectstore": "memstore", "memstore_device_bytes": self.memory,
            "osd_class_load_list": "*", "osd_class_default_list": "*",
            # A monitor alone waits for nobody.
            "paxos_propose_interval": 0.05, "paxos_min_wait": 0.01, "mon_tick_interval": 1, "osd_heartbeat_interval": 1,
            "keyring": self.folder / "keyring", "mon_data": self.folder / "mon", "osd_data": self.folder / "osd",
            "run_dir": self.folder / "run", "admin_socket": self.folder / "run/$name.asok", "pid_file": self.folder / "run/$name.pid",
            "log_file": self.folder / "log/$name.log",
            "rgw_frontends": f"beast endpoint=127.0.0.1:{self.port} ssl_endpoint=127.0.0.1:{self.tls_port} "
                             f"ssl_certificate={self.folder}/tls.crt ssl_private_key={self.folder}/tls.key",
            "rgw_dns_name": "localhost", "rgw_thread_pool_size": 64,
        }
        return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())

    def make_certificate(self):
        self.ca = self.folder / "tls.crt"
        self.run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", 2,
                 "-keyout", self.folder / "tls.key", "-out", self.ca, "-subj", "/CN=localhost",
                 "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost")

    def start_monitor(self, mon):
        keyring, monmap = self.folder / "keyring", self.folder / "monmap"
        self.run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        self.run("ceph-authtool", keyring, "--gen-key", "-n", "client.admin", "--cap", "mon", "allow *", "--cap", "osd", "allow *")
        self.run("monmaptool", "--create", "--clobber", "--fsid", self.cluster_id, "--addv", "a", mon, monmap)
        self.run("ceph-mon", "-c", self.conf, "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)
        self.daemon("ceph-mon", "-i", "a")
        self.ceph("-s", "--connect-timeout", "30")

    def start_store(self):
        osd = str(uuid.uuid4())
        self.ceph("osd", "new", osd)
        keys = self.ceph("auth", "get-or-create", "osd.0", "mon", "allow profile osd", "osd", "allow *", "mgr", "allow profile osd")
        keys += self.ceph("auth", "get-or-create", "client.rgw", "mon", "allow rw", "osd", "allow rwx")
        with open(self.folder / "keyring", "a") as keyring:
            keyring.write(keys)
        self.run("ceph-osd", "-c", self.conf, "-i", 0, "--mkfs", "--osd-uuid", osd)
        self.ceph("osd", "crush", "add", "0", "1.0", "host=h", "root=default")
        self.daemon("ceph-osd", "-i", "0")
        self.wait_until(lambda: "1 up" in self.ceph("osd", "stat"), "the object store is up")

    def answers(self):
        try:
            urllib.request.urlopen(self.url, timeout=5).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    @property
    def environment(self):
        return {"AWS_ACCESS_KEY_ID": self.KEY, "AWS_SECRET_ACCESS_KEY": self.SECRET, "AWS_ENDPOINT_URL": self.url, "AWS_REGION": "us-east-1",
                "AWS_CA_BUNDLE": str(self.ca)}
