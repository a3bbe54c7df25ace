# SPDX-License-Identifier: Apache-2.0
"""Where the lab finds its sources and keeps its cache and its state."""

import os
from pathlib import Path

LAB_DIR = Path(__file__).resolve().parents[1]
ROOT = LAB_DIR.parents[1]


def cache_dir():
    path = Path(os.environ.get("GODWIT_CACHE") or "~/.cache/godwit-lab").expanduser()
    path.mkdir(parents=True, exist_ok=True)
    return path


def bin_dir():
    """The Godwit build that goes into the hosts: BIN=dir, or the tree's own."""
    return Path(os.environ.get("BIN") or ROOT / "build" / "bin")


def run_dir():
    if os.geteuid() == 0:
        return Path("/run/godwit-lab")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/godwit-lab-{os.geteuid()}") / "godwit-lab"
