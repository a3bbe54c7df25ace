# SPDX-License-Identifier: Apache-2.0
"""Godwit's agents in a lab's hosts, and guests for them: what the demo, the lab tests and the benches share."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from labtest import GUEST_IP, Background, guest, wait_for

TOP = Path(__file__).resolve().parents[2]
NBD_PORT = 10809
MAC = "52:54:00:77:00:64"

CONFIG = """[agent]
name = {host}
listen = 0.0.0.0:7410
data-listen = 0.0.0.0:7411

[tls]
ca = /etc/godwit/ca.crt
cert = /etc/godwit/{host}.crt
key = /etc/godwit/{host}.key

[peers]
{peers}

[share]
enable = {share}
"""


class Failed(Exception):
    """A godwit command that should have succeeded did not."""


class Cluster:
    """godwitd on each host, with certificates of one CA. `bin` is the build whose `godwit` makes the certificates. What an earlier
    test left in the hosts is gone first. VMs share memory only when asked for: it costs the small hosts time."""

    def __init__(self, lab, hosts=("h1", "h2"), bin=TOP / "build/bin", failpoints="", share=False):
        self.lab, self.hosts, self.bin, self.sharing = lab, hosts, Path(bin), share
        self._make_certificates()
        self.start_over(failpoints)

    def start_over(self, failpoints=""):
        """Agents without a VM."""
        for host in self.hosts:
            self.kill_agent(host)
            self.lab.sh(host, "pkill -9 -x godwit-vmm; while pidof godwit-vmm > /dev/null; do usleep 20000; done; rm -rf /var/lib/godwit /run/godwit; "
                              "for t in $(ls /sys/class/net/br0/brif); do [ $t = eth0 ] || ip link del $t; done")
            self.start_agent(host, failpoints)

    def _make_certificates(self):
        self.pki = tempfile.TemporaryDirectory(prefix="godwit-pki-")
        work = self.pki.name
        self._pki("init", work)
        self._pki("issue", "--dir", work, "--client", "operator")
        for host in self.hosts:
            self._pki("issue", "--dir", work, "--ip", self.ip(host), host)
            peers = "\n".join(f"{h} = {self.ip(h)}:7410" for h in self.hosts if h != host)
            Path(work, "godwitd.conf").write_text(CONFIG.format(host=host, peers=peers, share="yes" if self.sharing else "no"))
            self.lab.put(host, f"{work}/ca.crt", f"{work}/{host}.crt", f"{work}/{host}.key", f"{work}/godwitd.conf", "/etc/godwit")

    def _pki(self, *words):
        done = subprocess.run([self.bin / "godwit", "pki", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise Failed(f"godwit pki {' '.join(words)}: {done.stdout.strip()}")

    def ip(self, host):
        return self.lab.lab("ip", host).stdout.strip()

    def start_agent(self, host, failpoints=""):
        """Starts godwitd; VMs that it starts take its failpoints along."""
        self.lab.sh(host, f"GODWIT_FAILPOINTS='{failpoints}' setsid godwitd --config /etc/godwit/godwitd.conf "
                          f">> /tmp/godwitd.log 2>&1 < /dev/null & echo $! > /tmp/godwitd.pid")
        wait_for(lambda: self.godwit(host, "ls", check=False).returncode == 0, f"{host}: godwitd answers")

    def kill_agent(self, host):
        self.lab.sh(host, "test -e /tmp/godwitd.pid || exit; kill -9 $(cat /tmp/godwitd.pid); "
                          "while kill -0 $(cat /tmp/godwitd.pid) 2>/dev/null; do usleep 10000; done; rm /tmp/godwitd.pid", check=False)

    def restart_agent(self, host, failpoints=""):
        self.kill_agent(host)
        self.start_agent(host, failpoints)

    def godwit(self, host, *words, check=True):
        done = self.lab.sh(host, "godwit", *words, check=False)
        if check and done.returncode:
            raise Failed(f"{host}: godwit {' '.join(map(str, words))}: exit {done.returncode}: {done.stderr.strip()} {done.stdout.strip()}")
        return done

    def address(self, host):
        """As --host takes it."""
        return f"{host}@{self.ip(host)}"

    def operator(self, host, *words, check=True):
        """The command line on this machine, which reaches all hosts as a client."""
        keys = ("--ca", f"{self.pki.name}/ca.crt", "--cert", f"{self.pki.name}/operator.crt", "--key", f"{self.pki.name}/operator.key")
        done = self.lab.exec(self.bin / "godwit", "--host", self.address(host), *keys, *words, check=False)
        if check and done.returncode:
            raise Failed(f"godwit {' '.join(map(str, words))}: exit {done.returncode}: {done.stderr.strip()} {done.stdout.strip()}")
        return done

    def show(self, host, vm):
        """What `godwit show --json` says, or None when this host does not know the VM or its agent is not there."""
        done = self.godwit(host, "show", vm, "--json", check=False)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def state(self, host, vm):
        info = self.show(host, vm)
        return info["state"] if info else None

    def running_on(self, vm):
        """The hosts that run the VM's vCPUs, by their own word. One that moves runs until it is stopped for the switch-over."""
        def runs(info):
            return info["state"] == "running" or (info["state"] == "moving" and info["move"]["phase"] in ("", "connect", "copy"))
        return [host for host in self.hosts if (info := self.show(host, vm)) and runs(info)]

    def create(self, host, text):
        with tempfile.TemporaryDirectory() as work:
            file = Path(work, "guest.vm")
            file.write_text(text)
            self.lab.put(host, file, "/tmp")
        self.godwit(host, "create", "/tmp/guest.vm")

    def move(self, host, vm, to, *options, check=True):
        """Moves; returns the result that `godwit move --json` ends with (None when check is off and there is none)."""
        done = self.godwit(host, "move", vm, to, "--json", *options, check=check)
        last = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
        if check and "result" not in last:
            raise Failed(f"godwit move {vm} {to} told no result: {done.stdout[-500:]}")
        return last.get("result")

    def init_repository(self, url):
        """A repository that hosts open by their own keys; returns the words that name it."""
        first, options = self.hosts[0], ("--repo", url, "--passphrase-file", "/tmp/passphrase")
        self.lab.sh(first, "echo correct horse > /tmp/passphrase")
        made = json.loads(self.godwit(first, "repo", "init", *options, "--json").stdout)
        for host in self.hosts:
            certificate = self.lab.sh(host, f"cat /etc/godwit/{host}.crt").stdout
            self.lab.sh(first, f"cat > /tmp/{host}.crt", input=certificate)
            self.godwit(first, "repo", "key", "add", *options, "--new-cert", f"/tmp/{host}.crt")
        return url, "--fingerprint", made["fingerprint"]

    def check_repository(self, host, repo):
        """All of it is read; raises unless all is well."""
        self.godwit(host, "repo", "check", "--read-data", "--repo", repo[0], "--key-file", f"/etc/godwit/{host}.key", *repo[1:])

    def remove(self, vm):
        """Ends and forgets the VM wherever it is."""
        for host in self.hosts:
            self.godwit(host, "stop", vm, "--force", check=False)
            self.godwit(host, "rm", vm, check=False)

    def logs(self):
        parts = []
        for host in self.hosts:
            done = self.lab.sh(host, "tail -n 30 /tmp/godwitd.log; tail -n 20 /var/lib/godwit/vms/*/vmm.log", check=False)
            parts.append(f"--- {host}\n{done.stdout}{done.stderr}")
        return "\n".join(parts)


class Guest:
    """A guest for the cluster: its kernel and initrd in the hosts' /srv, its VM file."""

    def __init__(self, lab, hosts=("h1", "h2"), kind="6.12-cloud", name="guest", memory_mib=256, cpus=1, jobs="heartbeat", disk=None,
                 root=None, ip=GUEST_IP, mac=MAC):
        self.name, self.memory_mib, self.cpus, self.disk, self.ip, self.mac = name, memory_mib, cpus, disk, ip, mac
        kernel, initrd = guest("kernel", kind), guest("initrd", kind)
        for host in hosts:
            lab.put(host, kernel, initrd, "/srv")
        self.kernel, self.initrd = f"/srv/{kernel.name}", f"/srv/{initrd.name}"
        self.cmdline = f"console=ttyS0 quiet gw.ip={ip}/24 gw.run={jobs}" + (f" gw.root={root}" if root else "")

    def vm_file(self):
        lines = ["[vm]", f"name = {self.name}", f"cpus = {self.cpus}", f"memory = {self.memory_mib}M", f"kernel = {self.kernel}",
                 f"initrd = {self.initrd}", f"cmdline = {self.cmdline}"]
        if self.disk:
            lines += ["[disk vda]", f"path = {self.disk}"]
        return "\n".join([*lines, "[net eth0]", "bridge = br0", f"mac = {self.mac}", ""])


class SharedDisk:
    """A disk image that all hosts see: an nbdkit of the driver. The image is a private copy, gone with this object."""

    def __init__(self, lab, image=None, size_mib=None, port=NBD_PORT):
        self.directory = tempfile.TemporaryDirectory(prefix="godwit-disk-")
        file = Path(self.directory.name, "disk.img")
        if image:
            shutil.copyfile(image, file)
        else:
            with open(file, "wb") as f:
                os.truncate(f.fileno(), size_mib << 20)
        self.uri = f"nbd://10.77.0.254:{port}"
        self.server = Background(lab.exec_command("nbdkit", "--exit-with-parent", "-f", "-i", "10.77.0.254", "-p", port, "file", file),
                                 env=lab.environment)
        wait_for(lambda: lab.exec("bash", "-c", f"exec 3<>/dev/tcp/10.77.0.254/{port}", check=False).returncode == 0, "nbdkit listens")

    def close(self):
        self.server.kill()
        self.directory.cleanup()
