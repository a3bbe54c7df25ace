# SPDX-License-Identifier: Apache-2.0
"""Debian packages: choose, download and unpack them into the cache, without installing anything."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from .errors import LabError
from .paths import cache_dir


@contextmanager
def cache_lock(name):
    """One builder at a time for each thing in the cache; others wait and find it ready."""
    directory = cache_dir() / "locks"
    directory.mkdir(exist_ok=True)
    with open(directory / name, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(command, **kwargs):
    """Runs a tool of the system; its output is shown only when it fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)
    except FileNotFoundError as e:
        raise LabError(f"{command[0]} is not installed (tests/lab/deps installs what the lab needs)") from e
    if done.returncode:
        raise LabError(f"{' '.join(map(str, command))} failed:\n{done.stdout.strip()}")
    return done.stdout


def _version_key(name):
    return [int(n) for n in re.findall(r"[0-9]+", name)]


def _search(pattern):
    names = [line.split()[0] for line in run(["apt-cache", "search", "--names-only", pattern]).splitlines()]
    return sorted((n for n in names if re.fullmatch(pattern, n)), key=_version_key)


def with_fresh_lists(attempt):
    """Calls attempt(); if that fails, once more after apt-get update: package lists may be absent on a fresh machine, or too old
    to name files that still exist."""
    try:
        return attempt()
    except LabError:
        if os.geteuid() != 0:
            raise
    run(["apt-get", "update", "-q"])
    return attempt()


def newest(pattern):
    """The newest package whose name matches."""
    names = _search(pattern)
    if not names:
        raise LabError(f"apt knows no package {pattern} (try: apt-get update)")
    return names[-1]


def download(package, directory):
    """Downloads one package into a directory and returns the file."""
    directory.mkdir(parents=True, exist_ok=True)
    say(f"lab: downloading {package}")
    run(["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", package], cwd=directory)
    return next(directory.glob(f"{package}_*.deb"))


def unpacked(key, pattern):
    """The unpacked newest package that matches, cached under key: a later call asks apt nothing."""
    target = cache_dir() / "packages" / key
    with cache_lock(key):
        if target.is_dir():
            return target
        work = target.with_name(key + ".new")
        shutil.rmtree(work, ignore_errors=True)
        deb = with_fresh_lists(lambda: download(newest(pattern), work))
        run(["dpkg-deb", "-x", deb, work / "root"])
        deb.unlink()
        os.rename(work / "root", target)
        work.rmdir()
    return target
