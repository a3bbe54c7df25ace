# SPDX-License-Identifier: Apache-2.0
"""Our own small C programs of the lab, compiled on first use, and the shared libraries that binaries need."""

import hashlib
import os
import re
import subprocess
from pathlib import Path
from . import debian
from .paths import LAB_DIR, cache_dir

FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-static", "-pthread"]
LATE_LIBRARIES = ("libcurl.so.4", "libnbd.so.0", "libIPSec_MB.so.1") # lib/late.h


def program(name):
    """The static executable of tests/lab/NAME.c and NAME-*.c, rebuilt when a source changes."""
    sources = [LAB_DIR / f"{name}.c", *sorted(LAB_DIR.glob(f"{name}-*.c"))]
    content = b"".join(p.read_bytes() for p in [*sources, *LAB_DIR.glob(f"{name}.h")])
    digest = hashlib.sha256(content + " ".join(FLAGS).encode()).hexdigest()[:16]
    target = cache_dir() / "programs" / f"{name}-{digest}"
    with debian.cache_lock(f"program-{name}"):
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            new = target.with_suffix(".new")
            debian.run([os.environ.get("CC", "gcc"), *FLAGS, "-o", new, *sources])
            os.rename(new, target)
    return target


def _linked(binary):
    done = subprocess.run(["ldd", str(binary)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return [Path(p) for p in re.findall(r"(/\S+) \(0x", done.stdout)] if done.returncode == 0 else []


def shared_libraries(binary):
    """The libraries and the loader that a dynamic executable needs, by their paths, those that it loads late too; none for a static one."""
    found = _linked(binary)
    content = Path(binary).read_bytes() if found else b""
    for late in (found[0].parent / name for name in LATE_LIBRARIES if name.encode() in content):
        found += [late, *_linked(late)]
    return list(dict.fromkeys(found))
