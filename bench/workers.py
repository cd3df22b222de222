"""Competitors in processes of their own, which compute when they are asked to.

So their memory can be told from that of others, is given back when they end, and no
library's threads or settings touch another's.
"""

import dataclasses
import logging
import multiprocessing
import os
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

# jax would else take most of a GPU at once, also where torch holds a part of it.
_ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
_SECONDS_TO_STOP = 30
# From settings to a function that does one step, and returns a figure to compare.
Make = Callable[[Settings], Callable[[], float]]
# The first step compiles, the second still fills caches.
WARM_UP = 2


class OutOfMemory(RuntimeError):
    """A competitor did not fit on the accelerator.

    Attributes:
        name: Which one.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name


class Worker:
    """A competitor; a context manager that ends its process.

    Attributes:
        name: Which one.
        start_seconds: From the start of the process until its weights are in place.
    """

    def __init__(
        self,
        name: str,
        make: Make,
        settings: Settings,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the process, and wait until the weights are in place.

        Args:
            name: What it is called.
            make: Makes it: a function of a module.
            settings: What it works on.
            environment: Variables that it sees besides.

        Raises:
            OutOfMemory: If it does not fit.
            UserError: If it fails for another reason.
        """
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, name, make, settings), daemon=True
        )
        start = time.perf_counter()
        # jax reads some of them when it is imported: they must be there before.
        with mock.patch.dict(os.environ, _ENVIRONMENT | dict(environment or {})):
            self._process.start()
        theirs.close()
        self._answer()
        self.start_seconds = time.perf_counter() - start

    def step(self) -> tuple[float, float]:
        """Do one step; return its seconds and what it returns."""
        return self._ask("step")

    def peak_gib(self) -> float:
        """Return the most memory that it has held: a GPU's, or else the process's."""
        return self._ask("peak")

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
            kind, answer = self._pipe.recv()
        except EOFError as error:
            self._process.join()
            raise UserError(
                f"{self.name} ended with exit code {self._process.exitcode}; -9 is the "
                "system's when memory is short: close other programs, or take a "
                "smaller --size"
            ) from error
        if kind == "memory":
            raise OutOfMemory(self.name, answer)
        if kind == "error":
            raise UserError(f"{self.name} failed: {answer}")
        return answer


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one competitor did in one turn.

    Attributes:
        first: Seconds of the first step.
        seconds: Of the steps after those that warm up.
        losses: What every step returned: its loss, or another figure.
        peak: Memory in GiB.
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
    """Start a competitor, take `steps` steps that count, and end it.

    Args:
        name: What it is called.
        make: Makes it.
        settings: What it works on.
        steps: How many count.
        cache: Folder of what jax compiled in turns before.
        warm_up: How many come before.
    """
    environment = {"JAX_COMPILATION_CACHE_DIR": cache}
    with Worker(name, make, settings, environment) as worker:
        seconds, losses = zip(
            *(worker.step() for _ in range(warm_up + steps)), strict=True
        )
        return Turn(seconds[0], seconds[warm_up:], losses, worker.peak_gib())


def _serve(pipe: Connection, name: str, make: Make, settings: Settings) -> None:
    """Be a competitor: make it, then answer until the pipe is closed."""
    # diffusers warns that Flax goes, jax that there is no accelerator.
    logging.disable(logging.WARNING)
    try:
        step = make(settings)
        pipe.send(("done", None))
        while True:
            question = pipe.recv()
            if question == "peak":
                pipe.send(("done", _peak_bytes(name) / GIB))
                continue
            start = time.perf_counter()
            loss = step()
            pipe.send(("done", (time.perf_counter() - start, loss)))
    except (EOFError, BrokenPipeError):  # Nobody asks any more.
        return
    except Exception as error:  # Told to whoever asked, in one line.
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
