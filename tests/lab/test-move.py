#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Live moves through the agents: RAM equal, disk and connections go on, nothing readable on the wire, cancel, time-outs, wrong peers."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from cluster import TOP, Cluster, Guest, SharedDisk  # noqa: E402
from labtest import GUEST_IP, PATIENCE, Background, Probe, RedisWriter, Tests, guest, wait_for  # noqa: E402
from soak import soak  # noqa: E402

tests = Tests()
# A page's worth of this lies in guest RAM while the wire is watched.
MARKER = "GODWIT-MARKER-7f3a91c2-PLAIN-TEXT-PAGE."
CONTROL = "GODWIT-CONTROL-19bd-IN-THE-CLEAR"


def cluster_with(lab, jobs="heartbeat", share=False, **kwargs):
    cluster = Cluster(lab, share=share)
    vm = Guest(lab, name="vm", jobs=jobs, **kwargs)
    cluster.create("h1", vm.vm_file())
    cluster.godwit("h1", "start", "vm")
    return cluster


def end(cluster, *others):
    cluster.remove("vm")
    for other in others:
        other.kill()
    for host in cluster.hosts:
        cluster.kill_agent(host)


@tests.test
def four_moves_with_equal_ram(lab):
    gaps = soak(lab, 4)
    print(f"     outside blackouts: {' '.join(f'{g:.0f}' for g in gaps)} ms")


@tests.test
def two_moves_with_the_bitmap(lab):
    for host in ("h1", "h2"):
        lab.sh(host, "mv /usr/bin/godwit-vmm /usr/bin/godwit-vmm.real; printf '#!/bin/sh\\nexec /usr/bin/godwit-vmm.real --dirty-bitmap \"$@\"\\n' "
                     "> /usr/bin/godwit-vmm; chmod +x /usr/bin/godwit-vmm")
    try:
        soak(lab, 2)
    finally:
        for host in ("h1", "h2"):
            lab.sh(host, "mv /usr/bin/godwit-vmm.real /usr/bin/godwit-vmm")


def redis_time(lab):
    """Seconds since the epoch by the guest's wall clock, from redis' answer to TIME; a busy guest may take long to give it."""
    client = (f"import socket; link = socket.create_connection(('{GUEST_IP}', 6379), 60); link.sendall(b'TIME\\r\\n'); "
              "lines = link.makefile(); print([lines.readline().strip() for _ in range(3)][2])")
    return int(lab.exec("python3", "-c", client).stdout)


@tests.test
def redis_goes_on_and_the_clock_is_right(lab):
    disk = SharedDisk(lab, image=guest("rootfs"))
    cluster = cluster_with(lab, jobs="heartbeat,redis", memory_mib=384, cpus=1, disk=disk.uri, root="/dev/vda")
    probe = Probe(lab).wait_ready()
    writer = RedisWriter(lab).wait_ready()
    try:
        for source, target in (("h1", "h2"), ("h2", "h1")):
            for client in (probe, writer):
                client.result()
            report = cluster.move(source, "vm", target)
            seen, told = [client.outage() for client in (probe, writer)], report["blackout_us"] / 1000
            assert report["encrypted"] and report["phase"] == "done", report
            print(f"     {source} -> {target}: outside {seen[0]:.1f} ms (redis {seen[1]:.1f} ms), told {told:.1f} ms, {report['bytes_sent'] >> 20} MiB")
            assert cluster.running_on("vm") == [target]
            assert cluster.state(source, "vm") in (None, "moved")
            earliest = int(lab.sh(target, "date +%s").stdout)
            guest_time = redis_time(lab)
            latest = int(lab.sh(target, "date +%s").stdout)
            assert earliest - 1 <= guest_time <= latest + 1, f"guest {guest_time}, host {earliest} to {latest}"
        written = writer.finish()
        assert written["lost"] == 0 and written["reconnects"] == 0 and written["acked"] > 100, written
    finally:
        end(cluster, probe)
        disk.close()


@tests.test
def a_guest_that_shares_moves(lab):
    """It checks its own memory while pages are merged, written, given to the balloon and moved, with a twin that shares on either host."""
    cluster = cluster_with(lab, jobs="heartbeat,dirty:10:16", memory_mib=160, share=True)
    for host, number in (("h1", 1), ("h2", 2)):
        twin = Guest(lab, name=f"twin{number}", memory_mib=160, ip=f"10.77.0.{110 + number}", mac=f"52:54:00:77:02:0{number}", jobs="heartbeat,dirty:1:16")
        cluster.create(host, twin.vm_file())
        cluster.godwit(host, "start", twin.name)
    probe = Probe(lab).wait_ready()

    def shares(host):
        vm = next((v for v in json.loads(cluster.godwit(host, "share", "--json").stdout)["vms"] if v["vm"] == "vm"), {})
        return vm.get("attached") and (vm["godwit_share_shared_bytes"] or 0) > 4 << 20

    try:
        for source, target in (("h1", "h2"), ("h2", "h1")):
            wait_for(lambda: shares(source), f"it shares on {source}", poll=1)
            cluster.godwit(source, "balloon", "vm", "--target", "130M")
            report = cluster.move(source, "vm", target, "--verify-digest")
            assert report["phase"] == "done", report
            cluster.godwit(target, "balloon", "vm", "--target", "160M")
            faultless, verdict = lab.check_workload()
            assert faultless, verdict
        wait_for(lambda: shares("h1"), "it shares again", poll=1)
        faultless, verdict = lab.check_workload()
        assert faultless, verdict
    finally:
        for name in ("twin1", "twin2"):
            cluster.remove(name)
        end(cluster, probe)


@tests.test
def nothing_readable_on_the_wire(lab):
    """The same capture finds a marker that is sent in the clear, so that finding none means something."""
    cluster = cluster_with(lab, memory_mib=256)
    probe = Probe(lab).wait_ready()
    with tempfile.TemporaryDirectory() as work:
        capture = Path(work, "wire.pcap")
        watcher = Background(lab.exec_command("tcpdump", "-i", "h1-data", "-p", "-U", "-B", "65536", "-s", "0", "-w", capture), env=lab.environment)
        wait_for(lambda: capture.exists() and capture.stat().st_size > 0, "tcpdump listens")
        # Two MiB of the marker in the guest's page cache, by its console.
        script = f"i=0; while [ $i -lt 1024 ]; do for j in 1 2 3 4 5 6 7 8 9 10; do echo '{MARKER}{MARKER}{MARKER}{MARKER}{MARKER}'; done; i=$((i+1)); done > /tmp/marks; echo planted-$(wc -c < /tmp/marks)\n"
        lab.sh("h1", "cat > /tmp/script", input=script)
        console = lab.background("h1", "(cat /tmp/script; exec sleep 1000) | godwit console vm > /tmp/said")
        wait_for(lambda: "planted-2" in lab.sh("h1", "cat /tmp/said", check=False).stdout, "the marker is planted", poll=0.5)
        console.kill()
        report = cluster.move("h1", "vm", "h2")
        # A datagram in the clear proves that the capture would have seen the marker, and that it is complete up to here.
        def control_is_captured():
            lab.sh("h1", "bash", "-c", f"echo '{CONTROL}' > /dev/udp/10.77.0.2/9 || true")
            return CONTROL.encode() in capture.read_bytes()

        wait_for(control_is_captured, "the control marker in the capture", poll=0.5)
        watcher.process.terminate()
        watcher.process.wait()
        data = capture.read_bytes()
        assert len(data) > report["bytes_sent"] * 0.9, f"captured {len(data)} of {report['bytes_sent']}"
        assert MARKER.encode() not in data, f"{data.count(MARKER.encode())} markers on the wire"
    end(cluster, probe)


@tests.test
def cancel_leaves_it_running(lab):
    cluster = cluster_with(lab, jobs="heartbeat,dirty:10:32")
    probe = Probe(lab).wait_ready()
    for _ in range(3):
        lab.net("h1", "h2", "rate", "20")
        mover = lab.background("h1", "godwit", "move", "vm", "h2", "--json")
        wait_for(lambda: cluster.state("h1", "vm") == "moving", "moving")
        cluster.godwit("h1", "cancel", "vm")
        out, _ = mover.process.communicate(timeout=PATIENCE)
        lab.net("h1", "h2", "heal")
        assert mover.process.returncode != 0, out
        assert wait_for(lambda: cluster.running_on("vm") == ["h1"] and cluster.state("h2", "vm") is None, "only at the source")
        assert not lab.sh("h2", "pidof godwit-vmm", check=False).stdout.strip()
    cluster.move("h1", "vm", "h2", "--verify-digest")
    assert lab.check_workload()[0]
    end(cluster, probe)


@tests.test
def timeout_fails_or_stops_as_asked(lab):
    cluster = cluster_with(lab, jobs="heartbeat,dirty:40:64")
    probe = Probe(lab).wait_ready()
    lab.net("h1", "h2", "rate", "50")
    done = cluster.godwit("h1", "move", "vm", "h2", "--downtime", "20", "--timeout", "20", "--policy", "fail", check=False)
    assert done.returncode != 0 and cluster.running_on("vm") == ["h1"], done
    report = cluster.move("h1", "vm", "h2", "--downtime", "20", "--timeout", "15", "--policy", "stop")
    assert report["phase"] == "done" and cluster.running_on("vm") == ["h2"], report
    lab.net("h1", "h2", "heal")
    faultless, verdict = lab.check_workload()
    assert faultless, verdict
    end(cluster, probe)


@tests.test
def agents_readopt_running_vms(lab):
    cluster = cluster_with(lab)
    probe = Probe(lab).wait_ready()
    pid = cluster.show("h1", "vm")["pid"]
    cluster.restart_agent("h1")
    info = cluster.show("h1", "vm")
    assert info["state"] == "running" and info["pid"] == pid, info
    cluster.move("h1", "vm", "h2")
    cluster.restart_agent("h2")
    assert cluster.state("h2", "vm") == "running"
    end(cluster, probe)


@tests.test
def paused_vms_move_paused(lab):
    cluster = cluster_with(lab)
    probe = Probe(lab).wait_ready()
    cluster.godwit("h1", "pause", "vm")
    cluster.move("h1", "vm", "h2")
    assert cluster.state("h2", "vm") == "paused"
    cluster.godwit("h2", "resume", "vm")
    probe.result()
    wait_for(lambda: probe.result()["received"] > 0, "the guest answers again")
    end(cluster, probe)


@tests.test
def refusals_are_clear_and_early(lab):
    """What a move needs is checked before the first page: peer, disk, network, name."""
    cluster = cluster_with(lab)
    probe = Probe(lab).wait_ready()

    def refused(word, *arguments):
        done = cluster.godwit("h1", *arguments, check=False)
        assert done.returncode != 0 and word in (done.stdout + done.stderr), (word, done)
        assert cluster.running_on("vm") == ["h1"]

    refused("nohost", "move", "vm", "nohost")
    refused("novm", "move", "novm", "h2")
    # The bridge's address goes on at its port: the host is there, its bridge is not.
    lab.sh("h2", "ip link set eth0 nomaster; ip link del br0; ip address add 10.77.0.2/24 dev eth0")
    try:
        refused("br0", "move", "vm", "h2")
    finally:
        end(cluster, probe)
        lab.lab("power", "h2", "off")
        lab.lab("power", "h2", "on")


@tests.test
def peers_with_wrong_certificates_are_refused(lab):
    cluster = cluster_with(lab)
    probe = Probe(lab).wait_ready()
    with tempfile.TemporaryDirectory() as work:
        godwit = TOP / "build/bin/godwit"
        for words in (["init", work], ["issue", "--dir", work, "--ip", "10.77.0.2", "h2"]):
            subprocess.run([godwit, "pki", *words], check=True, stdout=subprocess.DEVNULL)
        lab.put("h2", f"{work}/ca.crt", f"{work}/h2.crt", f"{work}/h2.key", "/etc/godwit")
    cluster.restart_agent("h2")
    done = cluster.godwit("h1", "move", "vm", "h2", check=False)
    assert done.returncode != 0 and "certificate" in (done.stdout + done.stderr).lower(), done
    assert cluster.running_on("vm") == ["h1"]
    end(cluster, probe)


if __name__ == "__main__":
    tests.main(hosts=2)
