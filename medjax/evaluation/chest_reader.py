"""Find pose, heart, fluid and air in an image of a chest phantom, by linear regression.

Let f(I, p) be the gray values of image I at 32 × 32 places of the body, which pose p
puts somewhere in the image, with mean 0 and variance 1. The pose is found in steps from
the mean pose on, then heart, view, effusions and pneumothoraces are read off:

    p <- p + A_k f(I, p) + a_k,   k = 1 … 4                                        (1)
    (ratio, view, heights left and right, widths left and right) = B f(I, p) + b  (2)

The coefficients are ridge regressions, on phantoms whose pose and findings are known,
with every set of findings equally often.

Source: of (1), each step fitted from poses that are astray at random, Xiong & De la
Torre, "Supervised descent method and its applications to face alignment", CVPR 2013,
with gray values for features.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float
from skimage.filters import gaussian
from skimage.transform import warp

from medjax.data.phantoms import (
    FINDINGS,
    ChestParameters,
    draw_parameters,
    make_pose,
    render,
)

IMAGE_SIZE = 64
"""Every image is brought to this many pixels a side."""

_PLACES, _REACH_CM = 32, 18.0
"""Places a side that (1) and (2) look at, and how far out these reach."""

_POSE_ERROR = np.array([0.007, 0.007, 0.08, 0.2])
"""About what remains after (1) on other phantoms, in the units of `ChestReader.start`.
Those that are fitted on would have less, so (2) is fitted that much astray."""

_STEPS = ((0.3, 0), (0.1, 8), (0.1, 4), (0.1, 2))
"""Of each step of (1), penalty of the ridge regression, and how many times
`_POSE_ERROR` the poses are astray. The features' variance is about 1."""

_FINDINGS_PENALTY = 0.01

_PHANTOMS, _LOOKS, _SEED = 512, 2, 1
"""What is fitted on, and from how many poses each. No run has this seed, but 0."""

_BLUR_PX, _NOISE = 0.7, 0.03
"""How each phantom is degraded, beside itself, as an autoencoder would. Noise is in
units of the range [-1, 1]."""


@dataclasses.dataclass(frozen=True)
class Linear:
    """An affine map of features, fitted by ridge regression."""

    centre: Float[np.ndarray, " f"]
    weights: Float[np.ndarray, "f t"]
    offset: Float[np.ndarray, " t"]

    def __call__(self, features: Float[np.ndarray, "n f"]) -> Float[np.ndarray, "n t"]:
        """Apply it to n rows of features."""
        return (features - self.centre) @ self.weights + self.offset


@dataclasses.dataclass(frozen=True)
class ChestReader:
    """The coefficients of (1) and (2).

    Attributes:
        start: Mean pose: cosine and sine times the pixels a cm, and the pixel (column,
            row) of the body's origin, in an image of 64 × 64.
        steps: A_k and a_k.
        findings: B and b.
    """

    start: Float[np.ndarray, "4"]
    steps: tuple[Linear, ...]
    findings: Linear

    def read(self, images: Float[np.ndarray, "n 64 64"]) -> Float[np.ndarray, "n 6"]:
        """Return what (2) finds in images in [-1, 1], at the poses of (1).

        Returns:
            Cardiothoracic ratio; view, positive where AP; heights of the effusions on
            the patient's left and right, and widths of the pneumothoraces, in cm, about
            0 where there is none.
        """
        return self.findings(_features(images, self.poses(images)))

    def poses(self, images: Float[np.ndarray, "n 64 64"]) -> Float[np.ndarray, "n 4"]:
        """Return the poses that (1) ends with."""
        poses = np.repeat(self.start[None], len(images), axis=0)
        for step in self.steps:
            poses = poses + step(_features(images, poses))
        return poses


@functools.cache
def fit_reader(phantoms: int = _PHANTOMS) -> ChestReader:
    """Fit (1) and (2).

    Args:
        phantoms: How many to draw; each is used as it is, and degraded.
    """
    drawn = [draw_parameters(_SEED, i, _some_findings(i)) for i in range(phantoms)]
    clean = np.stack([render(chest, IMAGE_SIZE) for chest in drawn]) / 127.5 - 1
    images = np.concatenate([clean, _degraded(clean)] * _LOOKS)
    poses = np.array([_pose(chest) for chest in drawn] * 2 * _LOOKS)
    findings = np.array([_findings(chest) for chest in drawn] * 2 * _LOOKS)
    random = np.random.default_rng(_SEED)
    start, steps = poses.mean(0), []
    estimate = np.broadcast_to(start, poses.shape)
    for penalty, error in _STEPS:
        estimate = estimate + random.normal(size=poses.shape) * error * _POSE_ERROR
        features = _features(images, estimate)
        steps.append(_ridge(features, poses - estimate, penalty))
        estimate = estimate + steps[-1](features)
    estimate = estimate + random.normal(size=poses.shape) * _POSE_ERROR
    read = _ridge(_features(images, estimate), findings, _FINDINGS_PENALTY)
    return ChestReader(start, tuple(steps), read)


def _some_findings(index: int) -> tuple[str, ...]:
    """Return the findings whose bits are set, so that all sets follow each other."""
    return tuple(name for bit, name in enumerate(FINDINGS) if index >> bit & 1)


def _degraded(images: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "n h w"]:
    blurred = gaussian(images, (0, _BLUR_PX, _BLUR_PX))
    noise = np.random.default_rng(_SEED).normal(0, _NOISE, images.shape)
    return np.clip(blurred + noise, -1, 1)


def _pose(chest: ChestParameters) -> tuple[float, ...]:
    pose = make_pose(chest, IMAGE_SIZE)
    return pose.cos, pose.sin, *pose.offset


def _findings(chest: ChestParameters) -> tuple[float, ...]:
    """Return what (2) is fitted to."""
    fluid, air, view = chest.effusion, chest.pneumothorax, chest.view == "AP"
    sides = ("left", "right")
    heights = [fluid.height_cm if fluid and fluid.side == s else 0.0 for s in sides]
    widths = [air.width_cm if air and air.side == s else 0.0 for s in sides]
    return chest.heart_width_ratio, 1.0 if view else -1.0, *heights, *widths


def _features(
    images: Float[np.ndarray, "n 64 64"], poses: Float[np.ndarray, "n 4"]
) -> Float[np.ndarray, "n f"]:
    """Return f(I, p) of each image at its pose."""
    spacing = 2 * _REACH_CM / _PLACES
    first = spacing / 2 - _REACH_CM
    rows = []
    for image, (cos, sin, x, y) in zip(images, poses, strict=True):
        turn = np.array([[cos, -sin], [sin, cos]])
        to_image = np.eye(3)
        to_image[:2, :2] = spacing * turn
        to_image[:2, 2] = turn @ (first, first) + (x, y)
        shape = (_PLACES, _PLACES)
        seen = warp(image, to_image, output_shape=shape, mode="edge")
        # Where all is one gray there is nothing to see.
        rows.append((seen - seen.mean()).ravel() / max(seen.std(), 1e-6))
    return np.stack(rows)


def _ridge(
    features: Float[np.ndarray, "n f"],
    targets: Float[np.ndarray, "n t"],
    penalty: float,
) -> Linear:
    """Return the map that minimises |targets - map|² / n + penalty |weights|²."""
    centre, offset = features.mean(0), targets.mean(0)
    centred = features - centre
    covariance = centred.T @ centred / len(features)
    covariance[np.diag_indices_from(covariance)] += penalty
    weights = np.linalg.solve(
        covariance, centred.T @ (targets - offset) / len(features)
    )
    return Linear(centre, weights, offset)
