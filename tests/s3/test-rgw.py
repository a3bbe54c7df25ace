#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The S3 back end against a real S3 server: starts Ceph's gateway, runs build/tests/s3-bucket against it, and looks at the bucket from outside,
with a signer of its own. Ends with "N passed, N failed"; leaves nothing running, however it ends."""

import datetime
import hashlib
import hmac
import os
import re
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
import rgw  # noqa: E402

TOP = rgw.TOP
passed, failed = 0, 0


def report(name, wrong):
    global passed, failed
    if wrong:
        failed += 1
        print(f"FAIL {name}: {wrong}", flush=True)
    else:
        passed += 1
        print(f"ok   {name}", flush=True)


def check(name, condition, otherwise=""):
    report(name, None if condition else otherwise or "not so")


def ask(server, path, query=""):
    """GET, signed; `query` as it is signed: sorted and encoded. Returns the body."""
    when = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    host, empty = server.url.split("//")[1], hashlib.sha256(b"").hexdigest()
    names = "host;x-amz-content-sha256;x-amz-date"
    canonical = f"GET\n{path}\n{query}\nhost:{host}\nx-amz-content-sha256:{empty}\nx-amz-date:{when}\n\n{names}\n{empty}"
    scope = f"{when[:8]}/us-east-1/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{when}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = b"AWS4" + server.SECRET.encode()
    for word in scope.split("/"):
        key = hmac.new(key, word.encode(), "sha256").digest()
    signature = hmac.new(key, text.encode(), "sha256").hexdigest()
    headers = {"x-amz-date": when, "x-amz-content-sha256": empty,
               "Authorization": f"AWS4-HMAC-SHA256 Credential={server.KEY}/{scope},SignedHeaders={names},Signature={signature}"}
    with urllib.request.urlopen(urllib.request.Request(f"{server.url}{path}?{query}", headers=headers), timeout=30) as answer:
        return answer.read()


def run_program(server):
    """The tests in C, each counted."""
    environment = {**os.environ, **server.environment, "GODWIT_S3": server.url, "GODWIT_S3_TLS": server.tls_url,
                   "GODWIT_S3_PID": str(server.daemons[-1].pid)}
    for variable in ("AWS_ENDPOINT_URL", "http_proxy", "https_proxy"):
        environment.pop(variable, None)
    with subprocess.Popen([TOP / "build/tests/s3-bucket"], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, preexec_fn=lambda: rgw.libc.prctl(rgw.PR_SET_PDEATHSIG, signal.SIGKILL)) as program:
        said, counted = [], 0
        for line in program.stdout:
            if match := re.match(r"\[ *(OK|FAILED|SKIPPED) *\] (test_\w+)$", line):
                if match[1] == "OK":
                    report(match[2], None)
                    counted += 1
                elif f"FAIL {match[2]}" not in said:
                    report(match[2], "see above")
                    said.append(f"FAIL {match[2]}")
            elif not line.startswith("["):
                print(f"     {line.rstrip()}", flush=True)
            elif "ERROR" in line or "LINE" in line:
                print(line.rstrip(), flush=True)
    check("the program ended well", program.returncode == 0, f"exit code {program.returncode} after {counted} tests")


def look_from_outside(server):
    listing = ask(server, "/test", "list-type=2&prefix=repo%2Fonce").decode()
    check("an object is where it should be", "<Key>repo/once</Key>" in listing, listing)
    check("and holds what was put", ask(server, "/test/repo/once") == b"second")
    uploads = ask(server, "/test", "uploads=").decode()
    check("no unfinished upload is left", "ListMultipartUploadsResult" in uploads and "<Upload>" not in uploads, uploads)


def daemons_of(pid):
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"{rgw.PREFIX}{pid}-".encode() in entry.read_bytes():
                found.append(entry.parent.name)
        except OSError:
            pass
    return found


def die_while_running():
    """A driver that is killed while its server runs leaves no daemon, and its folder goes when the next one starts."""
    child = subprocess.Popen([sys.executable, __file__, "--just-start"], stdout=subprocess.PIPE, text=True)
    try:
        check("a second server runs beside the first", child.stdout.readline() == "ready\n")
        check("its daemons are there", len(daemons_of(child.pid)) == 3, str(daemons_of(child.pid)))
    finally:
        child.kill()
        child.wait()
    end = time.monotonic() + 10
    while daemons_of(child.pid) and time.monotonic() < end:
        time.sleep(0.05)
    check("none is left when the driver is killed", not daemons_of(child.pid), str(daemons_of(child.pid)))
    rgw.remove_leftovers()
    check("nor its folder", not list(Path("/tmp").glob(f"{rgw.PREFIX}{child.pid}-*")))


def just_start():
    with rgw.Server():
        print("ready", flush=True)
        time.sleep(600)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if sys.argv[1:] == ["--just-start"]:
        just_start()
        return
    subprocess.run(["make", "-s", "build/tests/s3-bucket"], cwd=TOP, check=True)
    with rgw.Server() as server:
        print("seconds:", ", ".join(f"{step} {seconds:.1f}" for step, seconds in server.timings.items()), flush=True)
        run_program(server)
        look_from_outside(server)
        die_while_running()
    print(f"{passed} passed, {failed} failed, 0 skipped")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
