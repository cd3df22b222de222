"""Measure one case of `bench.gpu` after the other, as long as the time allows."""

import dataclasses
import importlib.util
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench import sample, step
from bench.lora_competitors import CONTESTS
from bench.networks import EAGER, Settings
from bench.painters import PAINTERS, STEPS
from bench.report import Machine, Row, Spread
from bench.turns import Contest, Failure, Result, compete
from bench.workers import WARM_UP, Make, OutOfMemory
from medjax.chips import Chip, find_chip
from medjax.errors import UserError

OURS, TORCH = "medjax", "torch"


@dataclasses.dataclass(frozen=True)
class Part:
    """A kind of measurement.

    Attributes:
        title: Title of its table.
        makers: Functions that make the competitors, and the packages that they require.
        unit: Column of the time.
        scale: Number of this unit in a second.
        of_image: Whether the time is that of an image, not of a batch.
        warm_up: Steps before the first turn.
        share: Steps of a turn, as a part of those of the flags.
    """

    title: str
    makers: Mapping[str, tuple[Make, Sequence[str]]]
    unit: str = "ms per step"
    scale: float = 1e3
    of_image: bool = False
    warm_up: int = WARM_UP
    share: float = 1.0


PARTS = {
    "controlnet": Part("Training step of a ControlNet", CONTESTS["controlnet"]),
    "sample": Part(
        f"Sampling with guidance and a ControlNet, {STEPS} steps of DDIM",
        {name: (one.make, one.packages) for name, one in PAINTERS.items()},
        unit="s per image",
        scale=1.0,
        of_image=True,
        warm_up=1,
        share=0.2,
    ),
    "lora": Part("Training step of adapters (LoRA)", CONTESTS["lora"]),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement: a key of `PARTS`, and settings with the batch."""

    part: str
    settings: Settings


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much to measure.

    Attributes:
        steps: Timed steps of a turn.
        turns: Turns of each competitor.
        cache: Folder of jax's compilation cache.
        deadline: Time of `time.monotonic` at which everything ends.
        guess: Seconds of a case before any was measured.
    """

    steps: int
    turns: int
    cache: str
    deadline: float
    guess: float


@dataclasses.dataclass(frozen=True)
class Finding:
    """Rows of a case, and rows that say what was skipped and why."""

    case: Case
    rows: list[Row]
    skipped: list[Row]


def measure(cases: Sequence[Case], limits: Limits, on: Machine) -> Iterator[Finding]:
    """Yield the finding of each case, in their order.

    A case that takes longer than the rest of the time is skipped. It is expected to
    take as long as the longest of its part, or else as the longest of all. A competitor
    skips all batches from the first that does not fit.
    """
    spent: dict[str, float] = {}
    full: dict[tuple[str, str], int] = {}
    for case in cases:
        makers, skipped = _makers(case, full)
        left = limits.deadline - time.monotonic()
        longest = max(spent.values(), default=limits.guess)
        needed = spent.get(case.part, longest)
        if makers and left < needed:
            why = f"it takes about {needed:.0f} s, and {max(left, 0):.0f} s were left"
            yield Finding(case, [], [*skipped, _skipped(case, "all", why)])
            continue
        start = time.monotonic()
        about = f"{case.part}, batch {case.settings.batch}"
        print(f"{about}: {', '.join(makers)} …", file=sys.stderr, flush=True)
        found = compete(_contest(case, makers, limits)) if makers else {}
        seconds = time.monotonic() - start
        spent[case.part] = max(seconds, spent.get(case.part, 0.0))
        for name, outcome in found.items():
            if isinstance(outcome, OutOfMemory):
                full[case.part, name] = case.settings.batch
        yield _finding(case, found, skipped, on)


def _makers(
    case: Case, full: Mapping[tuple[str, str], int]
) -> tuple[dict[str, Make], list[Row]]:
    """Return the competitors of a case, and the reasons of those that cannot."""
    makers: dict[str, Make] = {}
    skipped = []
    for name in (OURS, TORCH):
        make, packages = PARTS[case.part].makers[name]
        absent = [one for one in packages if importlib.util.find_spec(one) is None]
        batch = full.get((case.part, name), case.settings.batch + 1)
        if absent:
            why = f"not installed: {', '.join(absent)}"
            skipped.append(_skipped(case, name, why))
        elif batch <= case.settings.batch:
            why = f"batch {batch} does not fit into memory"
            skipped.append(_skipped(case, name, why))
        else:
            makers[name] = make
    return makers, skipped


def _contest(case: Case, makers: Mapping[str, Make], limits: Limits) -> Contest:
    part = PARTS[case.part]
    steps = max(1, round(part.share * limits.steps))
    return Contest(
        makers,
        case.settings,
        part.warm_up,
        steps,
        limits.turns,
        limits.cache,
        limits.deadline,
    )


def _finding(
    case: Case,
    found: Mapping[str, Result | Failure],
    skipped: list[Row],
    on: Machine,
) -> Finding:
    results = {name: one for name, one in found.items() if isinstance(one, Result)}
    for name, outcome in found.items():
        if not isinstance(outcome, Result):
            why = "out of memory: " if isinstance(outcome, OutOfMemory) else ""
            skipped.append(_skipped(case, name, f"{why}{outcome}"))
        elif outcome.compile_error:
            why = f"torch.compile failed: {outcome.compile_error}"
            skipped.append(_skipped(case, f"{name}, compiled", why))
    try:
        _check_same(case, results, on.accelerated)
    except UserError as error:
        skipped.append(_skipped(case, "all but medjax", str(error)))
        results = {name: one for name, one in results.items() if name == OURS}
    chip = find_chip(on.described["accelerator"]) if on.accelerated else None
    return Finding(case, [_row(case, name, results, chip) for name in results], skipped)


def _check_same(case: Case, results: Mapping[str, Result], accelerated: bool) -> None:
    """Raise UserError if the competitors do not compute the same."""
    if len(results) < 2:
        return
    first = {name: one.turns[0].losses[0] for name, one in results.items()}
    if PARTS[case.part].of_image:
        sample.check_means(first, case.settings)
    else:
        step.check_losses(first, case.settings, accelerated)


def _row(
    case: Case, name: str, results: Mapping[str, Result], chip: Chip | None
) -> Row:
    part, own, batch = PARTS[case.part], results[name], case.settings.batch
    seconds = Spread(tuple(s for turn in own.turns for s in turn.seconds))
    scale = part.scale / (batch if part.of_image else 1)
    flops = results[OURS].flops if OURS in results else None
    tflops = flops / seconds.median / 1e12 if flops else None
    torch = results.get(TORCH)
    return {
        "batch": batch,
        "competitor": _label(case, name, own),
        part.unit: Spread(tuple(scale * s for s in seconds.values)),
        "images/s": batch / seconds.median,
        "speed / torch's": _medians(torch) / _medians(own) if torch else "unknown",
        "TFLOP/s": tflops or "unknown",
        "MFU, %": 100 * tflops / chip.tflops if tflops and chip else "unknown",
        "peak memory, GiB": own.turns[0].peak,
        "first step, s": own.turns[0].first,
        "loss": f"{own.turns[0].losses[0]:.5f}, {own.turns[-1].losses[-1]:.5f}",
    }


def _label(case: Case, name: str, result: Result) -> str:
    """Return the name of a competitor, with the way of torch."""
    mode = EAGER if result.compile_error else case.settings.torch_mode
    return name if name != TORCH or mode == "default" else f"{name}, {mode}"


def _medians(result: Result) -> Spread:
    return Spread(tuple(statistics.median(turn.seconds) for turn in result.turns))


def _skipped(case: Case, name: str, why: Any) -> Row:
    return {
        "part": case.part,
        "batch": case.settings.batch,
        "competitor": name,
        "why": " ".join(str(why).split()),
    }
