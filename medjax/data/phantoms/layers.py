"""Render sections through a body. Outlines are filled in order, with exact areas.

The value of a pixel is the mean over its square. So an outline contributes the share of
the square that it covers. By Green's theorem, this share is a sum over the outline's
edges. Let an edge inside one pixel descend by dy, at the mean distance f from the
pixel's left side. It adds

    dy (1 - f) to this pixel,   dy to all on its right in the same row             (1)

So images of all sizes show the same body. The only operations are + - × ÷ and floor.
Every machine rounds them in the same way.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from medjax.data.phantoms.curves import Points
from medjax.data.phantoms.poses import Image, Pose


@dataclasses.dataclass(frozen=True)
class Layer:
    """A tissue that is painted over the layers before it.

    Attributes:
        outlines: Outlines. The tissue is inside any of them.
        signal: Signal of the tissue, from 0 (black) to 1 (white); or layers that are
            visible only in the outlines.
        share: Share of the slice's thickness that the tissue fills, 0 to 1.
    """

    outlines: Sequence[Points]
    signal: "float | Sequence[Layer]"
    share: float = 1.0


def compose(pose: Pose, layers: Sequence[Layer]) -> Image:
    """Return the signal of some layers, painted in this order, on black."""
    image = np.zeros((pose.size, pose.size), np.float32)
    for layer in layers:
        inside = coverage(pose, layer.outlines) * np.float32(layer.share)
        signal = layer.signal
        tissue = signal if isinstance(signal, float) else compose(pose, signal)
        image += inside * (np.asarray(tissue, np.float32) - image)
    return image


def coverage(pose: Pose, outlines: Sequence[Points]) -> Image:
    """Return the share of each pixel that is inside any of some outlines.

    If several outlines share a pixel, their shares add up to at most 1.
    """
    start, end = _edges(pose, outlines)
    # Edges no longer than a pixel cross at most one line of each direction.
    steps = np.ceil(np.abs(end - start).max(axis=1)).astype(int).clip(1)
    which = np.repeat(np.arange(len(steps)), steps)
    number = np.arange(len(which)) - np.repeat(np.cumsum(steps) - steps, steps)
    step = ((end - start) / steps[:, None])[which]
    start = start[which] + number[:, None] * step
    crossings = _crossings(start, step)
    points = start[:, None] + crossings[..., None] * step[:, None]
    return _accumulate(points, pose.size)


def _edges(
    pose: Pose, outlines: Sequence[Points]
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2"]]:
    """Return the ends of all edges in pixels. (0, 0) is the image's corner."""
    corners = np.concatenate(outlines)
    last = np.cumsum([len(o) for o in outlines]) - 1
    first = np.append(0, last[:-1] + 1)
    following = np.arange(len(corners)) + 1
    following[last] = first
    start, end = corners, corners[following]
    twice_area = start[:, 0] * end[:, 1] - start[:, 1] * end[:, 0]
    # All outlines turn the same way, so that overlapping areas do not cancel.
    turned = np.add.reduceat(twice_area, first) < 0
    turned = np.repeat(turned, last - first + 1)[:, None]
    start, end = np.where(turned, end, start), np.where(turned, start, end)
    return pose.to_pixels(start) + 0.5, pose.to_pixels(end) + 0.5


def _crossings(
    start: Float[np.ndarray, "n 2"], step: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n 4"]:
    """Return where edges enter and leave pixels, as shares of their length."""
    first, last = np.floor(start), np.floor(start + step)
    moved = np.where(first == last, 1.0, step)
    at = (np.maximum(first, last) - start) / moved
    at = np.clip(np.where(first == last, 1.0, at), 0, 1)
    low, high = at.min(axis=1), at.max(axis=1)
    return np.stack([np.zeros_like(low), low, high, np.ones_like(low)], axis=1)


def _accumulate(points: Float[np.ndarray, "n 4 2"], size: int) -> Image:
    """Sum equation (1) over pieces of edges, each inside one pixel."""
    middle = ((points[:, 1:] + points[:, :-1]) / 2).reshape(-1, 2)
    fall = np.diff(points[..., 1], axis=1).ravel()
    column, row = np.floor(middle).astype(int).T
    # Edges left of the image count for all pixels of a row, edges right of it for none.
    column_in = np.clip(column, -1, size)
    seen = (row >= 0) & (row < size)
    index = (row * (size + 3) + column_in + 1)[seen]
    right = ((middle[:, 0] - column) * fall)[seen]
    total = np.bincount(index, fall[seen] - right, size * (size + 3))
    total += np.bincount(index + 1, right, size * (size + 3))
    rows = np.cumsum(total.reshape(size, size + 3), axis=1)[:, 1 : size + 1]
    # The area of outlines that turn from x to y has the sign of -dy.
    return np.clip(-rows, 0, 1).astype(np.float32)
