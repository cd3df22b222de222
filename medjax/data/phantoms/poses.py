"""Map a body to the pixels of an image."""

import dataclasses

import numpy as np
from jaxtyping import Float, Float32

Image = Float32[np.ndarray, "h w"]
"""A value at each pixel."""


@dataclasses.dataclass(frozen=True)
class Pose:
    """The map between the body and the pixels of a square image.

    pixel = matrix @ (x, y) + offset, where pixel (0, 0) is a pixel's centre.

    Attributes:
        size: Pixels along a side.
        cos: Pixels per cm, times the cosine of the clockwise rotation.
        sin: Pixels per cm, times the sine of the clockwise rotation.
        offset: Position of the body's origin, in pixels.
    """

    size: int
    cos: float
    sin: float
    offset: tuple[float, float]

    @property
    def pixels_per_cm(self) -> float:
        """Pixels per cm of the body."""
        return float(np.sqrt(self.cos**2 + self.sin**2))

    def to_pixels(self, points: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
        """Return body points (x, y) in pixels (column, row)."""
        x, y = points[..., 0], points[..., 1]
        return np.stack(
            [
                self.cos * x - self.sin * y + self.offset[0],
                self.sin * x + self.cos * y + self.offset[1],
            ],
            axis=-1,
        )


def pose_in_field(
    size: int,
    field_cm: float,
    rotation_degrees: float,
    scale: float,
    shift: tuple[float, float],
) -> Pose:
    """Return the pose of a body in an image.

    Args:
        size: Pixels along a side.
        field_cm: Side of the image at scale 1, in cm of the body.
        rotation_degrees: Rotation of the body in the image, clockwise.
        scale: Size of the body in the image.
        shift: Shift of the body's origin from the image's centre, to the right and
            down, as shares of the image side.
    """
    pixels_per_cm = scale * size / field_cm
    angle = np.deg2rad(rotation_degrees)
    centre = (size - 1) / 2
    return Pose(
        size,
        pixels_per_cm * float(np.cos(angle)),
        pixels_per_cm * float(np.sin(angle)),
        (centre + shift[0] * size, centre + shift[1] * size),
    )
