"""Decide when a run stops: signals, deadline, patience and votes of other hosts."""

import enum
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from medjax import distributed

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Verdict(enum.IntEnum):
    """The decision after a step. If hosts differ, the largest value counts."""

    CONTINUE = 0
    NO_IMPROVEMENT = 1
    TIME_IS_UP = 2
    ASKED_TO_STOP = 3
    # Not voted on, because every host counts the steps itself.
    DONE = 4

    @property
    def ends_evaluated(self) -> bool:
        """Whether to evaluate everything before the run ends.

        A run that was asked to stop must end soon, so the next call evaluates.
        """
        return self not in (Verdict.CONTINUE, Verdict.ASKED_TO_STOP)


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
            # A second signal acts as if this handler did not exist.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = signal.Signals(number)
        logger.warning(
            "%s: saving the state after this step, then stopping. The first step "
            "compiles, which can take minutes. A second signal stops at once",
            self.signal.name,
        )


class StopDecision:
    """Decides with the other hosts whether a run stops.

    Every host must call the same methods in the same order. On several hosts, a call of
    `distributed.Agreement` returns the result of the call before it. So `at_start` and
    `any_host` call it twice, to get the result at once. `after_update` calls it once,
    because the devices must not wait, and gets the result one step late.
    """

    def __init__(
        self,
        request: StopRequest,
        steps: int,
        max_hours: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to count the hours.

        Args:
            request: The request that a signal makes.
            steps: Steps of the whole run.
            max_hours: Hours after which to stop. None means no limit.
            clock: Seconds since some fixed moment.
        """
        self.request = request
        self._steps = steps
        self._clock = clock
        self._deadline = None if max_hours is None else clock() + 3600 * max_hours
        self._votes = distributed.Agreement()
        # Separate votes, because an evaluation must not receive a vote of training.
        self._evaluation_votes = distributed.Agreement()

    def at_start(self, exhausted: bool) -> Verdict:
        """Return the verdict before the first step. The deadline is not checked.

        Args:
            exhausted: Whether `Patience` is exhausted.
        """
        return Verdict(self._at_once(self._own(exhausted)))

    def after_update(self, step: int, exhausted: bool) -> Verdict:
        """Return the verdict after a step.

        Args:
            step: Steps done.
            exhausted: Whether `Patience` is exhausted.
        """
        late = self._deadline is not None and self._clock() > self._deadline
        own = max(self._own(exhausted), Verdict.TIME_IS_UP if late else 0)
        verdict = Verdict(self._votes.largest(int(own)))
        return Verdict.DONE if step == self._steps else verdict

    def any_host(self, holds: bool) -> bool:
        """Tell whether `holds` is true on any host."""
        return bool(self._at_once(int(holds)))

    def in_evaluation(self) -> bool:
        """Tell whether a signal asks to stop, between two batches of an evaluation."""
        return self._evaluation_votes.largest(int(self.request.made)) > 0

    def _own(self, exhausted: bool) -> Verdict:
        if self.request.made:
            return Verdict.ASKED_TO_STOP
        return Verdict.NO_IMPROVEMENT if exhausted else Verdict.CONTINUE

    def _at_once(self, number: int) -> int:
        return max(self._votes.largest(number), self._votes.largest(0))


_under_way: list[StopRequest] = []


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Treat SIGTERM and SIGINT as requests to stop; outside the main thread do nothing.

    Python lets only the main thread handle signals, and notebooks handle their own. A
    block inside another such block yields the request of the outer one. So a request to
    stop a part stops the whole.
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
