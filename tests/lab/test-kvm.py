#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the unit tests that need KVM (tests/unit/test-kvm.c) in an emulated host, each with a real Linux in its VM."""

import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from gwlab.programs import shared_libraries  # noqa: E402
from labtest import LAB_DIR, Tests, guest  # noqa: E402

tests = Tests()
BINARY = LAB_DIR.parent.parent / "build/tests/test-kvm"
SOURCE = LAB_DIR.parent / "unit/test-kvm.c"
KIND = "6.12-cloud"


def prepare(lab):
    """Puts the test program, its libraries and the guest into the host, once."""
    if lab.sh("h1", "test -e /t/ready", check=False).returncode == 0:
        return
    subprocess.run(["make", "-s", str(BINARY.relative_to(LAB_DIR.parent.parent))], cwd=LAB_DIR.parent.parent, check=True)
    lab.sh("h1", "mkdir -p /t")
    lab.put("h1", BINARY, *shared_libraries(BINARY), guest("kernel", KIND), guest("initrd", KIND), "/t")
    lab.sh("h1", "touch /t/ready")


def make(name):
    def test(lab):
        prepare(lab)
        kernel, initrd = guest("kernel", KIND).name, guest("initrd", KIND).name
        done = lab.sh("h1", f"cd /t && GODWIT_TEST_KERNEL=/t/{kernel} GODWIT_TEST_INITRD=/t/{initrd} LD_LIBRARY_PATH=/t "
                            f"timeout 400 ./{BINARY.name} {name}", check=False)
        output = done.stdout + done.stderr
        assert done.returncode == 0, f"exit code {done.returncode}: {output[-3000:]}"
        assert f"[       OK ] {name}" in output, f"did not run: {output[-500:]}"
    test.__name__ = name
    tests.test(test)


for match in re.findall(r"cmocka_unit_test\((test_\w+)\)", SOURCE.read_text()):
    make(match)

if __name__ == "__main__":
    tests.main(hosts=1)
