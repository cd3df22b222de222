"""Measure a run's speed, wait for data, time left and memory; show the progress."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

import jax
from tqdm import tqdm

from medjax.host_memory import host_peak_bytes
from medjax.logs import draws_bars
from medjax.training.log_lines import training_line
from medjax.training.speed import StepWork

logger = logging.getLogger(__name__)

_GIB = 2**30
_SECONDS_OF_SILENCE = 60.0


class RateMeter:
    """Measures images per second, without compilation and pauses.

    The first step compiles, so it is timed separately. Call `first_step_done` when its
    results are computed. After that, call `count` for every step. Wrap waiting for data
    in `waiting`, and everything that is not training (validation, sampling) in
    `paused`. Call `read` when the devices have done all counted steps.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start measuring.

        Args:
            clock: Seconds since some fixed moment.
        """
        self._clock = clock
        self.compile_seconds: float | None = None
        self.work: StepWork | None = None
        self._reset()

    def _reset(self) -> None:
        self._start = self._clock()
        self._images = self._steps = 0
        self._waited = self._idle = 0.0

    def count(self, images: int) -> None:
        """Count one step on `images` images."""
        self._images += images
        self._steps += 1

    def first_step_done(self) -> float:
        """Return the seconds of compilation, until now; restart the measurement."""
        seconds = self._clock() - self._start - self._waited - self._idle
        self.compile_seconds = seconds
        self._reset()
        return seconds

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = self._clock()
        yield
        self._waited += self._clock() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside out of the rate."""
        start = self._clock()
        yield
        self._idle += self._clock() - start

    def read(self) -> dict[str, float]:
        """Return the rate since the last call, and restart the measurement.

        Returns:
            ``images_per_second``, ``seconds_per_step`` and ``data_wait_fraction``, the
            fraction of the time spent waiting for data, and the speed of `work` if it
            is known. Empty if no step was counted.
        """
        seconds = self._clock() - self._start - self._idle
        images, steps, waited = self._images, self._steps, self._waited
        self._reset()
        if steps == 0 or seconds <= 0:
            return {}
        return {
            "images_per_second": images / seconds,
            "seconds_per_step": seconds / steps,
            "data_wait_fraction": waited / seconds,
            **(self.work.speed(seconds / steps) if self.work else {}),
        }


class Progress:
    """Logs a line for each report of training; on a terminal, above a progress bar."""

    def __init__(
        self,
        total: int,
        start: int = 0,
        clock: Callable[[], float] = time.perf_counter,
        terminal: bool | None = None,
    ) -> None:
        """Show the bar.

        Args:
            total: Steps of the whole run.
            start: Steps done before.
            clock: Seconds since some fixed moment.
            terminal: Whether to draw a bar. None means the answer of `draws_bars`.
        """
        self._total = total
        self._clock = clock
        self._terminal = draws_bars() if terminal is None else terminal
        self._last_line = clock()
        self._seconds_per_step: float | None = None
        self._bar = tqdm(
            total=total,
            initial=start,
            disable=not self._terminal,
            dynamic_ncols=True,
            bar_format="{n_fmt}/{total_fmt} |{bar}| {elapsed}{postfix}",
        )

    def update(self, step: int, row: Mapping[str, float]) -> None:
        """Show that `step` steps are done, and log a report if `row` has one.

        Without a terminal, one line a minute is also logged while no report comes.

        Args:
            step: Steps done.
            row: Report by column of ``metrics.csv``. Empty if there is none.
        """
        self._seconds_per_step = row.get("seconds_per_step", self._seconds_per_step)
        left = None
        if self._seconds_per_step is not None:
            left = (self._total - step) * self._seconds_per_step
        now = self._clock()
        silent = now - self._last_line >= _SECONDS_OF_SILENCE and not self._terminal
        if row or silent:
            self._last_line = now
            line = training_line(step, self._total, row, left)
            logger.info("%s", line)
            # Without the step, because the bar shows it already.
            self._bar.set_postfix_str(line.partition(" · ")[2], refresh=False)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Stop the bar and leave it on the terminal."""
        self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def memory() -> dict[str, float]:
    """Return the peak memory used so far, in GiB.

    Returns:
        ``device_memory_gib``: the largest peak of this host's devices. If the devices
        do not report it (CPUs), ``host_memory_gib``: the peak of this process.
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    if peaks:
        return {"device_memory_gib": max(peaks) / _GIB}
    return {"host_memory_gib": host_peak_bytes() / _GIB}
