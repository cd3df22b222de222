"""Build the spine: vertebral bodies with discs between them, pedicles, processes."""

import functools
from typing import Any

import numpy as np
from jaxtyping import Float

from medjax.data.phantoms.chest.shapes import Grid, Table, half_chord, table_y
from medjax.data.phantoms.chest.tubes import Tubes, bones
from medjax.data.phantoms.poses import Image

_BODY_DEPTH = 0.31
"""Optical depth of a vertebral body minus that of soft tissue, in a young adult."""


@functools.cache
def _vertebra_y() -> Float[np.ndarray, " v"]:
    """Return the upper ends of the vertebrae, from the neck to the loins, in cm."""
    # Lower vertebrae are taller: 1.75 cm at the neck, 3.3 cm at the loins.
    y = [-32.0]
    while y[-1] < 40:
        y.append(y[-1] + float(np.clip(2.15 + 0.033 * (y[-1] + 4), 1.75, 3.3)))
    return np.array(y)


def _half_width(y: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return the half width of the vertebral bodies, in cm."""
    return np.clip(1.62 + 0.028 * y, 1.25, 2.4)


def vertebrae(grid: Grid, age: int) -> Image:
    """Return the depth that the vertebral bodies add to that of soft tissue."""
    y, tops = table_y(), _vertebra_y()
    which = np.clip(np.searchsorted(tops, y, side="right") - 1, 0, len(tops) - 2)
    height = np.diff(tops)[which]
    # From the middle of a disc to its vertebra: disc, endplate, spongy bone.
    from_disc = np.minimum(y - tops[which], tops[which] + height - y)
    disc = 0.085 * height
    bone = np.where(from_disc < disc, 0.25, 1.0)
    bone += 0.5 * np.clip(1 - np.abs(from_disc - disc - 0.1) / 0.12, 0, 1)
    bone = _mean_over(bone, grid.pixel_cm)
    # Vertebral bodies have waists.
    waist = 1 - 0.1 * np.clip(from_disc / height * 2, 0, 1)
    half = _half_width(y) * waist
    u = grid.x * grid.at(1 / half)
    u *= u
    shape = half_chord(1 - u * u, 2 * grid.pixel_cm)
    return grid.at(_BODY_DEPTH * bone_density(age) * bone) * shape


@functools.cache
def vertebral_arches() -> list[Tubes]:
    """Return the pedicles and transverse processes of the left side."""
    top = _vertebra_y()
    height, width = np.diff(top), _half_width(top[:-1])
    y = top[:-1] + 0.42 * height
    pedicle = [
        (0.62 * width, y - 0.22 * height, 0.26, 0.1),
        (0.62 * width, y, 0.34, 0.55),
        (0.62 * width, y + 0.22 * height, 0.26, 0.1),
    ]
    process = [
        (0.9 * width, y, 0.36, 0.15),
        (1.35 * width, y - 0.15, 0.33, 0.3),
        (1.75 * width, y - 0.35, 0.4, 0.3),
        (1.95 * width, y - 0.4, 0.3, 0.05),
    ]
    return [_stack_bones(pedicle), _stack_bones(process)]


def _stack_bones(knots: list[tuple[Any, ...]]) -> Tubes:
    """Return one bone per vertebra. Knots have one number for all, or one for each."""
    columns = [np.stack(np.broadcast_arrays(*knot), axis=1) for knot in knots]
    return bones(np.stack(columns, axis=1), core=0.7)


def bone_density(age: int) -> float:
    """Return the attenuation of bone relative to a young adult's."""
    return 1.0 - 0.35 * max(0, age - 40) / 50


def _mean_over(table: Table, width_cm: float) -> Table:
    """Return the running mean of a tabulated function."""
    step = table_y()[1] - table_y()[0]
    half = max(1, round(width_cm / step / 2))
    total = np.cumsum(np.pad(table, half, mode="edge"))
    return (total[2 * half :] - total[: -2 * half]) / (2 * half)
