"""Keep compiled programs in a folder that all test runs on this machine share.

The folder is in the user's cache, not in the checkout, so that a fresh clone uses it.
Its name contains jax's version and the processor, because a program depends on them.
"""

import hashlib
import importlib.metadata
import os
import platform
import time
from pathlib import Path

UNUSED_DAYS = 14


def settings() -> dict[str, str]:
    """Return the environment variables that make jax use the cache.

    Tests compile thousands of small programs, so these are kept too. The size has no
    limit, because with one jax reads all entries whenever it writes one. That takes
    0.3 s with 3000 entries. `remove_unused` keeps the folder small instead.
    """
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def folder() -> Path:
    """Return this machine's folder for the installed version of jax."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    version = importlib.metadata.version("jax")
    return Path(caches, "medjax", "tests", f"{version}-{processor()}")


def processor() -> str:
    """Return the architecture and, on Linux, a digest of model and instructions."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return platform.machine()
    lines = cpuinfo.read_text().splitlines()
    facts = {line for line in lines if line.startswith(("model name", "flags"))}
    digest = hashlib.sha256("\n".join(sorted(facts)).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:8]}"


def remove_unused(days: float = UNUSED_DAYS) -> None:
    """Remove programs that no test has read or written for this many days."""
    oldest = time.time() - 86400 * days
    for path in folder().glob("*-cache"):
        status = path.stat()
        if max(status.st_atime, status.st_mtime) < oldest:
            path.unlink(missing_ok=True)
