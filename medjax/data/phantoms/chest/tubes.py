"""Render tubes along curves, such as ribs and vessels.

A tube consists of segments; see `chest.shapes`, equation (2). Two neighbours meet in
the plane that bisects the angle between them. So no ray is counted in both. Many
segments are computed at once, each in a small window of the image.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int

from medjax.data.phantoms.curves import smooth_curve
from medjax.data.phantoms.poses import Pose

_WINDOWS = np.array([int(4 * 1.5**k) for k in range(20)])
"""Sides of the windows, in pixels. They are few, so that many segments share one."""

_PIXELS_AT_ONCE = 2**18
"""Number of pixels that fits in the processor's cache."""

_CORE_WIDTH = 0.78
_PIXEL_VARIANCE = 1 / 3
"""Increase of w² by a pixel: the variance of a box is 1/12, that of (2) is w²/4."""


@dataclasses.dataclass(frozen=True)
class Tubes:
    """Tubes along m polylines of n points each.

    Attributes:
        points: Projected axes, in cm of the body.
        width: Half the width across the axis, in cm.
        depth: Optical depth (attenuation times chord) on the axis.
        core: Share of that depth that is missing in the core, which is 0.78 times as
            wide. 0 means a solid tube. A bone has its cortex outside.
    """

    points: Float[np.ndarray, "m n 2"]
    width: Float[np.ndarray, "m n"]
    depth: Float[np.ndarray, "m n"]
    core: float = 0.0


@dataclasses.dataclass(frozen=True)
class _Segments:
    """Segments in pixels, one per row."""

    start: Float64[np.ndarray, "n 2"]
    end: Float64[np.ndarray, "n 2"]
    start_plane: Float64[np.ndarray, "n 2"]
    end_plane: Float64[np.ndarray, "n 2"]
    width: Float64[np.ndarray, "n 2"]
    depth: Float64[np.ndarray, "n 2"]
    core: Float64[np.ndarray, " n"]

    def take(self, rows: Int[np.ndarray, " m"] | Bool[np.ndarray, " n"]) -> "_Segments":
        return _Segments(**{name: field[rows] for name, field in vars(self).items()})


def draw_tubes(pose: Pose, tubes: Sequence[Tubes]) -> Float32[np.ndarray, "h w"]:
    """Return the optical depth of some tubes."""
    parts = [vars(_segments(pose, some)) for some in tubes]
    segments = _Segments(
        **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    )
    corner, extent = _bounds(segments)
    seen = ((corner < pose.size) & (corner + extent >= 0)).all(axis=1)
    segments, corner, extent = segments.take(seen), corner[seen], extent[seen]
    window = np.searchsorted(_WINDOWS, extent.max(axis=1))
    canvas = np.zeros(pose.size**2)
    for kind in np.unique(window):
        side = int(_WINDOWS[kind])
        rows = np.flatnonzero(window == kind)
        at_once = max(1, _PIXELS_AT_ONCE // side**2)
        for first in range(0, len(rows), at_once):
            some = rows[first : first + at_once]
            _draw(canvas, pose.size, segments.take(some), corner[some], side)
    return canvas.reshape(pose.size, pose.size).astype(np.float32)


def _segments(pose: Pose, tubes: Tubes) -> _Segments:
    points = pose.to_pixels(tubes.points)
    along = np.diff(points, axis=1)
    direction = along / np.sqrt((along**2).sum(axis=2, keepdims=True))
    # The plane at a joint is normal to the mean direction of the two segments.
    ends = np.concatenate([direction[:, :1], direction, direction[:, -1:]], axis=1)
    planes = ends[:, :-1] + ends[:, 1:]

    return _Segments(
        start=points[:, :-1].reshape(-1, 2),
        end=points[:, 1:].reshape(-1, 2),
        start_plane=planes[:, :-1].reshape(-1, 2),
        end_plane=planes[:, 1:].reshape(-1, 2),
        width=_pairs(tubes.width * pose.pixels_per_cm),
        depth=_pairs(tubes.depth),
        core=np.full(along.shape[0] * along.shape[1], tubes.core),
    )


def _pairs(values: Float[np.ndarray, "m n"]) -> Float64[np.ndarray, "mn 2"]:
    """Return the values at the two ends of each segment."""
    return np.stack([values[:, :-1], values[:, 1:]], axis=2).reshape(-1, 2)


def _bounds(
    segments: _Segments,
) -> tuple[Int[np.ndarray, "n 2"], Int[np.ndarray, "n 2"]]:
    """Return the first pixel and the sides of each segment's box."""
    reach = np.sqrt(segments.width.max(axis=1, keepdims=True) ** 2 + _PIXEL_VARIANCE)
    low = np.minimum(segments.start, segments.end) - reach
    high = np.maximum(segments.start, segments.end) + reach
    low, high = np.floor(low).astype(int), np.ceil(high).astype(int)
    return low, high - low + 1


def _draw(
    canvas: Float64[np.ndarray, " p"],
    size: int,
    segments: _Segments,
    corner: Int[np.ndarray, "n 2"],
    side: int,
) -> None:
    """Add segments to the flat canvas. A segment's window begins at its corner."""
    pixel = corner[:, :, None] + np.arange(side)
    column, row = pixel[:, 0], pixel[:, 1]
    depth = _optical_depth(segments, pixel)
    inside_column = (column >= 0) & (column < size)
    inside_row = (row >= 0) & (row < size)
    depth *= inside_column[:, None, :]
    depth *= inside_row[:, :, None]
    index = np.clip(row, 0, size - 1)[:, :, None] * size
    index = index + np.clip(column, 0, size - 1)[:, None, :]
    canvas += np.bincount(index.ravel(), depth.ravel(), minlength=canvas.size)


def _optical_depth(
    segments: _Segments, pixel: Int[np.ndarray, "n 2 s"]
) -> Float32[np.ndarray, "n s s"]:
    """Evaluate equation (2) of each segment in its window.

    Args:
        segments: n segments.
        pixel: Columns and rows of the windows.
    """
    along = segments.end - segments.start
    length2 = (along**2).sum(axis=1)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1)
    offset = pixel - segments.start[:, :, None]
    across = _project(offset, normal / np.sqrt(length2)[:, None])
    share = np.clip(_project(offset, along / length2[:, None]), 0, 1)
    across2 = across * across
    chord = _profile(segments.width, across2, share)
    if segments.core.any():
        core = _profile(_CORE_WIDTH * segments.width, across2, share)
        chord -= _column(segments.core) * core
    chord *= _interpolate(segments.depth, share)
    # Two segments that meet make the same comparison, so a pixel is in only one.
    chord *= _is_past(pixel, segments.start, segments.start_plane)
    chord *= ~_is_past(pixel, segments.end, segments.end_plane)
    return chord


def _is_past(
    pixel: Int[np.ndarray, "n 2 s"],
    point: Float64[np.ndarray, "n 2"],
    plane: Float64[np.ndarray, "n 2"],
) -> Bool[np.ndarray, "n s s"]:
    return _project(pixel, plane) >= _column((point * plane).sum(axis=1))


def _profile(
    width: Float64[np.ndarray, "n 2"],
    across2: Float32[np.ndarray, "n s s"],
    share: Float32[np.ndarray, "n s s"],
) -> Float32[np.ndarray, "n s s"]:
    """Return equation (2) for l_0 = 1, convolved with the pixel."""
    widened = width**2 + _PIXEL_VARIANCE
    inside = 1 - across2 / _interpolate(widened, share)
    kept = width.mean(axis=1) / np.sqrt(widened.mean(axis=1))
    return _column(kept) * np.sqrt(np.maximum(inside, 0))


def _project(
    vectors: Float64[np.ndarray, "n 2 s"] | Int[np.ndarray, "n 2 s"],
    onto: Float64[np.ndarray, "n 2"],
) -> Float32[np.ndarray, "n s s"]:
    """Return the scalar products of all (column, row) with one vector per segment."""
    terms = (vectors * onto[:, :, None]).astype(np.float32)
    return terms[:, 0, None, :] + terms[:, 1, :, None]


def _interpolate(
    ends: Float64[np.ndarray, "n 2"], share: Float32[np.ndarray, "n s s"]
) -> Float32[np.ndarray, "n s s"]:
    return _column(ends[:, 0]) + share * _column(ends[:, 1] - ends[:, 0])


def _column(values: Float64[np.ndarray, " n"]) -> Float32[np.ndarray, "n 1 1"]:
    return values.astype(np.float32)[:, None, None]


def bones(knots: Float[np.ndarray, "m k 4"], core: float) -> Tubes:
    """Return bones through knots (x, y, half width, chord), in cm."""
    curve = smooth_curve(knots)
    return Tubes(curve[..., :2], curve[..., 2], curve[..., 3], core)
