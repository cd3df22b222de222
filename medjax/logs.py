"""Show log lines of medjax, warnings of the libraries, and progress.

People read them on a terminal or in a file. On a terminal, long work has a progress
bar, and log lines appear above it. A file gets no bars, but a line a minute.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 60.0


class BarFriendlyHandler(logging.Handler):
    """Writes log lines above a progress bar, so that they do not break it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line. A closed pipe does not end the program."""
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


class ProgressBar:
    """Shows the progress of long work: a bar on a terminal, a line a minute elsewhere.

    A context manager. The bar disappears on exit. Work shorter than a minute logs no
    line.
    """

    def __init__(
        self,
        work: str,
        total: int,
        unit: str,
        done: int = 0,
        *,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the bar.

        Args:
            work: Name of the work, e.g. ``validating``.
            total: Number of units.
            unit: Name of the units in the plural, e.g. ``images``.
            done: Units done before.
            terminal: Whether to draw a bar. None means the answer of `draws_bars`.
            clock: Seconds since some fixed moment.
        """
        # Imported here, because every command imports this module.
        from tqdm import tqdm

        self._work, self._total, self._unit = work, total, unit
        self._done = self._before = done
        self._clock = clock
        self._start = self._last_line = clock()
        self._terminal = draws_bars() if terminal is None else terminal
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=work,
            unit=f" {unit}",
            leave=False,
            dynamic_ncols=True,
            disable=not self._terminal,
        )

    def update(self, count: int) -> None:
        """Show that `count` more units are done."""
        self._done += count
        self._bar.update(count)
        now = self._clock()
        silent = now - self._last_line >= _SECONDS_BETWEEN_LINES
        if self._terminal or self._done >= self._total or not silent:
            return
        self._last_line = now
        each = (now - self._start) / max(self._done - self._before, 1)
        logger.info(
            "%s: %d of %d %s · %s left",
            *(self._work, self._done, self._total, self._unit),
            duration(each * (self._total - self._done)),
        )

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()


def draws_bars() -> bool:
    """Tell whether stderr can show bars, as terminals and notebooks can."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def duration(seconds: float) -> str:
    """Return ``4:32`` or ``1:04:32``; seconds are rounded."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}"


def set_up(debug: bool) -> None:
    """Show medjax's log messages from INFO; those of libraries from WARNING.

    With `debug`, those of libraries are shown from INFO, too.
    """
    handler = BarFriendlyHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logging.INFO if debug else logging.WARNING
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # orbax raises each error that it, or its event loop, logs.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(level if debug else logging.CRITICAL)
    logging.getLogger("medjax").setLevel(logging.INFO)
    if not debug:
        sys.unraisablehook = _leave_unsaid
        threading.excepthook = _tell_of_thread


def _leave_unsaid(unraisable: Any) -> None:
    """Log an error that a library's thread cannot raise, only for debugging.

    After a failed save, orbax's threads call an event loop that is closed. The failure
    of the save was raised before.
    """
    logger.debug("in a thread: %r", unraisable.exc_value)


def _tell_of_thread(failure: Any) -> None:
    """Report in one line that a thread, such as TensorBoard's writer, has failed.

    At the end of the program a thread loses its queue. Such a failure is not reported.
    """
    level = logging.WARNING if threading.main_thread().is_alive() else logging.DEBUG
    logger.log(level, "%s has failed: %s", failure.thread, failure.exc_value)
