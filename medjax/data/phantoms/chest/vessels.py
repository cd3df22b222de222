"""Build the airways and vessels of the lungs as tubes.

A few vessels leave each hilum like a fan. Each vessel forks into two, which are thinner
and shorter and fork again. A tree has four forks from its first vessel to its last.
"""

import numpy as np
from jaxtyping import Float

from medjax.data.phantoms.chest.parameters import ChestParameters
from medjax.data.phantoms.chest.tubes import Tubes
from medjax.data.phantoms.curves import smooth_curve

_FAN_DEGREES = (-78, -58, -36, -14, 8, 26, 42, 58, 74)
"""Directions of the first vessels, in degrees: 0 is sideways, 90 is down."""

_GENERATIONS = 5
_POINTS = 5
_HILUM = {-1: (3.3, -1.0), 1: (3.5, -2.2)}
"""Centre of each hilum: distance from the midline, and y. The left one is higher."""


def airways(air: float) -> list[Tubes]:
    """Return the trachea and the main bronchi.

    Args:
        air: Attenuation of air minus that of soft tissue, 1/cm. It is negative.
    """
    trachea = [(0, -34, 0.85), (0, -22, 0.85), (0.1, -12, 0.9), (-0.3, -5.3, 0.85)]
    right = [(-0.5, -5.7, 0.65), (-1.9, -4.2, 0.65), (-3.9, -2.2, 0.4)]
    left = [(0.1, -5.5, 0.55), (1.9, -4.3, 0.55), (4.2, -3.0, 0.35)]
    tubes = []
    for knots, ends in ((trachea, 1), (right, 0), (left, 0)):
        curve = smooth_curve(np.array([knots], float))
        fade = np.linspace(1, ends, curve.shape[1])
        tubes.append(
            Tubes(curve[..., :2], curve[..., 2], 1.7 * air * fade * curve[..., 2])
        )
    return tubes


def vessels(parameters: ChestParameters, blood: float) -> list[Tubes]:
    """Return the vessels of both lungs.

    Args:
        parameters: Parameters of the phantom. `texture_seed` decides the branches.
        blood: Attenuation of blood minus that of lung, 1/cm.
    """
    random = np.random.default_rng((parameters.texture_seed, 1))
    trees = [_tree(random, side) for side in (-1, 1)]
    points, radius = (np.concatenate(parts) for parts in zip(*trees, strict=True))
    branches = Tubes(points, radius, 2 * blood * radius)
    return [branches, *(_hilum(side, blood) for side in (-1, 1))]


def _tree(
    random: np.random.Generator, side: int
) -> tuple[Float[np.ndarray, "m n 2"], Float[np.ndarray, "m n"]]:
    """Return the points and radii of a lung's vessels."""
    count = len(_FAN_DEGREES)
    angle = np.deg2rad(np.array(_FAN_DEGREES) + 14 * (random.random(count) - 0.5))
    x, y = _HILUM[side]
    start = np.stack([x + 0.6 * np.cos(angle), y + 2.0 * np.sin(angle)], axis=1)
    length = 2.9 + 0.9 * random.random(count) + 0.9 * np.abs(np.sin(angle))
    # The lower lobes get more blood, and much more in an upright body.
    radius = 0.3 + 0.1 * (np.sin(angle) > 0)
    bundles = []
    for _ in range(_GENERATIONS):
        bundle, start, angle = _grow(random, start, angle, length, radius)
        bundles.append(bundle)
        fork = np.deg2rad(14 + 20 * random.random(len(angle)))
        first, second = 0.68 + 0.18 * random.random((2, len(angle)))
        angle = np.concatenate([angle - fork * second, angle + fork * first])
        start = np.concatenate([start, start])
        length = 1.05 * np.concatenate([length * first, length * second])
        radius = np.concatenate([radius * first, radius * second])
    tree = np.concatenate(bundles)
    return tree[..., :2] * (side, 1), tree[..., 2]


def _grow(
    random: np.random.Generator,
    start: Float[np.ndarray, "m 2"],
    angle: Float[np.ndarray, " m"],
    length: Float[np.ndarray, " m"],
    radius: Float[np.ndarray, " m"],
) -> tuple[
    Float[np.ndarray, "m n 3"], Float[np.ndarray, "m 2"], Float[np.ndarray, " m"]
]:
    """Return bent vessels (x, y, radius), their ends and their last directions."""
    bend = np.deg2rad(36 * (random.random(len(angle)) - 0.5))
    t = np.linspace(0, 1, _POINTS)
    direction = angle[:, None] + bend[:, None] * (t[:-1] + t[1:]) / 2
    step = (length / (_POINTS - 1))[:, None]
    x = start[:, :1] + np.cumsum(step * np.cos(direction), axis=1)
    y = start[:, 1:] + np.cumsum(step * np.sin(direction), axis=1)
    points = np.concatenate([start[:, None], np.stack([x, y], axis=2)], axis=1)
    taper = radius[:, None, None] * (1 - 0.22 * t[:, None])
    return np.concatenate([points, taper], axis=2), points[:, -1], angle + bend


def _hilum(side: int, blood: float) -> Tubes:
    """Return the main artery of a lung, from the mediastinum into the lower lobe."""
    x, y = _HILUM[side]
    knots = [
        (x - 1.6, y - 0.9, 1.0, 0.5),
        (x - 0.2, y - 0.5, 0.95, 1.0),
        (x + 0.7, y + 0.8, 0.75, 1.0),
        (x + 1.0, y + 3.0, 0.6, 0.8),
        (x + 1.3, y + 5.0, 0.42, 0.4),
    ]
    curve = smooth_curve(np.array([knots], float))
    depth = 1.3 * blood * curve[..., 2] * curve[..., 3]
    return Tubes(curve[..., :2] * (side, 1), curve[..., 2], depth)
