"""Compute the folded surface of the brain: the places and courses of its sulci.

Brains differ in some of their folds, not in all. Each sulcus here has a fixed place on
the surface and a fixed depth. A phantom differs a little from both.
"""

import numpy as np
from jaxtyping import Float

from medjax.data.phantoms.brain.parameters import BrainParameters
from medjax.data.phantoms.curves import Points, closed_curve, mirrored

_INSIDE = (
    (0.0, -1.0), (0.36, -0.955), (0.68, -0.76), (0.9, -0.43), (1.0, 0.0), (0.98, 0.36),
    (0.84, 0.67), (0.55, 0.9), (0.22, 1.0), (0.0, 1.0),
)  # fmt: skip
"""One half of the inside of the skull, in units of its half width and half length."""

_DEPTHS_CM = (1.3, 2.2, 1.1, 2.3, 1.5, 2.0, 1.2, 1.9, 1.1, 2.1, 1.4, 2.4, 1.3, 2.1, 1.2,
              2.1, 1.2)  # fmt: skip
"""Depths of the sulci of one half, from front to back."""

_ENDS = (0.03, 0.95)
"""First and last place of a sulcus, as shares of the length of the half's surface."""

_MEDIAL = (-0.8, -0.62, 0.63, 0.8)
"""y of the sulci that leave the fissure between the halves, in half lengths."""

_FISSURE_ENDS = (-0.50, 0.50)
"""y where the fissure ends, from the front and from the back, in half lengths. Between
these, the corpus callosum joins the halves."""


def inside_of_skull(parameters: BrainParameters) -> Points:
    """Return the outline of the inside of the skull."""
    half = (parameters.width_cm / 2, parameters.length_cm / 2)
    return closed_curve(mirrored(_INSIDE) * half)


def sulci(parameters: BrainParameters) -> Float[np.ndarray, "m 5 3"]:
    """Return the courses of the sulci on the outer surface, with half widths.

    Each sulcus begins outside the brain, where it is widest.
    """
    random = np.random.default_rng((parameters.folding_seed, 4))
    outer = [_surface_sulci(parameters, random, side) for side in (-1, 1)]
    medial = [_medial_sulci(parameters, random, side) for side in (-1, 1)]
    branches = [_branches(some[1::2], random) for some in outer]
    return np.concatenate([*outer, *medial, *branches])


def fissure(parameters: BrainParameters) -> Float[np.ndarray, "2 5 3"]:
    """Return the fissure between the halves, in front and at the back."""
    half, width = parameters.length_cm / 2, 0.6 * parameters.sulcus_cm
    parts = [
        [(0.0, y, width) for y in np.linspace(sign * 1.02, end, 5) * half]
        for sign, end in zip((-1, 1), _FISSURE_ENDS, strict=True)
    ]
    return np.array(parts)


def _surface_sulci(
    parameters: BrainParameters, random: np.random.Generator, side: int
) -> Float[np.ndarray, "m 5 3"]:
    count = len(_DEPTHS_CM)
    place = np.linspace(*_ENDS, count) + 0.022 * (2 * random.random(count) - 1)
    start, inwards = _on_surface(parameters, place, side)
    depth = np.array(_DEPTHS_CM) * (0.85 + 0.3 * random.random(count))
    # A sulcus leans to one side, and bends along its course.
    lean, bend = 0.5 * (2 * random.random((2, count, 1)) - 1)
    sideways = np.stack([-inwards[:, 1], inwards[:, 0]], axis=1)
    way = np.linspace(-0.12, 1, 5)[:, None, None]
    points = start + way * depth[:, None] * (
        inwards + sideways * (lean * way + bend * (1 - way) * way * 2)
    )
    return _with_widths(np.swapaxes(points, 0, 1), parameters.sulcus_cm)


def _branches(
    stems: Float[np.ndarray, "m 5 3"], random: np.random.Generator
) -> Float[np.ndarray, "m 5 3"]:
    """Return a branch of each sulcus, which leaves it sideways near its middle."""
    count = len(stems)
    along = stems[:, 4, :2] - stems[:, 1, :2]
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    sign = np.where(random.random((count, 1)) < 0.5, -1, 1)
    reach = (0.4 + 0.15 * random.random((count, 1))) * across * sign
    way = np.linspace(0, 1, 5)[:, None, None]
    points = stems[:, 2, :2] + way * reach + 0.35 * way * way * along
    return np.concatenate([np.swapaxes(points, 0, 1), stems[..., 2:] * 0.8], axis=2)


def _medial_sulci(
    parameters: BrainParameters, random: np.random.Generator, side: int
) -> Float[np.ndarray, "m 5 3"]:
    count = len(_MEDIAL)
    y = np.array(_MEDIAL) + 0.06 * (2 * random.random(count) - 1)
    depth = 0.9 + 0.8 * random.random(count)
    lean = 1.2 * (2 * random.random(count) - 1)
    way = np.linspace(0, 1, 5)[:, None]
    across = side * way * depth
    down = y * parameters.length_cm / 2 + way * way * lean
    points = np.stack([across, down], axis=2)
    return _with_widths(np.swapaxes(points, 0, 1), parameters.sulcus_cm)


def _with_widths(
    points: Float[np.ndarray, "m 5 2"], width_cm: float
) -> Float[np.ndarray, "m 5 3"]:
    shares = np.array([1.2, 0.9, 0.75, 0.75, 0.6]) / 2
    widths = np.broadcast_to(shares * width_cm, points.shape[:2])
    return np.concatenate([points, widths[..., None]], axis=2)


def _on_surface(
    parameters: BrainParameters, place: Float[np.ndarray, " m"], side: int
) -> tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, "m 2"]]:
    """Return points of one half's surface, and the directions inwards.

    Args:
        parameters: Parameters of the phantom.
        place: Places as shares of the surface's length, 0 in front to 1 at the back.
        side: -1 at the left of the image, 1 at its right.
    """
    outline = inside_of_skull(parameters)
    half = outline[: len(outline) // 2 + 1]
    step = np.sqrt((np.diff(half, axis=0) ** 2).sum(axis=1))
    length = np.concatenate([[0], np.cumsum(step)])
    at, before, after = (
        np.stack([np.interp(p * length[-1], length, half[:, i]) for i in (0, 1)], 1)
        for p in (place, place - 0.01, place + 0.01)
    )
    along = after - before
    along /= np.sqrt((along * along).sum(axis=1, keepdims=True))
    inwards = np.stack([-along[:, 1], along[:, 0]], axis=1)
    return at * (side, 1), inwards * (side, 1)
