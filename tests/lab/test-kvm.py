#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the unit tests that need KVM in an emulated host, each with a real Linux in its VM."""

import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from gwlab.programs import shared_libraries  # noqa: E402
from labtest import LAB_DIR, Tests, guest  # noqa: E402

tests = Tests()
TOP = LAB_DIR.parent.parent
PROGRAMS = ("test-kvm", "test-control")
KIND = "6.12-cloud"


def prepare(lab):
    """Puts the test programs, their libraries and the guest into the host, once."""
    if lab.sh("h1", "test -e /t/ready", check=False).returncode == 0:
        return
    binaries = [TOP / "build/tests" / program for program in PROGRAMS]
    subprocess.run(["make", "-s", *(str(binary.relative_to(TOP)) for binary in binaries)], cwd=TOP, check=True)
    lab.sh("h1", "mkdir -p /t; mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug")
    libraries = {library for binary in binaries for library in shared_libraries(binary)}
    lab.put("h1", *binaries, *libraries, guest("kernel", KIND), guest("initrd", KIND), "/t")
    lab.sh("h1", "touch /t/ready")


def make(program, name):
    def test(lab):
        prepare(lab)
        kernel, initrd = guest("kernel", KIND).name, guest("initrd", KIND).name
        done = lab.sh("h1", f"cd /t && GODWIT_TEST_KERNEL=/t/{kernel} GODWIT_TEST_INITRD=/t/{initrd} LD_LIBRARY_PATH=/t "
                            f"timeout 400 ./{program} {name}", check=False)
        output = done.stdout + done.stderr
        assert done.returncode == 0, f"exit code {done.returncode}: {output[-3000:]}"
        assert f"[       OK ] {name}" in output, f"did not run: {output[-500:]}"
    test.__name__ = name
    tests.test(test)


for each in PROGRAMS:
    for match in re.findall(r"cmocka_unit_test\((test_\w+)\)", (LAB_DIR.parent / f"unit/{each}.c").read_text()):
        make(each, match)

if __name__ == "__main__":
    tests.main(hosts=1)
