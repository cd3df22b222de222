"""Compute the soft organs: body, breasts, lungs, diaphragm, heart and stomach.

Half chords and chords are in cm; see `chest.shapes`.
"""

import numpy as np

from medjax.data.phantoms.chest.bones import arm_ends
from medjax.data.phantoms.chest.cavity import (
    BOTTOM,
    HALF_WIDTH_CM,
    TOP,
    cavity_depth,
    cavity_edge,
    cavity_medial_edge,
)
from medjax.data.phantoms.chest.parameters import ChestParameters
from medjax.data.phantoms.chest.shapes import (
    Grid,
    capsule,
    ellipsoid,
    half_chord,
    merge,
    overlap,
    stack,
    table_y,
    tabulate,
)
from medjax.data.phantoms.poses import Image

# z of the centres, in cm. The cavity's centre is z = 0.
_HEART_Z = 1.0
_DOME_Z = 0.5


def body(grid: Grid, parameters: ChestParameters) -> Image:
    """Return the half chord of trunk, neck, head and arms."""
    fat = parameters.habitus
    wall = 1.9 + 2.6 * fat
    outline = tabulate(
        {
            -27: 6.6,
            -22: 5.7 + 0.8 * fat,
            -18.5: 5.9 + 1.2 * fat,
            -16: 8.0 + 1.6 * fat,
            -14: 11.5 + 1.5 * fat,
            -11: 14.2 + fat,
            -5: 14.4 + wall / 2,
            2: HALF_WIDTH_CM + wall,
            12: HALF_WIDTH_CM + 0.9 * wall,
            20: 12.6 + 1.3 * wall,
            34: 14.0 + 1.4 * wall,
        }
    )
    depth = tabulate(
        {
            -22: 5.8,
            -16: 6.8 + fat,
            -11: 9.0 + fat,
            -3: 10.2 + 1.5 * fat,
            6: 10.8 + 2.0 * fat,
            20: 10.8 + 2.8 * fat,
        }
    )
    shoulder, elbow = arm_ends(parameters)
    thick = 4.0 + 1.3 * fat
    parts = [
        stack(grid, -outline, outline, depth, boxy=True),
        capsule(grid, ((0, -40), (0, -30)), (9, 8.2)),
    ]
    for side in (-1, 1):
        joint, end = (
            (side * shoulder[0], shoulder[1] + 0.6),
            (side * elbow[0], elbow[1]),
        )
        parts += [
            capsule(grid, (joint, end), (thick + 0.6, thick - 0.6)),
            capsule(grid, ((side * 7.5, -12.2), joint), (thick - 0.3, thick)),
        ]
    return merge(parts)


def breasts(grid: Grid, parameters: ChestParameters) -> Image:
    """Return the half chord of a woman's breasts, sharp below and soft above."""
    size = 0.8 + 0.5 * parameters.habitus
    total = np.zeros_like(grid.x)
    for side in (-1, 1):
        u = (grid.x - np.float32(side * 8.4)) * np.float32(1 / (6.0 * size))
        y = grid.y - np.float32(3.4)
        v = np.where(y > 0, y * np.float32(1 / (4.6 * size)), y * np.float32(1 / 9.0))
        inside = 1 - u * u - v * v
        total += np.float32(1.6 * size) * half_chord(inside, grid.pixel_cm / 2)
    return total


def lung(grid: Grid, parameters: ChestParameters, side: int, heart: Image) -> Image:
    """Return the chord of a lung: its cavity without heart and abdomen, in cm.

    Args:
        grid: Body coordinates of the pixels.
        parameters: Parameters of the phantom.
        side: -1 for the right lung, 1 for the left.
        heart: Half chord of the mediastinum.
    """
    chest, middle = (_cavity(grid, side), 0.0), (heart, _HEART_Z)
    abdomen = (_dome(grid, parameters, side), _DOME_Z)
    taken = overlap(chest, abdomen) + overlap(chest, middle)
    both = overlap(chest, abdomen, middle)
    return np.maximum(2 * chest[0] - taken + both, np.float32(0))


def _cavity(grid: Grid, side: int) -> Image:
    """Return the half chord of one half of the thoracic cavity."""
    inside = (table_y() > TOP) & (table_y() < BOTTOM)
    low = np.where(inside, cavity_medial_edge(), 0)
    high = np.where(inside, cavity_edge(), 0)
    if side < 0:
        low, high = -high, -low
    return stack(grid, low, high, cavity_depth())


def dome_top(parameters: ChestParameters, side: int) -> float:
    """Return y of the top of a hemidiaphragm, in cm."""
    return 4.6 + 3.6 * parameters.inspiration + (0.8 if side > 0 else -0.4)


def _dome(grid: Grid, parameters: ChestParameters, side: int) -> Image:
    """Return the half chord of the abdomen under one hemidiaphragm."""
    top, reach = dome_top(parameters, side), 12.8 - dome_top(parameters, side)
    height = 1.25 * reach
    u = (grid.x - np.float32(side * 6.3)) * np.float32(1 / 7.5)
    v = np.minimum(grid.y - np.float32(top + height), 0) * np.float32(1 / height)
    inside = 1 - u * u - v * v
    return np.float32(14) * half_chord(inside, 2 * grid.pixel_cm / height)


def heart_edges(parameters: ChestParameters) -> tuple[float, float]:
    """Return x of the heart's right and left border, in cm. Right is negative."""
    width = 2 * HALF_WIDTH_CM * parameters.heart_width_ratio
    return -0.31 * width, 0.69 * width


def mediastinum(grid: Grid, parameters: ChestParameters) -> Image:
    """Return the half chord of heart and great vessels."""
    right, left = heart_edges(parameters)
    k = (left - right) / 12.2
    bottom = dome_top(parameters, 1) + 2.6 + 2 * (k - 1)
    # A larger heart is tilted less. Its ventricles are a tilted ellipse. They begin at
    # the left border and end before the right border, which belongs to the atrium.
    tilt, b, reach_x = 35 - 18 * (k - 1), 5.0 * k**0.6, 0.46 * (left - right)
    cos, sin = float(np.cos(np.deg2rad(tilt))), float(np.sin(np.deg2rad(tilt)))
    a = float(np.sqrt(reach_x**2 - (b * sin) ** 2)) / cos
    reach_y = float(np.sqrt((a * sin) ** 2 + (b * cos) ** 2))
    ventricles = ellipsoid(
        grid, (left - reach_x, bottom - reach_y), (a, b, 6.2 * k**0.5), tilt
    )
    atrium = ellipsoid(
        grid, (right + 3.7 * k, bottom - 5.3 * k**0.8), (3.7 * k, 5.4 * k**0.8, 5.4)
    )
    aged = max(0, parameters.age - 30) / 60
    knob = ellipsoid(grid, (1.6, -6.4), (1.7 + 0.6 * aged, 1.7 + 0.4 * aged, 3.6))
    trunk = ellipsoid(grid, (1.9, -2.2), (1.7, 3.2, 3.4), -12)
    y = bottom - 6 * k
    right_edge = tabulate({-13: -2.3, -9: -2.2, -5: -2.5, -1: -2.7, y + 4: right * 0.8})
    left_edge = tabulate({-13: 2.1, -9: 2.2, -5: 2.4, -1: 2.6, y + 4: left * 0.6})
    depth = tabulate({-13: 4.0, -8: 5.0, 0: 5.4})
    column = stack(grid, right_edge, left_edge, depth)
    return merge([ventricles, atrium, knob, trunk, column])


def stomach_gas(grid: Grid, parameters: ChestParameters) -> Image:
    """Return the half chord of the gas under the left dome."""
    radius = parameters.stomach_gas_cm
    centre = (6.2, dome_top(parameters, 1) + 1.0 + radius)
    return ellipsoid(grid, centre, (1.4 * radius, radius, radius))
