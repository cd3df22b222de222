"""Let competitors take turns while all of them stay in memory, until a deadline.

They start and compile at the same time, because compilation takes minutes, and a turn
takes seconds. While one takes its turn, the others wait.
"""

import dataclasses
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from bench.networks import EAGER, Settings
from bench.workers import Make, OutOfMemory, OutOfTime, Turn, Worker
from medjax.errors import UserError

# Errors after which the other competitors continue.
Failure = UserError | OutOfMemory | OutOfTime
FAILURES = (UserError, OutOfMemory, OutOfTime)
# Seconds before the deadline at which a competitor that still compiles is ended, so
# that the others have time for their turns.
TURNS_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class Contest:
    """One measurement.

    Attributes:
        makers: Functions that make the competitors, by name, in the order of the turns.
        settings: Network, sizes and trained part.
        warm_up: Steps before the first turn, at least one.
        steps: Timed steps of a turn.
        turns: Turns of each competitor.
        cache: Folder of jax's compilation cache.
        deadline: Time of `time.monotonic` at which all competitors end.
    """

    makers: Mapping[str, Make]
    settings: Settings
    warm_up: int
    steps: int
    turns: int
    cache: str
    deadline: float


@dataclasses.dataclass(frozen=True)
class Result:
    """Measurements of one competitor.

    Attributes:
        turns: Its turns. Each contains the first step and the first losses.
        flops: FLOPs of a step; None if they are unknown.
        compile_error: Why torch ran without compilation; "" if it did not.
    """

    turns: tuple[Turn, ...]
    flops: float | None
    compile_error: str = ""


@dataclasses.dataclass(frozen=True)
class _Ready:
    """A competitor that is warm, with the seconds and results of its first steps."""

    worker: Worker
    first: tuple[tuple[float, float], ...]
    flops: float | None
    compile_error: str = ""


def compete(contest: Contest) -> dict[str, Result | Failure]:
    """Return the result of each competitor, or why it has none.

    A competitor that does not fit beside the others is measured alone, after them.
    """
    found = _compete_together(contest)
    for name, outcome in found.items():
        if isinstance(outcome, OutOfMemory) and len(found) > 1:
            print(f"{name} again, alone …", file=sys.stderr, flush=True)
            makers = {name: contest.makers[name]}
            found |= _compete_together(dataclasses.replace(contest, makers=makers))
    return found


def _compete_together(contest: Contest) -> dict[str, Result | Failure]:
    found: dict[str, Result | Failure] = {}
    ready: dict[str, _Ready] = {}
    with ThreadPoolExecutor(len(contest.makers)) as pool:
        started = pool.map(lambda name: _start(contest, name), contest.makers)
        for name, outcome in zip(contest.makers, started, strict=True):
            if isinstance(outcome, _Ready):
                ready[name] = outcome
            else:
                found[name] = outcome
    try:
        found |= _take_turns(contest, ready)
    finally:
        for one in ready.values():
            one.worker.close()
    return {name: found[name] for name in contest.makers}


def _start(contest: Contest, name: str) -> _Ready | Failure:
    """Return the warm competitor, or why it failed; torch at last without compiling."""
    try:
        return _warm_up(contest, name)
    except UserError as error:
        if name != "torch" or contest.settings.torch_mode == EAGER:
            return error
        settings = dataclasses.replace(contest.settings, torch_mode=EAGER)
        eager = _start(dataclasses.replace(contest, settings=settings), name)
        if isinstance(eager, _Ready):
            return dataclasses.replace(eager, compile_error=str(error))
        return eager
    except (OutOfMemory, OutOfTime) as error:
        return error


def _warm_up(contest: Contest, name: str) -> _Ready:
    environment = {"JAX_COMPILATION_CACHE_DIR": contest.cache}
    end = contest.deadline - TURNS_SECONDS
    worker = Worker(name, contest.makers[name], contest.settings, environment, end)
    try:
        first = tuple(worker.step() for _ in range(contest.warm_up))
        flops = worker.flops()
    except FAILURES:
        worker.close()
        raise
    worker.deadline = contest.deadline
    return _Ready(worker, first, flops)


def _take_turns(
    contest: Contest, ready: Mapping[str, _Ready]
) -> dict[str, Result | Failure]:
    """Return the turns that each competitor finished, or why it finished none."""
    turns: dict[str, list[Turn]] = {name: [] for name in ready}
    failures: dict[str, Failure] = {}
    for _ in range(contest.turns):
        for name, one in ready.items():
            try:
                if name not in failures:
                    turns[name].append(_turn(one, contest.steps))
            except FAILURES as error:
                failures[name] = error
    # Equally many of each, because ratios are computed in each turn.
    count = min((len(found) for found in turns.values() if found), default=0)
    results = {
        name: Result(tuple(found[:count]), ready[name].flops, ready[name].compile_error)
        for name, found in turns.items()
        if found
    }
    return {**failures, **results}


def _turn(one: _Ready, steps: int) -> Turn:
    done = [one.worker.step() for _ in range(steps)]
    losses = [loss for _, loss in (*one.first, *done)]
    return Turn(
        one.first[0][0],
        tuple(seconds for seconds, _ in done),
        tuple(losses),
        one.worker.peak_gib(),
    )
