"""Resize images of any size to one square size.

`ResizeMode` has three values. `center_crop` keeps the aspect ratio and crops the longer
side. `letterbox` keeps the aspect ratio and the whole image, and pads. `stretch`
changes the aspect ratio. `fit` returns the resized content, which letterbox leaves
smaller than the square. So edges can be computed on it before `pad` surrounds it.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8

ResizeMode = Literal["center_crop", "letterbox", "stretch"]


def fit(
    image: UInt8[np.ndarray, "H W 3"], size: int, mode: ResizeMode
) -> UInt8[np.ndarray, "h w 3"]:
    """Resize to (size, size), or with letterbox to the largest size that fits inside.

    Args:
        image: RGB, 0 to 255.
        size: Side of the square, in pixels.
        mode: What to do if the image is not square.
    """
    if mode == "stretch":
        return resize(image, size, size)
    if mode == "center_crop":
        return cover(image, size, size)
    scale = size / max(image.shape[:2])
    # An extremely narrow image still keeps one pixel.
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return resize(image, height, width)


def cover(
    image: UInt8[np.ndarray, "H W 3"], height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Resize until both sides are covered, then crop both ends of a side equally."""
    scale = max(height / image.shape[0], width / image.shape[1])
    tall, wide = (round(side * scale) for side in image.shape[:2])
    resized = resize(image, max(tall, height), max(wide, width))
    top, left = (max(tall, height) - height) // 2, (max(wide, width) - width) // 2
    return np.ascontiguousarray(resized[top : top + height, left : left + width])


def resize(
    image: UInt8[np.ndarray, "H W 3"], height: int, width: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Resize with an area filter to shrink, and with a cubic filter to enlarge.

    The area filter averages every source pixel once, so that fine structure does not
    alias. If one axis shrinks and the other grows, each axis has a different filter.
    """
    old_height, old_width = image.shape[:2]
    if (height > old_height) != (width > old_width):
        image = _resize_once(image, height, old_width)
    return _resize_once(image, height, width)


def _resize_once(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    grows = height > image.shape[0] or width > image.shape[1]
    # Imported here, because the training step does not need it.
    import cv2

    filter_ = cv2.INTER_CUBIC if grows else cv2.INTER_AREA
    return np.asarray(cv2.resize(image, (width, height), interpolation=filter_))


def repeat_gray(gray: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Repeat gray values over three channels."""
    # Imported here, because the training step does not need it.
    import cv2

    return np.asarray(cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB))


def pad(
    content: UInt8[np.ndarray, "h w 3"], size: int
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Centre the content on a black square; return it if it is that square."""
    if content.shape[:2] == (size, size):
        return content
    padded = np.zeros((size, size, content.shape[2]), np.uint8)
    padded[_place(content.shape[0], content.shape[1], size)] = content
    return padded


def loss_mask(
    height: int, width: int, size: int
) -> Float32[np.ndarray, "{size} {size} 1"]:
    """Return 1 where `pad` puts content of this height and width, 0 in the padding."""
    mask = np.zeros((size, size, 1), np.float32)
    mask[_place(height, width, size)] = 1.0
    return mask


def _place(height: int, width: int, size: int) -> tuple[slice, slice]:
    top, left = (size - height) // 2, (size - width) // 2
    return slice(top, top + height), slice(left, left + width)


def same_aspect(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Return whether two shapes have the same aspect ratio, to a pixel."""
    cross = abs(first[0] * second[1] - first[1] * second[0])
    return cross <= max(*first[:2], *second[:2])
