"""How fast a run goes, what it waits for, how long it still takes, what it holds."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

import jax
from tqdm import tqdm

from medjax.host_memory import host_peak_bytes

logger = logging.getLogger(__name__)

_GIB = 2**30
_SECONDS_BETWEEN_LINES = 30.0


class RateMeter:
    """Measures images per second, apart from compilation and from pauses.

    The first update compiles, so it is timed by itself: call `first_step_done` once its
    results are there. From then on `count` every update, wrap waiting for data in
    `waiting` and whatever is not training (validation, sampling) in `paused`, and
    `read` after the updates counted are done on the device.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start measuring.

        Args:
            clock: Seconds since some fixed moment.
        """
        self._clock = clock
        self.compile_seconds: float | None = None
        self._reset()

    def _reset(self) -> None:
        self._start = self._clock()
        self._images = self._steps = 0
        self._waited = self._idle = 0.0

    def count(self, images: int) -> None:
        """Count one update of so many images."""
        self._images += images
        self._steps += 1

    def first_step_done(self) -> None:
        """Book the time until now as compilation, and measure the rate from here."""
        self.compile_seconds = self._clock() - self._start - self._waited - self._idle
        self._reset()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time what happens inside as waiting for data."""
        start = self._clock()
        yield
        self._waited += self._clock() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens inside out of the rate."""
        start = self._clock()
        yield
        self._idle += self._clock() - start

    def read(self) -> dict[str, float]:
        """Return the rate since the last reading, and start anew.

        Returns:
            ``images_per_second``, ``seconds_per_step`` and ``data_wait_fraction``, the
            part of the time spent waiting for data; nothing if no update was counted.
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
        }


class Progress:
    """A progress bar on a terminal, and a line every half minute elsewhere."""

    def __init__(
        self,
        total: int,
        start: int = 0,
        clock: Callable[[], float] = time.perf_counter,
        terminal: bool | None = None,
    ) -> None:
        """Show the bar.

        Args:
            total: Updates of the whole run.
            start: Updates done before.
            clock: Seconds since some fixed moment.
            terminal: Whether to draw a bar; asks stderr where None.
        """
        self._total = total
        self._clock = clock
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._last_line = clock()
        self._known: dict[str, float] = {}
        self._bar = tqdm(
            total=total,
            initial=start,
            disable=not self._terminal,
            dynamic_ncols=True,
            bar_format="{n_fmt}/{total_fmt} |{bar}| {elapsed}{postfix}",
        )

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show that `step` updates are done.

        Args:
            step: Updates done.
            metrics: News of ``train/loss``, ``images_per_second`` and
                ``seconds_per_step``, if any; what was known before stays.
        """
        self._known.update(metrics)
        text = _describe(self._total - step, self._known)
        if self._terminal:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif (
            self._clock() - self._last_line >= _SECONDS_BETWEEN_LINES
            or step == self._total
        ):
            self._last_line = self._clock()
            logger.info("%s", ", ".join(filter(None, [f"{step}/{self._total}", text])))

    def close(self) -> None:
        """Leave the bar as it stands."""
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


def _describe(steps_left: int, known: Mapping[str, float]) -> str:
    parts = []
    if "train/loss" in known:
        parts.append(f"loss {known['train/loss']:.4f}")
    if "images_per_second" in known:
        parts.append(f"{known['images_per_second']:.3g} images/s")
    if "seconds_per_step" in known:
        left = tqdm.format_interval(round(steps_left * known["seconds_per_step"]))
        parts.append(f"{left} left")
    return ", ".join(parts)


def memory() -> dict[str, float]:
    """Return the peak memory used so far, in GiB.

    Returns:
        ``device_memory_gib``, the largest of this host's devices, or
        ``host_memory_gib``, this process's, where the devices keep no count (the CPU).
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    if peaks:
        return {"device_memory_gib": max(peaks) / _GIB}
    return {"host_memory_gib": host_peak_bytes() / _GIB}
