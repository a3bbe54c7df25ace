# SPDX-License-Identifier: Apache-2.0
"""The peer: Debian's QEMU with KVM in the lab's hosts, driven over QMP from the driver."""

import json
import socket
import time

TAP = "qtap0"
QMP_PORT = 4444
MOVE_PORT = 4445
# QEMU's TLS is slow where AES is emulated, and the guest may dirty memory faster than it sends within the target: then, as an operator
# would, it is given larger ones: after so many seconds, so many ms.
RELAXED = ((40, 3000), (80, 60000))
# Far above what the lab's network carries: QEMU's default of 128 MiB/s would hold it back on a faster one.
BANDWIDTH = 10 << 30


# One guest of many in a host, with a tap of its own on br0; KSM may merge its memory (Debian's QEMU advises it so by default).
QEMU_GUEST = """ip tuntap add dtap{i} mode tap vnet_hdr; ip link set dtap{i} master br0; ip link set dtap{i} up
qemu-system-x86_64 -M q35,accel=kvm,mem-merge=on -cpu host -m {memory}M -smp 1 -nodefaults -display none -no-user-config -kernel {kernel} -initrd {initrd} \
	-append '{cmdline}' -serial file:/tmp/dup-console{i} -netdev tap,id=n0,ifname=dtap{i},script=no,downscript=no \
	-device virtio-net-pci,netdev=n0,mac={mac},romfile= -device virtio-rng-pci -device virtio-balloon-pci,free-page-reporting=on \
	-drive file={disk},format=raw,if=none,id=d0,cache=none -device virtio-blk-pci,drive=d0 -daemonize"""


class QmpError(Exception):
    pass


class Qmp:
    """One QMP connection, to (host, port) or a socket's path; commands are answered in order, events are passed over."""

    def __init__(self, address, deadline):
        while True:
            try:
                self.socket = self._connect(address)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        self.socket.settimeout(60)
        self.file = self.socket.makefile("rw")
        self.file.readline()
        self("qmp_capabilities")

    @staticmethod
    def _connect(address):
        if not isinstance(address, str):
            return socket.create_connection(address, timeout=5)
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(5)
        s.connect(address)
        return s

    def wait_migrated(self, patience):
        end = time.monotonic() + patience
        while (info := self("query-migrate")).get("status") != "completed":
            if info.get("status") in ("failed", "cancelled") or time.monotonic() > end:
                raise QmpError(f"migration {info.get('status')}: {info.get('error-desc', '')}")
            time.sleep(0.005)

    def __call__(self, command, **arguments):
        self.file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.file.flush()
        while True:
            line = self.file.readline()
            if not line:
                raise QmpError(f"{command}: QEMU closed the connection")
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise QmpError(f"{command}: {answer['error']['desc']}")

    def close(self):
        self.file.close()
        self.socket.close()


class QemuVm:
    """One QEMU process in one host, with the same guest as ours: kernel, initrd, command line, disk, tap on br0."""

    def __init__(self, lab, host, guest, incoming=False, tls=False, multifd=False):
        """incoming: waits for a move, or comes from this file of save_to()."""
        self.lab, self.host, self.multifd, self.tls = lab, host, multifd, tls
        lab.sh(host, f"ip tuntap add {TAP} mode tap vnet_hdr; ip link set {TAP} master br0; ip link set {TAP} up")
        command = ["qemu-system-x86_64", "-M", "q35,accel=kvm", "-cpu", "host", "-m", f"{guest.memory_mib}M", "-smp", str(guest.cpus),
                   "-nodefaults", "-display", "none", "-no-user-config",
                   "-kernel", guest.kernel, "-append", guest.cmdline,
                   "-serial", "file:/tmp/qemu-console", "-qmp", f"tcp:0.0.0.0:{QMP_PORT},server=on,wait=off",
                   "-netdev", f"tap,id=n0,ifname={TAP},script=no,downscript=no",
                   "-device", f"virtio-net-pci,netdev=n0,mac={guest.mac},romfile=",
                   "-device", "virtio-rng-pci", "-pidfile", "/tmp/qemu.pid", "-daemonize"]
        if guest.initrd:
            command += ["-initrd", guest.initrd]
        if guest.disk:
            command += ["-drive", f"file={guest.disk},format=raw,if=none,id=d0,cache=none", "-device", "virtio-blk-pci,drive=d0"]
        if tls:
            role = "endpoint=server" if incoming else "endpoint=client,username=qemu"
            lab.sh(host, "mkdir -p /tmp/psk; echo qemu:" + "5a" * 32 + " > /tmp/psk/keys.psk")
            command += ["-object", f"tls-creds-psk,id=tls0,dir=/tmp/psk,{role}"]
        if incoming:
            command += ["-incoming", "defer" if incoming is True else f"exec:cat {incoming}"]
        lab.run(host, command)
        self.qmp = Qmp((lab.ip(host), QMP_PORT), time.monotonic() + 30)
        self._set_up(incoming)

    def _set_up(self, incoming):
        if self.multifd:
            self.qmp("migrate-set-capabilities", capabilities=[{"capability": "multifd", "state": True}])
            self.qmp("migrate-set-parameters", **{"multifd-channels": 2})
        if self.tls:
            self.qmp("migrate-set-parameters", **{"tls-creds": "tls0"})
        self.qmp("migrate-set-parameters", **{"max-bandwidth": BANDWIDTH, "downtime-limit": 50})
        if incoming is True:
            self.qmp("migrate-incoming", uri=f"tcp:0.0.0.0:{MOVE_PORT}")

    def save_to(self, path):
        """The VM is stopped and saved to a file of its host; returns seconds."""
        begin = time.monotonic()
        self.qmp("stop")
        self.qmp("migrate", uri=f"exec:cat > {path}")
        self.qmp.wait_migrated(300)
        return time.monotonic() - begin

    def go_on(self):
        """Runs what comes from a file once it is there: it was stopped when it was saved."""
        while self.qmp("query-status")["status"] == "inmigrate":
            time.sleep(0.005)
        self.qmp("cont")

    def migrate_to(self, other, deadline=180):
        """Moves to `other`; returns seconds from the command to its end, and QEMU's own account of it."""
        begin, limits = time.monotonic(), iter(RELAXED)
        relax_at, limit = next(limits)
        self.qmp("migrate", uri=f"tcp:{self.lab.ip(other.host)}:{MOVE_PORT}")
        while True:
            info = self.qmp("query-migrate")
            now = time.monotonic()
            if info.get("status") == "completed":
                return now - begin, info
            if now - begin > relax_at:
                self.qmp("migrate-set-parameters", **{"downtime-limit": limit})
                relax_at, limit = next(limits, (float("inf"), 0))
            if info.get("status") in ("failed", "cancelled") or now - begin > deadline:
                raise QmpError(f"migration {info.get('status')}: {info.get('error-desc', '')}")
            time.sleep(0.005)

    def end(self):
        try:
            self.qmp("quit")
        except (QmpError, OSError):
            pass
        self.qmp.close()
        self.lab.sh(self.host, f"for i in $(seq 100); do kill -0 $(cat /tmp/qemu.pid) 2>/dev/null || break; sleep 0.05; done; "
                               f"rm -f /tmp/qemu.pid; ip tuntap del {TAP} mode tap", check=False)
