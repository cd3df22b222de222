"""Draw the curves of a run, from its ``metrics.csv``, on one page.

Each metric has a panel. It shows the training values (raw and smoothed), the validation
values, and the levels to compare with (``val/edge_f1_chance`` with ``val/edge_f1``).
The loss comes first, then the metrics of validation. The learning rate and the gradient
norm come last.
"""

import csv
import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from medjax import storage
from medjax.errors import UserError

_LOSS = "loss"
# Prefixes, because a network may have its own learning rate.
_STEERING = ("learning_rate", "grad_norm")
# Columns about time and memory, not about learning.
_LEFT_OUT = (
    "step",
    "images_per_second",
    "seconds_per_step",
    "tflops_per_device",
    "mfu",
    "data_wait_fraction",
    "train/skipped_updates",
    "host_memory_gib",
    "device_memory_gib",
)
_COMPARED = ("_chance", "_real")
_TRAIN, _VALIDATION, _LEVEL = "#4c78a8", "#e4572e", "#8a8a8a"
# A loss or gradient norm with a larger ratio of maximum to minimum gets a log scale.
_WIDE = 20.0
# Half the width of the smoothing window, as a fraction of the curve.
_SMOOTHING = 1 / 40


@dataclasses.dataclass(frozen=True)
class Curve:
    """One column of the table, without the rows that have no value.

    Attributes:
        steps: Step of each value.
        values: Values, with NaN and infinities if training diverged.
    """

    steps: Float[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]


def save_curves(metrics_csv: str | Path, png: str | Path) -> None:
    """Draw the curves of a run as PNG. Create its folder if it is missing.

    Args:
        metrics_csv: Table of a finished or unfinished run, as training writes it.
        png: File to write.

    Raises:
        UserError: If the table cannot be read, or has no values.
    """
    # Imported here, because only drawing needs it. A Figure without pyplot does not
    # look for a screen.
    from matplotlib.figure import Figure

    curves = read_curves(metrics_csv)
    panels = group(curves)
    first, *others = panels
    pairs = [others[i : i + 2] for i in range(0, len(others), 2)]
    rows: Any = [[first, first], *([*pair, "."][:2] for pair in pairs)]
    height = 4.2 + 2.6 * len(pairs)
    figure = Figure(figsize=(10, height), dpi=110, layout="constrained")
    heights = [1.5] + [1.0] * len(pairs)
    axes = figure.subplot_mosaic(rows, height_ratios=heights)
    for name, members in panels.items():
        _draw(axes[name], name, {key: curves[key] for key in members})
    figure.suptitle(Path(metrics_csv).absolute().parent.name)
    with storage.writing(png) as file:
        figure.savefig(file, format="png")


def read_curves(metrics_csv: str | Path) -> dict[str, Curve]:
    """Return the columns of a run's table that have values, by name.

    A last line without its newline is skipped, because the run is still writing it.

    Raises:
        UserError: If the table cannot be read, or has no values.
    """
    path = Path(metrics_csv)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    rows = csv.DictReader(text.rpartition("\n")[0].splitlines(), restval="")
    points: dict[str, list[tuple[float, float]]] = {}
    try:
        for row in rows:
            for name in row.keys() - set(_LEFT_OUT):
                if row[name]:
                    point = float(row["step"]), float(row[name])
                    points.setdefault(name, []).append(point)
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(
            f"{path}, line {rows.line_num}: not a row of a run's metrics ({error}); "
            "expected a column 'step', and numbers"
        ) from error
    if not points:
        raise UserError(f"{path}: has no values yet; a run writes them during training")
    return {
        name: Curve(*np.asarray(points[name], float).T)
        for name in rows.fieldnames or ()
        if name in points
    }


def group(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of the curves of each panel, by the panel's name, in order."""
    panels: dict[str, list[str]] = {}
    for name in names:
        panels.setdefault(_panel(name), []).append(name)

    def place(panel: str) -> tuple[bool, bool, bool]:
        validated = any(name.startswith("val/") for name in panels[panel])
        return panel != _LOSS, panel.startswith(_STEERING), not validated

    return {panel: panels[panel] for panel in sorted(panels, key=place)}


def smooth(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return centred means over a fortieth of the curve to each side.

    Near the ends the window is shorter, but still symmetric, so that a straight line
    stays straight. Values that are not finite do not count.
    """
    count = len(values)
    places = np.arange(count)
    reach = np.minimum(math.ceil(count * _SMOOTHING), places)
    reach = np.minimum(reach, count - 1 - places)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.where(finite, values, 0.0).cumsum()])
    counts = np.concatenate([[0], finite.cumsum()])
    low, high = places - reach, places + reach + 1
    within = counts[high] - counts[low]
    means = (sums[high] - sums[low]) / np.maximum(within, 1)
    return np.where(within > 0, means, np.nan)


def _panel(name: str) -> str:
    panel = name.rpartition("/")[2]
    for suffix in _COMPARED:
        panel = panel.removesuffix(suffix)
    return panel


def _draw(axes: Any, panel: str, curves: Mapping[str, Curve]) -> None:
    """Draw the curves of one panel."""
    for name, curve in curves.items():
        if name.endswith(_COMPARED):
            label = name.rpartition("_")[2]
            style = {"color": _LEVEL, "linestyle": "--"}
            axes.plot(curve.steps, curve.values, label=label, **style)
        elif name.startswith("val/"):
            label = "validation" + (_best(curve) if panel == _LOSS else "")
            style = {"color": _VALIDATION, "marker": "o"}
            axes.plot(curve.steps, curve.values, label=label, markersize=4, **style)
        elif panel.startswith("learning_rate"):
            axes.plot(curve.steps, curve.values, color=_TRAIN, label="training")
        else:
            axes.plot(curve.steps, curve.values, color=_TRAIN, alpha=0.25, linewidth=1)
            smoothed = smooth(curve.values)
            axes.plot(curve.steps, smoothed, color=_TRAIN, label="training, smoothed")
    everything = np.concatenate([curve.values for curve in curves.values()])
    if panel in (_LOSS, "grad_norm") and _is_wide(everything):
        axes.set_yscale("log")
    axes.set_title(panel.replace("_", " "), loc="left", fontsize=11)
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    axes.margins(x=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1 or panel == _LOSS:
        axes.legend(frameon=False, fontsize=9)


def _best(curve: Curve) -> str:
    """Return the lowest loss and its step, as text for the legend."""
    finite = np.isfinite(curve.values)
    if not finite.any():
        return ""
    lowest = np.where(finite, curve.values, np.inf).argmin()
    return f" (lowest {curve.values[lowest]:.4g} at step {curve.steps[lowest]:.0f})"


def _is_wide(values: Float[np.ndarray, " n"]) -> bool:
    usable: Bool[np.ndarray, " n"] = np.isfinite(values)
    finite = values[usable]
    return bool(
        finite.size and finite.min() > 0 and finite.max() / finite.min() > _WIDE
    )
