"""Report the peak memory of each test process, and fail the run above a limit."""

import ctypes
import gc
import sys
from pathlib import Path

import pytest

GB = 10**9
# A full collection takes half a second, so small processes skip it.
_RELEASED_ABOVE = 1.5 * GB
_PAGE = 4096


def release() -> None:
    """Return unused memory to the system, if the process is large.

    Cleared programs are in reference cycles, and glibc keeps freed memory.
    """
    if not sys.platform.startswith("linux"):
        return
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
    if resident > _RELEASED_ABOVE:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def add_option(parser: pytest.Parser) -> None:
    parser.addoption(
        "--memory-limit",
        type=float,
        metavar="GB",
        help="fail if a test process needs more main memory at its peak",
    )


class PeakMemory:
    """Collect the peak of this process, or of all workers if xdist runs them."""

    def __init__(self, limit: float | None):
        self.limit = limit
        self.peaks = {}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        """Store the peak that a worker reported, unless it crashed."""
        output = getattr(node, "workeroutput", None) or {}
        if "peak_bytes" in output:
            self.peaks[node.gateway.id] = output["peak_bytes"]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session):
        # Imported late, because conftest.py first installs the hook that checks medjax.
        from medjax.host_memory import host_peak_bytes

        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["peak_bytes"] = host_peak_bytes()
        elif not self.peaks:
            self.peaks["this process"] = host_peak_bytes()
        if self.over() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        said = (f"{name} {peak / GB:.2f} GB" for name, peak in self.peaks.items())
        terminalreporter.write_line(f"peak memory: {', '.join(said)}")
        if over := self.over():
            names = ", ".join(over)
            terminalreporter.write_line(f"FAILED: {names} exceeded {self.limit} GB")

    def over(self) -> list[str]:
        """Return the names of the processes that needed more than the limit."""
        if self.limit is None:
            return []
        return [name for name, peak in self.peaks.items() if peak > self.limit * GB]
