#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""VMs that are suspended to a repository and resumed, on the same host and on another one; snapshots, clones, cancelling, a VMM that is killed."""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from bucket import Bucket  # noqa: E402
from cluster import MAC, TOP, Cluster, Guest  # noqa: E402
from labtest import GUEST_IP, PATIENCE, Probe, Tests, wait_for  # noqa: E402

tests = Tests()
# A repository, and what opens it.
GOLDEN = ("file:///srv/repo", "--passphrase-file", "/etc/godwit/passphrase")


def begin(lab, failpoints="", verbose=False):
    """A VM that checks its own memory, and an empty repository on h1: config and key of the golden one."""
    cluster = Cluster(lab, failpoints=failpoints)
    for host in cluster.hosts:
        lab.sh(host, "rm -rf /srv/repo; printf 'golden passphrase' > /etc/godwit/passphrase")
    with tempfile.TemporaryDirectory() as work:
        Path(work, "repo").mkdir()
        for part in ("config", "keys"):
            source = TOP / "tests/golden/repo-v1" / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, Path(work, "repo", part))
        lab.put("h1", f"{work}/repo", "/srv")
    vm = Guest(lab, name="vm", jobs="heartbeat,dirty:4:16", memory_mib=160)
    cluster.create("h1", vm.vm_file().replace(" quiet ", " loglevel=6 ") if verbose else vm.vm_file())
    cluster.godwit("h1", "start", "vm")
    return cluster, Probe(lab).wait_ready()


def end(cluster, probe):
    cluster.remove("vm")
    probe.kill()
    for host in cluster.hosts:
        cluster.kill_agent(host)


def save(cluster, host, command, *options, repo=GOLDEN):
    done = cluster.godwit(host, command, "vm", "--to", *repo, "--json", *options)
    return json.loads(done.stdout.splitlines()[-1])["result"]


def resume(cluster, host, *options, repo=GOLDEN, check=True):
    return cluster.godwit(host, "resume", "vm", "--from", *repo, *options, check=check)


def knows_its_working_set(cluster, host, repo):
    """The latest snapshot tells what the VM touched last: more than a few pages."""
    shown = json.loads(cluster.godwit(host, "repo", "show", repo[0], "vm", "--key-file", f"/etc/godwit/{host}.key", *repo[1:], "--json").stdout)
    return {part["name"]: part["bytes"] for part in shown["parts"]}.get("working-set", 0) > 50


def answers(lab, probe):
    probe.result()
    wait_for(lambda: probe.result()["received"] > 0, "the guest answers")
    faultless, verdict = lab.check_workload()
    assert faultless, verdict


def all_here(cluster, host):
    wait_for(lambda: cluster.show(host, "vm")["load"]["phase"] == "done", "all of its memory is here", poll=0.5)


@tests.test
def suspended_here_and_resumed_here_and_there(lab):
    """By an S3 bucket that both hosts reach."""
    cluster, probe = begin(lab)
    with Bucket(lab, cluster.hosts) as bucket:
        repo = cluster.init_repository(bucket.url)
        first = save(cluster, "h1", "suspend", "--live", repo=repo)
        assert cluster.state("h1", "vm") == "suspended" and not lab.sh("h1", "pidof godwit-vmm", check=False).stdout.strip()
        assert knows_its_working_set(cluster, "h1", repo)
        refused = cluster.godwit("h1", "start", "vm", check=False)
        assert refused.returncode == 4 and "resume" in refused.stderr, refused
        print("     " + resume(cluster, "h1", repo=repo).stdout.strip())
        answers(lab, probe)
        all_here(cluster, "h1")
        second = save(cluster, "h1", "suspend", repo=repo)
        assert knows_its_working_set(cluster, "h1", repo)
        assert second["generation"] == 2 and second["stored_bytes"] < first["stored_bytes"] / 2, (first, second)
        print("     " + resume(cluster, "h1", "--on", "h2", repo=repo).stdout.strip())
        assert cluster.running_on("vm") == ["h2"] and cluster.state("h1", "vm") == "moved"
        answers(lab, probe)
        # It is h2's now: the snapshot must not run a second time.
        assert resume(cluster, "h1", repo=repo, check=False).returncode == 4 and cluster.running_on("vm") == ["h2"]
        all_here(cluster, "h2")
        cluster.check_repository("h1", repo)
    report = cluster.move("h2", "vm", "h1", "--verify-digest")
    assert report["phase"] == "done" and lab.check_workload()[0], report
    print(f"     stored {first['stored_bytes'] >> 10} KiB, then {second['stored_bytes'] >> 10} KiB; stood still {first['stopped_us'] // 1000} ms live")
    end(cluster, probe)


@tests.test
def moved_between_hosts_that_do_not_reach_each_other(lab):
    """Each reaches the bucket and the operator; by one command, and back by hand."""
    cluster, probe = begin(lab)
    with Bucket(lab, cluster.hosts) as bucket:
        repo = cluster.init_repository(bucket.url)
        lab.net("h1", "h2", "cut")
        try:
            assert cluster.godwit("h1", "move", "vm", "h2", check=False).returncode != 0 and cluster.running_on("vm") == ["h1"]
            probe.result()
            done = cluster.operator("h1", "move", "vm", cluster.address("h2"), "--through", *repo, "--json")
            seen = probe.outage()
            report = json.loads(done.stdout.splitlines()[-1])["result"]
            assert report["moved"] and report["load"]["phase"] == "done", report
            assert cluster.running_on("vm") == ["h2"] and cluster.state("h1", "vm") == "moved"
            answers(lab, probe)
            print(f"     outside {seen:.0f} ms, told {report['stood_still_ms']} ms; {report['save']['round']} rounds")
            assert save(cluster, "h2", "suspend", "--live", repo=repo)["saved"]
            refused = resume(cluster, "h1", repo=repo, check=False)
            assert refused.returncode == 5 and "godwit release vm h1" in refused.stderr, refused
            grant = cluster.operator("h2", "release", "vm", "h1").stdout
            lab.sh("h1", "cat > /tmp/vm.grant", input=grant)
            resume(cluster, "h1", "--grant", "/tmp/vm.grant", repo=repo)
            answers(lab, probe)
            # h2 keeps its word.
            assert cluster.operator("h2", "release", "vm", "h3", check=False).returncode == 4
            assert resume(cluster, "h2", repo=repo, check=False).returncode == 4
            assert cluster.running_on("vm") == ["h1"]
            all_here(cluster, "h1")
        finally:
            lab.net("h1", "h2", "heal")
    end(cluster, probe)


@tests.test
def kept_by_another_host(lab):
    """By the agent of h2, which is killed while h1 fetches memory from it."""
    cluster, probe = begin(lab)
    lab.sh("h2", "rm -rf /srv/kept; printf '[repositories]\\ndirectory = /srv/kept\\nkeep-free = 0\\n' >> /etc/godwit/godwitd.conf")
    cluster.restart_agent("h2")
    repo = cluster.init_repository("godwit://h2/store")
    first = save(cluster, "h1", "suspend", "--live", repo=repo)
    print("     " + resume(cluster, "h1", repo=repo).stdout.strip())
    cluster.kill_agent("h2")
    missing = cluster.show("h1", "vm")["load"]
    cluster.start_agent("h2")
    answers(lab, probe)
    all_here(cluster, "h1")
    second = save(cluster, "h1", "suspend", repo=repo)
    assert second["generation"] == 2 and second["stored_bytes"] < first["stored_bytes"] / 2, (first, second)
    print("     " + resume(cluster, "h1", "--on", "h2", repo=repo).stdout.strip())
    assert cluster.running_on("vm") == ["h2"] and cluster.state("h1", "vm") == "moved"
    answers(lab, probe)
    all_here(cluster, "h2")
    cluster.check_repository("h1", repo)
    print(f"     {missing['bytes'] - missing['bytes_here'] >> 10} KiB were missing when h2's agent was killed")
    end(cluster, probe)


@tests.test
def a_snapshot_goes_on(lab):
    cluster, probe = begin(lab)
    probe.result()
    told = save(cluster, "h1", "snapshot")
    seen = probe.outage()
    print(f"     outside {seen:.0f} ms, told {told['stopped_us'] / 1000:.0f} ms, {told['round']} rounds")
    assert told["saved"] and cluster.running_on("vm") == ["h1"], told
    assert resume(cluster, "h1", check=False).returncode == 4 and cluster.running_on("vm") == ["h1"]
    answers(lab, probe)
    end(cluster, probe)


@tests.test
def cancelled_it_runs_on(lab):
    cluster, probe = begin(lab, failpoints="save-state=delay:8000")
    saver = lab.background("h1", "godwit", "suspend", "vm", "--to", *GOLDEN, "--json")
    wait_for(lambda: (cluster.show("h1", "vm")["save"] or {}).get("phase") == "stop", "it stands still")
    cluster.godwit("h1", "cancel", "vm")
    out, _ = saver.process.communicate(timeout=PATIENCE)
    assert saver.process.returncode == 7 and cluster.running_on("vm") == ["h1"], out
    answers(lab, probe)
    assert save(cluster, "h1", "suspend")["saved"] and resume(cluster, "h1")
    answers(lab, probe)
    end(cluster, probe)


@tests.test
def a_vmm_that_is_killed_leaves_nothing_half(lab):
    cluster, probe = begin(lab, failpoints="save-state=kill")
    done = cluster.godwit("h1", "suspend", "vm", "--to", *GOLDEN, check=False)
    assert done.returncode != 0 and cluster.state("h1", "vm") == "crashed", done
    assert not lab.sh("h1", "find /srv/repo/snapshots -type f 2> /dev/null", check=False).stdout.strip()
    cluster.restart_agent("h1")
    assert resume(cluster, "h1", check=False).returncode != 0
    cluster.godwit("h1", "start", "vm")
    answers(lab, probe)
    assert save(cluster, "h1", "suspend")["saved"] and resume(cluster, "h1")
    answers(lab, probe)
    end(cluster, probe)


def resume_stalled(lab, cluster):
    """Resumed on h1, and its repository goes away before all of its memory has come."""
    lab.sh("h1", "rm -f /tmp/fetch")
    assert save(cluster, "h1", "suspend")["saved"] and resume(cluster, "h1")
    lab.sh("h1", "mv /srv/repo/packs /srv/repo/gone; touch /tmp/fetch")
    wait_for(lambda: cluster.show("h1", "vm")["load"]["phase"] == "stall", "it waits for memory that cannot be read")


def repository_comes_back(lab):
    lab.sh("h1", "mv /srv/repo/gone /srv/repo/packs")


@tests.test
def while_its_memory_comes_it_is_paused_and_asked_to_move(lab):
    cluster, probe = begin(lab, failpoints="load-running=wait:/tmp/fetch")
    resume_stalled(lab, cluster)
    cluster.godwit("h1", "pause", "vm")
    assert cluster.state("h1", "vm") == "paused"
    repository_comes_back(lab)
    all_here(cluster, "h1")
    assert cluster.state("h1", "vm") == "paused"
    cluster.godwit("h1", "resume", "vm")
    answers(lab, probe)
    resume_stalled(lab, cluster)
    refused = cluster.godwit("h1", "move", "vm", "h2", "--no-wait", check=False)
    assert refused.returncode == 4 and "still on its way" in refused.stderr, refused
    mover = lab.background("h1", "godwit", "move", "vm", "h2", "--json")
    wait_for(lambda: (cluster.show("h1", "vm")["move"] or {}).get("phase") == "memory", "the move waits for its memory")
    repository_comes_back(lab)
    out, _ = mover.process.communicate(timeout=PATIENCE)
    assert mover.process.returncode == 0 and "waiting for memory" in out and cluster.running_on("vm") == ["h2"], out
    answers(lab, probe)
    end(cluster, probe)


def meet(lab, mac):
    """The driver's packets for the guest's IP address go to this card."""
    device = json.loads(lab.exec("ip", "-j", "route", "get", GUEST_IP).stdout)[0]["dev"]
    lab.exec("ip", "neigh", "replace", GUEST_IP, "lladdr", mac, "dev", device, "nud", "permanent")
    return device


def forks(lab, host, vm):
    """How often the guest's kernel has said that it goes on from a snapshot."""
    return lab.sh(host, f"sleep 2 | timeout 5 godwit console {vm}", check=False).stdout.count("reseeded due to virtual machine fork")


@tests.test
def clones_are_their_own(lab):
    """Their guests never learn of it but by the generation ID: same IP address, and each answers at a MAC address of its own."""
    cluster, probe = begin(lab, verbose=True)
    probe.kill()
    assert save(cluster, "h1", "snapshot")["saved"]
    done = cluster.godwit("h1", "clone", "vm", "2", "--from", *GOLDEN, "--json")
    clones = json.loads(done.stdout.splitlines()[-1])["result"]["clones"]
    macs = {c["config"]["name"]: c["config"]["nets"][0]["mac"] for c in clones}
    assert set(macs) == {"vm-1", "vm-2"} and len({MAC, *macs.values()}) == 3, clones
    for vm in ("vm", *macs):
        assert cluster.running_on(vm) == ["h1"], vm
    for vm in macs:
        wait_for(lambda vm=vm: cluster.show("h1", vm)["load"]["phase"] == "done", f"all of {vm}'s memory is here", poll=0.5)
        wait_for(lambda vm=vm: forks(lab, "h1", vm) == 1, f"{vm} knows that it is another one")
    assert forks(lab, "h1", "vm") == 0
    # A workload that found its memory wrong says so; each is asked at its own card, also the VM that was saved.
    for mac in (MAC, *macs.values()):
        device = meet(lab, mac)
        faultless, verdict = lab.check_workload()
        assert faultless, (mac, verdict)
    # Who is suspended and goes on as the only one is not told; who may have gone on before is.
    save(cluster, "h1", "suspend")
    resume(cluster, "h1")
    all_here(cluster, "h1")
    assert forks(lab, "h1", "vm") == 0
    cluster.godwit("h1", "stop", "vm", "--force")
    resume(cluster, "h1", "--force")
    wait_for(lambda: forks(lab, "h1", "vm") == 1, "vm knows that it goes on again")
    # One of them alone is asked, and answers when the others do not run any more: here, and where it moves to.
    for vm in ("vm", "vm-1"):
        cluster.remove(vm)
    report = cluster.move("h1", "vm-2", "h2", "--verify-digest")
    faultless, verdict = lab.check_workload()
    assert report["phase"] == "done" and faultless, (report, verdict)
    assert forks(lab, "h2", "vm-2") <= 1, "a move is no fork"
    print(f"     {MAC} as {', '.join(macs.values())}")
    lab.exec("ip", "neigh", "del", GUEST_IP, "dev", device)
    cluster.remove("vm-2")
    end(cluster, probe)


if __name__ == "__main__":
    tests.main(hosts=2)
