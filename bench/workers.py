"""Run each competitor in its own process, which takes a step at each request.

So the memory of each competitor can be measured and is free again after its end. And
the threads and settings of one library do not affect another.
"""

import dataclasses
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any
from unittest import mock

from bench.networks import Settings
from bench.report import GIB
from medjax.errors import UserError
from medjax.host_memory import host_peak_bytes

# By default, jax reserves most of a GPU at once, even if torch uses a part of it, and
# takes at most three quarters.
_ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "XLA_CLIENT_MEM_FRACTION": "0.95",
}
# The old name of the same, which jax refuses beside it.
_OLD_NAME = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_SECONDS_TO_STOP = 30
# torch's process draws weights with jax's shapes only, so jax leaves the GPU to torch.
_OWN_ENVIRONMENT = {"torch": {"JAX_PLATFORMS": "cpu"}}
# Only one thread at a time may change the environment for a new process.
_STARTING = threading.Lock()
# Takes one step, and returns a number to compare.
Step = Callable[[], float]
Make = Callable[[Settings], Step]
# The first step compiles, the second still fills caches.
WARM_UP = 2


@dataclasses.dataclass(frozen=True)
class Counted:
    """A step whose FLOPs are known.

    Attributes:
        take: Takes one step, and returns a number to compare.
        flops: Returns the FLOPs of a step, or None. A step was taken before.
    """

    take: Step
    flops: Callable[[], float | None]

    def __call__(self) -> float:
        """Take one step, and return its number to compare."""
        return self.take()


class OutOfTime(RuntimeError):
    """A competitor did not answer before its deadline."""


class OutOfMemory(RuntimeError):
    """A competitor did not fit on the accelerator.

    Attributes:
        name: Name of the competitor.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name


class Worker:
    """A competitor in its process. As a context manager, it ends the process.

    Attributes:
        name: Name of the competitor.
        start_seconds: Seconds from the start of the process until its weights are
            ready.
        deadline: Time of `time.monotonic` at which a request ends the process, unless
            the answer comes before; None means never.
    """

    def __init__(
        self,
        name: str,
        make: Make,
        settings: Settings,
        environment: Mapping[str, str] | None = None,
        deadline: float | None = None,
    ) -> None:
        """Start the process, and wait until the weights are ready.

        Args:
            name: Name of the competitor.
            make: Function that makes the competitor; it is defined in a module.
            settings: Network, sizes and trained part.
            environment: Additional environment variables of the process.
            deadline: First value of the attribute.

        Raises:
            OutOfMemory: If the competitor does not fit on the accelerator.
            OutOfTime: If the deadline comes first.
            UserError: If it fails for another reason.
        """
        self.name = name
        self.deadline = deadline
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, name, make, settings), daemon=True
        )
        start = time.perf_counter()
        # Set them before the start, because jax reads some of them at its import.
        own = _OWN_ENVIRONMENT.get(name, {})
        added = _ENVIRONMENT | own | dict(environment or {})
        with _STARTING, mock.patch.dict(os.environ, added):
            os.environ.pop(_OLD_NAME, None)
            self._process.start()
        theirs.close()
        self._answer()
        self.start_seconds = time.perf_counter() - start

    def step(self) -> tuple[float, float]:
        """Take one step, and return its seconds and its result."""
        return self._ask("step")

    def peak_gib(self) -> float:
        """Return the peak memory in GiB: that of the GPU, or of the process on CPU."""
        return self._ask("peak")

    def flops(self) -> float | None:
        """Return the FLOPs of a step that was taken; None if they are unknown."""
        return self._ask("flops")

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(_SECONDS_TO_STOP)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, question: str) -> Any:
        self._pipe.send(question)
        return self._answer()

    def _answer(self) -> Any:
        try:
            if self.deadline is not None:
                self._wait(self.deadline)
            kind, answer = self._pipe.recv()
        except EOFError as error:
            self._process.join()
            raise UserError(
                f"{self.name} ended with exit code {self._process.exitcode}; if it is "
                "-9, the system ran out of memory: close other programs, or use a "
                "smaller --size"
            ) from error
        if kind == "memory":
            raise OutOfMemory(self.name, answer)
        if kind == "error":
            raise UserError(f"{self.name} failed: {answer}")
        return answer

    def _wait(self, deadline: float) -> None:
        """Wait for an answer until the deadline; then end the process."""
        if not self._pipe.poll(max(0.0, deadline - time.monotonic())):
            self._process.kill()
            raise OutOfTime(f"{self.name}: the time was over")


@dataclasses.dataclass(frozen=True)
class Turn:
    """Measurements of one competitor in one turn.

    Attributes:
        first: Seconds of the first step.
        seconds: Seconds of each step after the warm-up.
        losses: Result of every step: its loss, or another number to compare.
        peak: Peak memory in GiB.
    """

    first: float
    seconds: tuple[float, ...]
    losses: tuple[float, ...]
    peak: float


def take_turn(
    name: str,
    make: Make,
    settings: Settings,
    steps: int,
    cache: str,
    warm_up: int = WARM_UP,
) -> Turn:
    """Start a competitor, time `steps` steps after the warm-up, and end it.

    Args:
        name: Name of the competitor.
        make: Function that makes the competitor.
        settings: Network, sizes and trained part.
        steps: Number of timed steps.
        cache: Folder of jax's compilation cache, which all turns share.
        warm_up: Number of steps before the timed ones.
    """
    environment = {"JAX_COMPILATION_CACHE_DIR": cache}
    with Worker(name, make, settings, environment) as worker:
        seconds, losses = zip(
            *(worker.step() for _ in range(warm_up + steps)), strict=True
        )
        return Turn(seconds[0], seconds[warm_up:], losses, worker.peak_gib())


def _serve(pipe: Connection, name: str, make: Make, settings: Settings) -> None:
    """Make a competitor, then answer requests until the pipe is closed."""
    # Hide warnings: diffusers removes Flax later, and jax found no accelerator.
    logging.disable(logging.WARNING)
    try:
        step = make(settings)
        pipe.send(("done", None))
        while True:
            question = pipe.recv()
            if question == "peak":
                pipe.send(("done", _peak_bytes(name) / GIB))
                continue
            if question == "flops":
                flops = step.flops() if isinstance(step, Counted) else None
                pipe.send(("done", flops))
                continue
            start = time.perf_counter()
            loss = step()
            pipe.send(("done", (time.perf_counter() - start, loss)))
    except (EOFError, BrokenPipeError):  # The other side closed the pipe.
        return
    except Exception as error:  # Send it to the other side, in one line.
        text = " ".join(f"{type(error).__name__}: {error}".split())
        full = "RESOURCE_EXHAUSTED" in text or "out of memory" in text
        pipe.send(("memory" if full else "error", text[:400]))


def _peak_bytes(name: str) -> int:
    if name == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
    else:
        import jax

        if stats := jax.devices()[0].memory_stats():
            return stats["peak_bytes_in_use"]
    return host_peak_bytes()
