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


def shared_libraries(binary):
    """The libraries and the loader that a dynamic executable needs, by their paths; none for a static one."""
    done = subprocess.run(["ldd", str(binary)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if done.returncode:
        return []
    return [Path(p) for p in re.findall(r"(/\S+) \(0x", done.stdout)]
