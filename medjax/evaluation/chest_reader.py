"""Read pose, heart, fluid and air from an image of a chest phantom, by regression.

Let f(I, p) be the gray values of image I at 32 × 32 places of the body, normalised to
mean 0 and variance 1. Pose p gives the pixel of each place. The reader refines the pose
in steps, beginning with the mean pose. Then it computes heart, view, effusions and
pneumothoraces:

    p <- p + A_k f(I, p) + a_k,   k = 1 … 4                                        (1)
    (ratio, view, heights left and right, widths left and right) = B f(I, p) + b  (2)

The coefficients come from ridge regressions on phantoms with known pose and findings.
Every set of findings is equally frequent.

Source of (1): Xiong & De la Torre, "Supervised descent method and its applications to
face alignment", CVPR 2013. They also fit each step from poses with random errors. Our
features are gray values.
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
"""Height and width in pixels to which every image is resized."""

_PLACES, _REACH_CM = 32, 18.0
"""Places per side that (1) and (2) read, and their reach from the body's origin."""

_POSE_ERROR = np.array([0.007, 0.007, 0.08, 0.2])
"""Approximate error after (1) on unseen phantoms, in the units of `ChestReader.start`.
The error on the phantoms of the fit is smaller, so (2) is fitted with this error added
to their poses."""

_STEPS = ((0.3, 0), (0.1, 8), (0.1, 4), (0.1, 2))
"""For each step of (1): penalty of the ridge regression, and error of the poses as a
multiple of `_POSE_ERROR`. The variance of the features is about 1."""

_FINDINGS_PENALTY = 0.01

_PHANTOMS, _LOOKS, _SEED = 512, 2, 1
"""Number of phantoms of the fit, poses of each, and seed. No run has this seed,
because runs have seed 0."""

_BLUR_PX, _NOISE = 0.7, 0.03
"""Blur and noise of the degraded copy of each phantom, similar to those of an
autoencoder. Noise is its standard deviation on the scale of [-1, 1]."""


@dataclasses.dataclass(frozen=True)
class Linear:
    """An affine map of features, fitted by ridge regression."""

    centre: Float[np.ndarray, " f"]
    weights: Float[np.ndarray, "f t"]
    offset: Float[np.ndarray, " t"]

    def __call__(self, features: Float[np.ndarray, "n f"]) -> Float[np.ndarray, "n t"]:
        """Apply the map to n rows of features."""
        return (features - self.centre) @ self.weights + self.offset


@dataclasses.dataclass(frozen=True)
class ChestReader:
    """The coefficients of (1) and (2).

    Attributes:
        start: Mean pose in an image of 64 × 64 pixels: cosine and sine of the rotation
            times the pixels per cm, and the pixel (column, row) of the body's origin.
        steps: A_k and a_k of (1).
        findings: B and b of (2).
    """

    start: Float[np.ndarray, "4"]
    steps: tuple[Linear, ...]
    findings: Linear

    def read(self, images: Float[np.ndarray, "n 64 64"]) -> Float[np.ndarray, "n 6"]:
        """Return the findings (2) of images in [-1, 1], at the poses of (1).

        Returns:
            Cardiothoracic ratio; view, positive if AP; heights of the effusions on the
            patient's left and right, in cm; widths of the pneumothoraces on the left
            and right, in cm. Heights and widths are about 0 without a finding.
        """
        return self.findings(_features(images, self.poses(images)))

    def poses(self, images: Float[np.ndarray, "n 64 64"]) -> Float[np.ndarray, "n 4"]:
        """Return the poses after the last step of (1)."""
        poses = np.repeat(self.start[None], len(images), axis=0)
        for step in self.steps:
            poses = poses + step(_features(images, poses))
        return poses


@functools.cache
def fit_reader(phantoms: int = _PHANTOMS) -> ChestReader:
    """Fit (1) and (2).

    Args:
        phantoms: Number of phantoms. The fit uses each both unchanged and degraded.
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
    """Return the findings whose bits are set in `index`. All sets occur in turn."""
    return tuple(name for bit, name in enumerate(FINDINGS) if index >> bit & 1)


def _degraded(images: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "n h w"]:
    blurred = gaussian(images, (0, _BLUR_PX, _BLUR_PX))
    noise = np.random.default_rng(_SEED).normal(0, _NOISE, images.shape)
    return np.clip(blurred + noise, -1, 1)


def _pose(chest: ChestParameters) -> tuple[float, ...]:
    pose = make_pose(chest, IMAGE_SIZE)
    return pose.cos, pose.sin, *pose.offset


def _findings(chest: ChestParameters) -> tuple[float, ...]:
    """Return the correct findings, the targets of (2)."""
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
        # The standard deviation of a uniform image is 0.
        rows.append((seen - seen.mean()).ravel() / max(seen.std(), 1e-6))
    return np.stack(rows)


def _ridge(
    features: Float[np.ndarray, "n f"],
    targets: Float[np.ndarray, "n t"],
    penalty: float,
) -> Linear:
    """Return the map that minimises |targets − map|² / n + penalty · |weights|²."""
    centre, offset = features.mean(0), targets.mean(0)
    centred = features - centre
    covariance = centred.T @ centred / len(features)
    covariance[np.diag_indices_from(covariance)] += penalty
    weights = np.linalg.solve(
        covariance, centred.T @ (targets - offset) / len(features)
    )
    return Linear(centre, weights, offset)
