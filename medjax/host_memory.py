"""How much main memory this process has had."""

import resource
import sys
from pathlib import Path

# Linux's own count; ``ru_maxrss`` there starts with what the parent process had.
_STATUS = Path("/proc/self/status")


def host_peak_bytes() -> int:
    """Return the most main memory that this process has had at once, in bytes."""
    if _STATUS.exists():
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        # Sandboxes that stand in for Linux may not count it.
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) * 1024
    # Kibibytes on most systems, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
