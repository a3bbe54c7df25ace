# SPDX-License-Identifier: Apache-2.0
"""The builds that benches measure."""

import subprocess

from cluster import TOP


def make(*targets, bench):
    """`bench`: the build that can also do without encryption (BENCH=1), as peers do; else the one that is released. Returns where its programs are."""
    subprocess.run(["make", "-s", "-C", TOP, *(["BENCH=1"] if bench else []), *targets], check=True)
    return TOP / ("build/bench/bin" if bench else "build/bin")
