"""Measure the main memory of this process."""

import resource
import sys
from pathlib import Path

# On Linux, ``ru_maxrss`` starts with the value of the parent process; this does not.
_STATUS = Path("/proc/self/status")


def host_peak_bytes() -> int:
    """Return the peak main memory of this process, in bytes."""
    if _STATUS.exists():
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        # Sandboxes that emulate Linux may not have it.
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) * 1024
    # Kibibytes on most systems, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
