r"""Measure a GPU within some minutes: training steps and sampling, against torch.

    python -m bench.gpu                       eight minutes
    python -m bench.gpu --minutes=30          all batches
    python -m bench.gpu --network=tiny        a minute on the CPU, to try it out

It measures a ControlNet's step, sampling and a LoRA step in turn, each with the next of
its batches. A measurement that the remaining time does not allow is skipped, and the
page says so. The page is written again after each measurement.
"""

import argparse
import dataclasses
import itertools
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.gpu_cases import OURS, PARTS, TORCH, Case, Limits, measure
from bench.networks import (
    DTYPES,
    EAGER,
    TORCH_MODES,
    UNETS,
    Settings,
    check_choices,
)
from bench.report import Machine, Row
from bench.step import PACKAGES
from medjax.errors import UserError

# What a network has if the flags do not say. The first batch of each part shows most.
# `guess` is the seconds of the first measurement, before any is known.
DEFAULTS: dict[str, dict[str, Any]] = {
    "sd15": {
        "size": 512,
        "dtype": "bfloat16",
        "steps": 10,
        "controlnet_batch": "8,16,1,32,4,2,64",
        "sample_batch": "1",
        "lora_batch": "8,1",
        "guess": 120.0,
    },
    "tiny": {
        "size": 32,
        "dtype": "float32",
        "steps": 2,
        "controlnet_batch": "2",
        "sample_batch": "1",
        "lora_batch": "2",
        "guess": 10.0,
    },
}
# Seconds to start, to end the last processes, and to write the page.
RESERVE = 15.0
LEAST_SPEED, LEAST_MFU = 1.5, 40.0
ABOUT = """
Training steps of a ControlNet and of adapters (LoRA), and sampling with a ControlNet.
Latents, text embeddings and conditioning images are given, so no autoencoder or text
encoder is in a step. Both competitors have the same weights and inputs, and take the
same steps: loss, gradient, clipping and AdamW. The command compared their first losses,
and the means of their images. Both start and compile at the same time. Then they take
turns, A B A B …, and both stay in the memory of the device. A competitor that does not
fit beside the other is measured alone, after it.

* **ms per step**, **s per image**: median (smallest–largest) over all turns.
* **speed / torch's**: time of torch divided by the time of this row. Each turn gives
  the ratio of two medians; this is the median (smallest–largest) of the turns. Above 1,
  it is faster than torch.
* **TFLOP/s**, **MFU**: FLOPs of medjax's program divided by the time, and by the peak
  of the device for bfloat16. torch's rows have the same FLOPs, because the work is the
  same.
* **peak memory**: that of the competitor on the device, with what it took to compile
  and to try out kernels; on the CPU, that of its process.
* **first step**: seconds of the first step, including compilation.
* **loss**: loss before the first and before the last step; of sampling, the mean of the
  first and of the last images.
* **torch** is diffusers, compiled by `torch.compile`, with channels last, scaled
  dot-product attention, fused AdamW, and autocast in bfloat16; on the CPU it is not
  compiled. **torch, eager** is the same without compilation.
* **Not measured** lists everything that was left out, and why.
"""


def targets(rows: Sequence[Row]) -> list[Row]:
    """Return what a ControlNet's rows reach of the targets."""
    best = {
        name: max((row for row in rows if row["competitor"] == name), key=_rate)
        for name in {row["competitor"] for row in rows}
    }
    torch = [row for name, row in best.items() if name.startswith(TORCH)]
    ours = best.get(OURS)
    both = _rate(ours) / max(map(_rate, torch)) if ours and torch else "unknown"
    found = {
        f"MFU ≥ {LEAST_MFU:g}%": (ours["MFU, %"] if ours else "unknown", LEAST_MFU),
        f"images/s ≥ {LEAST_SPEED:g} times torch's, each at its best batch": (
            both,
            LEAST_SPEED,
        ),
    }
    return [
        {
            "target": target,
            "measured": value,
            "reached": value >= least if isinstance(value, float) else "unknown",
        }
        for target, (value, least) in found.items()
    ]


def _rate(row: Row) -> float:
    return row["images/s"]


def plan(flags: argparse.Namespace) -> list[Case]:
    """Return the cases: the parts in turn, each with the next of its batches."""
    check_choices(flags.network, flags.size, [flags.dtype])
    rounds = itertools.zip_longest(*(_cases(part, flags) for part in PARTS))
    return [case for one in rounds for case in one if case is not None]


def _cases(part: str, flags: argparse.Namespace) -> list[Case]:
    batches = getattr(flags, f"{part}_batch")
    numbers = [text for text in batches.split(",") if text]
    if not all(text.isdecimal() and int(text) for text in numbers):
        raise UserError(
            f"--{part}-batch={batches}: expected numbers of at least 1, by commas"
        )
    trains = "lora" if part == "lora" else "controlnet"
    settings = Settings(
        flags.network, flags.size, 1, flags.dtype, trains, flags.torch_mode
    )
    return [
        Case(part, dataclasses.replace(settings, batch=int(text))) for text in numbers
    ]


def _flags() -> argparse.Namespace:
    flags = report.parser(__doc__)
    real, tiny = DEFAULTS["sd15"], DEFAULTS["tiny"]

    def told(name: str) -> str:
        return f"({real[name]}; tiny: {tiny[name]})"

    flags.add_argument("--network", choices=sorted(UNETS), default="sd15")
    flags.add_argument("--minutes", type=float, default=8, help="time (%(default)s)")
    flags.add_argument("--size", type=int, help=f"pixels {told('size')}")
    for part in PARTS:
        about = f"batches in this order, by commas {told(f'{part}_batch')}"
        flags.add_argument(f"--{part}-batch", help=about)
    flags.add_argument("--dtype", choices=DTYPES, help=told("dtype"))
    flags.add_argument("--torch-mode", choices=TORCH_MODES, default=TORCH_MODES[0])
    flags.add_argument("--steps", type=int, help=f"per turn {told('steps')}")
    flags.add_argument("--repeats", type=int, default=3, help="turns (%(default)s)")
    given = flags.parse_args()
    for name, value in DEFAULTS[given.network].items():
        if getattr(given, name, None) is None:
            setattr(given, name, value)
    return given


def main() -> Path:
    """Measure as the flags say, and return the page that it writes."""
    start = time.monotonic()
    flags = _flags()
    report.check_counts(flags, "steps", "repeats")
    cases = plan(flags)
    if not cases or not flags.minutes > 0:
        raise UserError("nothing to measure: expected a batch, and --minutes above 0")
    on = report.machine()
    if not on.accelerated:
        cases = [
            dataclasses.replace(
                case, settings=dataclasses.replace(case.settings, torch_mode=EAGER)
            )
            for case in cases
        ]
    deadline = start + 60 * flags.minutes - RESERVE
    tables: dict[str, list[Row]] = {}
    skipped: list[Row] = []
    with tempfile.TemporaryDirectory() as cache:
        limits = Limits(flags.steps, flags.repeats, cache, deadline, flags.guess)
        for finding in measure(cases, limits, on):
            tables.setdefault(_caption(finding.case), []).extend(finding.rows)
            skipped.extend(finding.skipped)
            page = _write(flags, tables, skipped, on)
    return page


def _write(
    flags: argparse.Namespace,
    tables: Mapping[str, Sequence[Row]],
    skipped: Sequence[Row],
    on: Machine,
) -> Path:
    """Write the page and the JSON file of everything that was measured so far."""
    measured = {caption: rows for caption, rows in tables.items() if rows}
    of_controlnet = [
        row
        for caption, rows in measured.items()
        if caption.startswith(PARTS["controlnet"].title)
        for row in rows
    ]
    case = (flags.network, flags.size, flags.dtype)
    if case == ("sd15", 512, "bfloat16") and of_controlnet:
        measured = {"Target": targets(of_controlnet), **measured}
    if skipped:
        measured["Not measured"] = skipped
    return report.write_results(
        "gpu" if flags.network == "sd15" else f"gpu-{flags.network}",
        "A GPU: training steps and sampling",
        ABOUT,
        measured,
        on,
        (*PACKAGES, "peft"),
        flags.out,
    )


def _caption(case: Case) -> str:
    settings = case.settings
    about = f"{settings.network}, {settings.size}², {settings.dtype}"
    return f"{PARTS[case.part].title}: {about}"


if __name__ == "__main__":
    report.run(main)
