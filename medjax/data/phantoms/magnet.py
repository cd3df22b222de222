"""Turn the signal of tissues into a magnetic resonance image.

The value of a pixel is the magnitude of a signal with noise in both of its channels,

    v = √((s + n_1)² + n_2²),                                                   (1)

where s is the tissue's signal times the coil's sensitivity. The sensitivity falls from
one side of the image to the other. So noise in dark areas is not centred at zero
(Rice).
"""

import dataclasses

import numpy as np
from jaxtyping import UInt8

from medjax.data.phantoms.poses import Image, Pose, pose_in_field
from medjax.data.phantoms.randomness import normals, uniform

_MOTTLE = ((9, 0.05), (20, 0.04))
"""Unevenness of all tissue: cells along a side of the image, and amplitude."""

_NOISE_SIZE = 256
"""Side, in pixels, of the image that `noise` refers to."""


@dataclasses.dataclass(frozen=True)
class Scan:
    """Position of a body in the scanner, and properties of the scan.

    Attributes:
        rotation_degrees: Rotation of the body in the image, clockwise; -8 to 8.
        scale: Size of the body in the image; 0.92 to 1.06.
        shift_x: Shift of the body to the right, as a share of the image side; -0.04 to
            0.04.
        shift_y: Shift of the body down, as a share of the image side; -0.04 to 0.04.
        shading_x: Extra sensitivity of the coil at the image's right side, as a share
            of that in the middle; -0.15 to 0.15. The left side lacks as much.
        shading_y: Extra sensitivity at the lower side, in the same way.
        noise: Standard deviation in each channel, as a share of white, in an image of
            256² pixels; 0.01 to 0.03. Larger pixels have less noise.
        texture_seed: Seed of noise and texture.
    """

    rotation_degrees: float
    scale: float
    shift_x: float
    shift_y: float
    shading_x: float
    shading_y: float
    noise: float
    texture_seed: int


def draw_scan(random: np.random.Generator) -> Scan:
    """Sample the properties of a scan."""
    return Scan(
        rotation_degrees=uniform(random, -8, 8),
        scale=uniform(random, 0.92, 1.06),
        shift_x=uniform(random, -0.04, 0.04),
        shift_y=uniform(random, -0.04, 0.04),
        shading_x=uniform(random, -0.15, 0.15),
        shading_y=uniform(random, -0.15, 0.15),
        noise=uniform(random, 0.01, 0.03),
        texture_seed=int(random.random() * 2**31),
    )


def make_pose(scan: Scan, size: int, field_cm: float) -> Pose:
    """Return the body's pose in an image that shows `field_cm` at scale 1."""
    shift = (scan.shift_x, scan.shift_y)
    return pose_in_field(size, field_cm, scan.rotation_degrees, scan.scale, shift)


def expose(signal: Image, scan: Scan) -> UInt8[np.ndarray, "h w"]:
    """Return the image of a signal by equation (1), in gray values."""
    size = len(signal)
    random = np.random.default_rng((scan.texture_seed, 3))
    for cells, amplitude in _MOTTLE:
        signal = signal * (1 + np.float32(amplitude) * _mottle(random, size, cells))
    place = ((np.arange(size) + 0.5) * 2 / size - 1).astype(np.float32)
    slope_x, slope_y = (np.float32(s) for s in (scan.shading_x, scan.shading_y))
    signal = signal * (1 + slope_x * place + slope_y * place[:, None])
    deviation = np.float32(scan.noise * size / _NOISE_SIZE)
    first, second = deviation * normals(random, (2, size, size))
    value = np.sqrt((signal + first) * (signal + first) + second * second)
    return (255 * np.minimum(value, 1) + np.float32(0.5)).astype(np.uint8)


def _mottle(random: np.random.Generator, size: int, cells: int) -> Image:
    """Return numbers in [-1, 1] that change smoothly from cell to cell."""
    corners = 2 * random.random((cells + 1, cells + 1)).astype(np.float32) - 1
    place = (np.arange(size) + 0.5) * cells / size
    cell = place.astype(int)
    t = (place - cell).astype(np.float32)
    t = t * t * (3 - 2 * t)
    rows = corners[cell] + t[:, None] * (corners[cell + 1] - corners[cell])
    columns = rows[:, cell + 1] - rows[:, cell]
    return rows[:, cell] + t * columns
