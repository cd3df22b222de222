"""The lines that a run logs: one line for each report, all aligned.

  step 120/600 · loss 0.0712 · lr 1.0e-03 ·  16.1 images/s ·  12% waiting for data · …
  step 120/600 · loss 0.0712 · … ·  91.3 images/s · 402.1 TFLOP/s (MFU 41%) · …
  step 120/600 · val loss 0.0680 · edge_f1 0.5360 (chance 0.4390) · took 0:12

The lines show the main numbers. `metrics.csv` and TensorBoard have all of them.
"""

import math
from collections.abc import Mapping

from medjax.logs import duration

_CHANCE = "_chance"
_RATE = "train/learning_rate"


def training_line(
    step: int, total: int, row: Mapping[str, float], seconds_left: float | None
) -> str:
    """Return the line for one report of training.

    Args:
        step: Steps done.
        total: Steps of the whole run.
        row: Metrics by column of ``metrics.csv``. Missing ones are left out.
        seconds_left: Seconds until the last step. None means unknown.
    """
    parts = [step_of(step, total)]
    if "train/loss" in row:
        parts.append(f"loss {number(row['train/loss'])}")
    if _RATE in row:
        # Learning rates of single networks follow in brackets.
        own = [
            f" ({name.removeprefix(f'{_RATE}_')} {rate:.1e})"
            for name, rate in row.items()
            if name.startswith(f"{_RATE}_")
        ]
        parts.append(f"lr {row[_RATE]:.1e}{''.join(own)}")
    if "images_per_second" in row:
        speed = row["images_per_second"]
        parts.append(f"{speed:{'5.1f' if speed >= 9.995 else '5.2f'}} images/s")
    if "tflops_per_device" in row:
        mfu = f"(MFU {100 * row['mfu']:.0f}%)"
        parts.append(f"{row['tflops_per_device']:5.1f} TFLOP/s {mfu}")
    if "data_wait_fraction" in row:
        parts.append(f"{100 * row['data_wait_fraction']:3.0f}% waiting for data")
    if seconds_left is not None:
        parts.append(f"{duration(seconds_left)} left")
    if row.get("train/skipped_updates", 0) > 0:
        parts.append(f"{row['train/skipped_updates']:.0f} skipped")
    return " · ".join(parts)


def evaluation_line(
    step: int, total: int, row: Mapping[str, float], seconds: float
) -> str:
    """Return the line for one evaluation: each metric, with its level of chance.

    Args:
        step: Steps done.
        total: Steps of the whole run.
        row: Metrics by column, e.g. ``val/edge_f1`` and ``val/edge_f1_chance``.
        seconds: Duration of the evaluation.
    """
    parts, split = [step_of(step, total)], ""
    for column, value in row.items():
        prefix, _, name = column.rpartition("/")
        if name.endswith(_CHANCE) and column.removesuffix(_CHANCE) in row:
            continue
        chance = row.get(column + _CHANCE)
        told = f"{name} {number(value)}"
        if chance is not None:
            told += f" (chance {number(chance)})"
        parts.append(told if prefix == split else f"{prefix} {told}")
        split = prefix
    return " · ".join([*parts, f"took {duration(seconds)}"])


def step_of(step: int, total: int) -> str:
    """Return ``step  12/600``, equally wide for every step."""
    return f"step {step:>{len(str(total))}}/{total}"


def number(value: float) -> str:
    """Return a number in six characters, or in more if its leading digits need them."""
    size = abs(value)
    if not math.isfinite(value):
        return f"{value:6}"
    if size >= 10_000 or 0 < size < 0.001:
        return f"{value:.1e}"
    return f"{value:6.{5 - len(str(int(size)))}f}"
