"""Measure the size of the ventricles in an image of a brain, from gray values alone.

    share = Σ (t - v) / (t - 0.18 w) / n                                           (1)

The sum is over the ventricles and their edges, and n is the number of pixels inside the
skull. The gray values are v for the pixel, t for the surrounding tissue, w for white
matter and 0.18 w for fluid. So blurred fluid still counts, and a ventricle may be
narrower than a pixel. A pixel is inside the skull if it is deep enough in the head.
Ventricles are dark regions in the middle of the head.

The measure is made for the phantoms of `medjax.data.phantoms`, and for images of models
trained on them. The classes "AD" and "NC" differ in it. It assumes that the image shows
a skull.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from medjax.data.phantoms import VENTRICLE_SHARE_LIMIT

VENTRICLE_MIDPOINT = VENTRICLE_SHARE_LIMIT
"""Limit of the share: above it a brain belongs to "AD", below it to "NC"."""

_BRIGHT, _HEAD = 1 / 3, 0.5
"""The first is the lowest gray value of pixels other than air, bone and fluid, divided
by the maximum. The second is the gray value of the head's outline, divided by the
median of these pixels."""

_SKULL_DEPTH = 0.14
"""Depth where the inside of the skull begins, divided by the radius of a circle with
the area of the head."""

_WHITE_PERCENTILE = 70
"""Percentile of the gray values inside the skull. It estimates white matter's value."""

_FLUID, _DARK = 0.18, 0.72
"""Gray value of fluid, and largest gray value of a pixel with some fluid. Both are
divided by the gray value of white matter."""

_ZONE, _MIDDLE = 0.46, 0.76
"""Depths, divided by the maximum. Ventricles are deeper than the first, and their
deepest pixels are deeper than the second."""

_EDGE_PX = 2


def ventricle_share(images: Float[np.ndarray, "b H W _"]) -> Float[np.ndarray, " b"]:
    """Return the area of the ventricles, divided by the area inside the skull; see (1).

    Args:
        images: Axial T1-weighted images in [-1, 1], with 1 or 3 channels, preferably
            64² pixels or more.

    Returns:
        Shares in [0, 1]; NaN for an image without a head.
    """
    return np.array([_share(gray) for gray in (images.mean(-1) + 1) / 2])


def _share(gray: Float[np.ndarray, "H W"]) -> float:
    # The padding gives an outline to a head that fills the image.
    gray = np.pad(gray, 1)
    depth = _depth(gray)
    inside = depth > _SKULL_DEPTH * np.sqrt((depth > 0).sum() / np.pi)
    white = np.percentile(gray[inside], _WHITE_PERCENTILE) if inside.any() else 0
    if white <= 0:
        return float("nan")
    dark = (gray < _DARK * white) & (depth > _ZONE * depth.max())
    found = _touching(dark, depth > _MIDDLE * depth.max())
    if not found.any():
        return 0.0
    edged = ndimage.binary_dilation(found, iterations=_EDGE_PX)
    around = ndimage.binary_dilation(edged) & ~edged
    tissue = max(np.median(gray[around]), _DARK * white)
    fluid = (tissue - gray[edged]).sum() / (tissue - _FLUID * white)
    return float(np.clip(fluid / inside.sum(), 0, 1))


def _depth(gray: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """Return the depth of each pixel in the head, in pixels; 0 outside."""
    bright = gray[gray > _BRIGHT * gray.max()]
    if not bright.size:
        return np.zeros_like(gray)
    head = ndimage.binary_fill_holes(gray > _HEAD * np.median(bright))
    regions, _ = ndimage.label(head)
    largest = np.bincount(regions.ravel())[1:].argmax() + 1
    return ndimage.distance_transform_edt(regions == largest)


def _touching(
    some: Bool[np.ndarray, "H W"], place: Bool[np.ndarray, "H W"]
) -> Bool[np.ndarray, "H W"]:
    """Return the regions of `some`, also joined at corners, that overlap `place`."""
    regions, _ = ndimage.label(some, np.ones((3, 3)))
    return np.isin(regions, np.unique(regions[place & some])) & some
