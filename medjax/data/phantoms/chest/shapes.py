"""Compute the lengths of rays through solids and tubes.

Rays are parallel to z. A solid is given by its half chord h: the ray at (x, y) is
inside the solid from z_c - h(x, y) to z_c + h(x, y). For an ellipsoid of radii
(a, b, r)

    h = r sqrt(1 - x²/a² - y²/b²)                                              (1)

A stack of ellipses is (1) without the y term, and a and r are functions of y. Tubes
are computed segment by segment, each in a small window of the image. Across the axis of
a segment, the length l is the chord of an ellipse:

    l = l_0 sqrt(1 - d²/w²)                                                    (2)

Images of all sizes show the same body. For this, (1) is averaged over the pixel. (2) is
convolved with the pixel up to the second moment: w² grows by 1/3 pixel² and the area
stays the same.

Pixels are computed only with + - × ÷ √, so that all machines compute the same image.
IEEE 754 defines how to round these operations. It does not define this for exp and sin.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from medjax.data.phantoms.poses import Image, Pose

Table = Float[np.ndarray, " t"]
"""A function of y, at `table_y`."""

_TABLE_REACH_CM = 48.0
_TABLE_STEP_CM = 1 / 16


@dataclasses.dataclass(frozen=True)
class Grid:
    """Body coordinates of all pixels.

    Attributes:
        x: x in cm, positive on the patient's left.
        y: y in cm, positive downwards.
        pixel_cm: Side of a pixel, in cm of the body.
    """

    x: Image
    y: Image
    pixel_cm: float
    _row: Int[np.ndarray, "h w"]
    _rest: Image

    def at(self, table: Table) -> Image:
        """Interpolate linearly a function of y that `tabulate` made."""
        low = table.astype(np.float32)
        step = np.append(low[1:] - low[:-1], np.float32(0))
        return low[self._row] + step[self._row] * self._rest


def make_grid(pose: Pose) -> Grid:
    """Return the body coordinates of an image's pixels."""
    column = np.arange(pose.size) - pose.offset[0]
    row = (np.arange(pose.size) - pose.offset[1])[:, None]
    scale = pose.cos**2 + pose.sin**2
    x = ((pose.cos * column + pose.sin * row) / scale).astype(np.float32)
    y = ((pose.cos * row - pose.sin * column) / scale).astype(np.float32)
    place = (y + np.float32(_TABLE_REACH_CM)) * np.float32(1 / _TABLE_STEP_CM)
    place = np.clip(place, 0, table_y().size - 1.001)
    index = place.astype(np.intp)
    return Grid(x, y, 1 / pose.pixels_per_cm, index, place - index.astype(np.float32))


@functools.cache
def table_y() -> Table:
    """Return the values of y at which functions of y are tabulated, in cm."""
    return np.arange(-_TABLE_REACH_CM, _TABLE_REACH_CM, _TABLE_STEP_CM)


def tabulate(knots: Mapping[float, float]) -> Table:
    """Return a function of y that passes smoothly through knots, without overshoot.

    Args:
        knots: Value at each y, in ascending order. The function is constant beyond the
            ends.

    Source: Fritsch and Butland, "A method for constructing local monotone piecewise
    cubic interpolants", SIAM J. Sci. Stat. Comput. 1984, with equal weights.
    """
    y, value = np.array(list(knots)), np.array(list(knots.values()))
    slope = np.diff(value) / np.diff(y)
    before, after = slope[:-1], slope[1:]
    total = np.where(before * after > 0, before + after, 1)
    inner = np.where(before * after > 0, 2 * before * after / total, 0)
    tangent = np.concatenate([[0], inner, [0]])
    at = np.clip(table_y(), y[0], y[-1])
    i = np.clip(np.searchsorted(y, at, side="right") - 1, 0, len(slope) - 1)
    width = np.diff(y)[i]
    t = (at - y[i]) / width
    return (
        value[i]
        + t * t * (3 - 2 * t) * (value[i + 1] - value[i])
        + width * t * (1 - t) * ((1 - t) * tangent[i] - t * tangent[i + 1])
    )


def half_chord(inside: Image, change: float) -> Image:
    """Return √inside (0 if inside is negative), averaged over a pixel.

    The mean over the change is the difference of the integrals at its two ends,
    (2/3) inside^(3/2), divided by the change.

    Args:
        inside: 1 - x²/a² - y²/b², or the like: 1 in the middle, 0 on the edge.
        change: Change of `inside` over a pixel at the edge.
    """
    half = np.float32(change / 2)
    high, low = np.maximum(inside + half, 0), np.maximum(inside - half, 0)
    high, low = high * np.sqrt(high), low * np.sqrt(low)
    return np.float32(2 / 3 / change) * (high - low)


def stack(
    grid: Grid, low: Table, high: Table, depth: Table, boxy: bool = False
) -> Image:
    """Return the half chord of a stack of ellipses, from x = low(y) to high(y).

    The curves of a boxy stack have the power 4 instead of 2.
    """
    half = np.maximum((high - low) / 2, 1e-3)
    centre, inverse = grid.at((low + high) / 2), grid.at(1 / half)
    u = (grid.x - centre) * inverse
    change = 2 * grid.pixel_cm / float(half.max())
    u *= u
    if boxy:
        u, change = u * u, 2 * change
    return grid.at(np.where(half > 1e-3, depth, 0)) * half_chord(1 - u, change)


def ellipsoid(
    grid: Grid,
    centre: tuple[float, float],
    radii: tuple[float, float, float],
    tilt_degrees: float = 0.0,
) -> Image:
    """Return the half chord of an ellipsoid by equation (1), in cm.

    Args:
        grid: Body coordinates of the pixels.
        centre: (x, y) of the centre, in cm.
        radii: Radii along the tilted x, the tilted y, and z, in cm.
        tilt_degrees: Rotation about z, clockwise in the image.
    """
    angle = np.deg2rad(tilt_degrees)
    cos, sin = (np.float32(f(angle)) for f in (np.cos, np.sin))
    x, y = grid.x - np.float32(centre[0]), grid.y - np.float32(centre[1])
    u = (cos * x + sin * y) * np.float32(1 / radii[0])
    v = (cos * y - sin * x) * np.float32(1 / radii[1])
    change = 2 * grid.pixel_cm / min(radii[:2])
    return np.float32(radii[2]) * half_chord(1 - u * u - v * v, change)


def capsule(
    grid: Grid,
    ends: tuple[tuple[float, float], tuple[float, float]],
    radii: tuple[float, float],
) -> Image:
    """Return the half chord of a tube with round ends, in cm.

    Args:
        grid: Body coordinates of the pixels.
        ends: (x, y) of the ends of the axis, in cm.
        radii: Radii at these ends, in cm.
    """
    (x0, y0), (x1, y1) = ends
    dx, dy = x1 - x0, y1 - y0
    x, y = grid.x - np.float32(x0), grid.y - np.float32(y0)
    length2 = dx * dx + dy * dy
    t = np.clip(x * np.float32(dx / length2) + y * np.float32(dy / length2), 0, 1)
    across_x, across_y = x - t * np.float32(dx), y - t * np.float32(dy)
    radius = np.float32(radii[0]) + t * np.float32(radii[1] - radii[0])
    inside = radius * radius - across_x * across_x - across_y * across_y
    return half_chord(inside, 2 * grid.pixel_cm * max(radii))


def merge(half_chords: Sequence[Image]) -> Image:
    """Return the half chord of a union with rounded creases: the 4-norm."""
    total = np.zeros_like(half_chords[0])
    for half in half_chords:
        square = half * half
        total += square * square
    return np.sqrt(np.sqrt(total))


def overlap(*intervals: tuple[Image, float]) -> Image:
    """Return the length of a ray that is inside all of some solids, in cm.

    Args:
        intervals: Half chord and z of the centre of each solid.
    """
    top = np.minimum.reduce([np.float32(z) + half for half, z in intervals])
    bottom = np.maximum.reduce([np.float32(z) - half for half, z in intervals])
    return np.maximum(top - bottom, 0)
