"""Compute smooth curves through knots, and outlines from them.

An outline is a polygon. It is given by its corners in order, in cm of the body.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Points = Float[np.ndarray, "_ 2"]
"""(x, y) of any number of points, in order."""


def smooth_curve(
    knots: Float[np.ndarray, "m k f"], pieces: int = 6
) -> Float[np.ndarray, "m n f"]:
    """Return points of smooth curves through knots: Catmull-Rom splines.

    Args:
        knots: (x, y) of each knot, and any other values, such as a width.
        pieces: Number of segments between two knots.
    """
    first, last = knots[:, :1], knots[:, -1:]
    p = np.concatenate(
        [2 * first - knots[:, 1:2], knots, 2 * last - knots[:, -2:-1]], axis=1
    )
    t = (np.arange(pieces) / pieces)[:, None]
    a, b, c, d = (p[:, i : p.shape[1] - 3 + i, None] for i in range(4))
    curve = b + t / 2 * (
        c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a))
    )
    return np.concatenate([curve.reshape(len(p), -1, p.shape[2]), last], axis=1)


def closed_curve(knots: Points, pieces: int = 6) -> Points:
    """Return a smooth outline through knots."""
    around = np.concatenate([knots[-1:], knots, knots[:2]])
    curve = smooth_curve(around[None], pieces)[0]
    return curve[pieces : pieces * (len(knots) + 1)]


def band(knots: Float[np.ndarray, "m k 3"]) -> Float[np.ndarray, "m n 2"]:
    """Return the outlines of bands along smooth curves, with blunt ends.

    Args:
        knots: (x, y) of each knot, and half the width there.
    """
    curve = smooth_curve(knots)
    points, width = curve[..., :2], curve[..., 2:]
    along = _directions(points)
    across = np.stack([-along[..., 1], along[..., 0]], axis=-1)
    begin = points[:, :1] - along[:, :1] * width[:, :1]
    end = points[:, -1:] + along[:, -1:] * width[:, -1:]
    left, right = points + across * width, points - across * width
    return np.concatenate([begin, left, end, right[:, ::-1]], axis=1)


def grown(outline: Points, distance: float) -> Points:
    """Move an outline outwards by a distance, or inwards if that is negative."""
    around = np.concatenate([outline[-1:], outline, outline[:1]])
    along = _directions(around[None])[0, 1:-1]
    outwards = np.stack([along[:, 1], -along[:, 0]], axis=-1)
    sign = 1 if signed_area(outline) > 0 else -1
    return outline + sign * distance * outwards


def signed_area(outline: Points) -> float:
    """Return the area of a polygon, negative if it turns from y to x."""
    x, y = outline[:, 0], outline[:, 1]
    last = x[-1] * y[0] - y[-1] * x[0]
    return float((x[:-1] * y[1:] - y[:-1] * x[1:]).sum() + last) / 2


def mirrored(half: Sequence[tuple[float, ...]]) -> Float[np.ndarray, "k f"]:
    """Close half an outline by its mirror image, from its first to its last point.

    Args:
        half: (x, y) of the points, with x ≥ 0. Points with x = 0 are not doubled.
    """
    right = np.array(half, float)
    left = right[::-1] * [-1, 1]
    return np.concatenate([right, left[left[:, 0] < 0]])


def _directions(points: Float[np.ndarray, "m n 2"]) -> Float[np.ndarray, "m n 2"]:
    """Return the unit vectors along curves at their points."""
    along = np.concatenate(
        [
            points[:, 1:2] - points[:, :1],
            points[:, 2:] - points[:, :-2],
            points[:, -1:] - points[:, -2:-1],
        ],
        axis=1,
    )
    return along / np.sqrt((along * along).sum(axis=-1, keepdims=True))
