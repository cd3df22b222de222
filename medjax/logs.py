"""What the commands show: our log lines, the libraries' warnings, and progress.

A person reads them on a terminal or in a file. On a terminal, long work has a bar, and
lines go above it. A file gets no bars, only a line now and then.
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
    """Writes log lines above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; a reader who has gone does not end the program."""
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


class ProgressBar:
    """Shows how far long work is: a bar on a terminal, a line a minute elsewhere.

    A context manager; the bar disappears at its end, and short work leaves no line.
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
            work: What is done, e.g. ``validating``.
            total: How many units there are.
            unit: Their name in the plural, e.g. ``images``.
            done: Units done before.
            terminal: Whether to draw a bar; None asks `draws_bars`.
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
    """Tell whether stderr shows bars: a terminal does, and a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def duration(seconds: float) -> str:
    """Return ``4:32`` or ``1:04:32``; seconds are rounded."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}"


def set_up(debug: bool) -> None:
    """Log our own messages from INFO; the libraries' from WARNING unless `debug`."""
    handler = BarFriendlyHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logging.INFO if debug else logging.WARNING
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # What orbax logs as an error, itself or by its event loop, it raises too.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(level if debug else logging.CRITICAL)
    logging.getLogger("medjax").setLevel(logging.INFO)
    if not debug:
        sys.unraisablehook = _leave_unsaid
        threading.excepthook = _tell_of_thread


def _leave_unsaid(unraisable: Any) -> None:
    """Replace the traceback of an error that a library's thread cannot raise.

    After a failed save, orbax's threads call a loop that is closed. The failure itself
    was raised before.
    """
    logger.debug("in a thread: %r", unraisable.exc_value)


def _tell_of_thread(failure: Any) -> None:
    """Report in one line that a thread, such as TensorBoard's writer, has failed.

    At the end of the program a thread loses its queue; that failure is no news.
    """
    level = logging.WARNING if threading.main_thread().is_alive() else logging.DEBUG
    logger.log(level, "%s has failed: %s", failure.thread, failure.exc_value)
