"""Being asked to stop: a preempted machine, or Ctrl-C."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        """Begin with no request."""
        self.signal: signal.Signals | None = None

    @property
    def made(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.made:
            # Asked twice: as if nobody listened.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = signal.Signals(number)
        logger.warning(
            "%s: saving what is done, then stopping; a second one stops at once",
            self.signal.name,
        )


_under_way: list[StopRequest] = []


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Take SIGTERM and SIGINT as requests to stop; outside the main thread do nothing.

    Python lets only the main thread handle signals, and a notebook's are its own.
    Inside another such block the request is that one's, so that what was asked of a
    part is asked of the whole.
    """
    if _under_way:
        yield _under_way[-1]
        return
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[int, Any] = {
        number: signal.signal(number, request._receive) for number in _SIGNALS
    }
    _under_way.append(request)
    try:
        yield request
    finally:
        _under_way.remove(request)
        for number, handler in before.items():
            signal.signal(number, handler)
