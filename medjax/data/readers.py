"""Decode image files of all common formats to 8-bit RGB.

Pillow decodes, because it refuses a truncated file. OpenCV returns a gray rectangle and
reports the fault on stderr only. OpenCV repeats gray values over the channels, because
Pillow takes several times as long for that.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from medjax.data.transforms import repeat_gray
from medjax.errors import UserError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
"""File name endings (in lower case) that count as images."""

# Bit depths of radiograph detectors. Files store depths above 8 in 16 bits.
_DEPTHS = (8, 10, 12, 14, 16)


def decode_image(encoded: bytes, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """Decode one image to RGB, turned upright by its EXIF orientation.

    Grayscale is repeated over the channels. Transparent pixels are blended with black.
    The first image of an animation or of a file with several pages is taken. A 16-bit
    image is scaled by the smallest usual depth (8, 10, 12, 14 or 16 bits) that holds
    its values. The reason is that files rarely state the detector's depth, and an image
    of 12 bits, scaled by 16, is nearly black.

    Args:
        encoded: Content of a PNG, JPEG, WebP, BMP or TIFF file.
        name: Name of the image in errors: a file or the id of a record.

    Raises:
        UserError: If the image is damaged, or its pixels are floating-point or do not
            fit in 16 bits.
    """
    try:
        with warnings.catch_warnings():
            # Large radiographs are not decompression bombs. Real bombs still raise.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(encoded)) as opened:
                image = ImageOps.exif_transpose(opened)
                image.load()
                return np.ascontiguousarray(_to_rgb(image, name))
    except UserError:
        raise
    # Decoders raise many types for a damaged file: SyntaxError, struct.error...
    except Exception as error:
        raise UserError(
            f"{name}: not a readable image ({len(encoded)} bytes): "
            f"{_reason(error)}; replace or remove it"
        ) from error


def read_image(path: str | Path) -> UInt8[np.ndarray, "H W 3"]:
    """Read and decode one file (see `decode_image`).

    Raises:
        UserError: If the file cannot be opened or decoded.
    """
    try:
        encoded = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return decode_image(encoded, str(path))


def _to_rgb(image: Image.Image, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """Convert an image of any Pillow mode to RGB."""
    if image.mode == "F":
        raise UserError(
            f"{name}: floating-point pixels have no fixed range; store the image as "
            "8-bit or 16-bit integers"
        )
    if image.mode.startswith("I"):
        return _from_integers(np.asarray(image), name)
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        backdrop = Image.new("RGBA", opaque.size, (0, 0, 0, 255))
        image = Image.alpha_composite(backdrop, opaque)
    if image.mode == "L":
        return repeat_gray(np.asarray(image))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _from_integers(values: np.ndarray, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """Scale gray values of at most 16 bits to 8 bits."""
    least, most = int(values.min()), int(values.max())
    if least < 0 or most >= 2 ** _DEPTHS[-1]:
        raise UserError(
            f"{name}: pixel values from {least} to {most}; expected values from 0 to "
            f"{2 ** _DEPTHS[-1] - 1}"
        )
    white = next(2**bits - 1 for bits in _DEPTHS if most < 2**bits)
    return repeat_gray(np.round(values * (255.0 / white)).astype(np.uint8))


def _reason(error: Exception) -> str:
    """Return the text of an error, without the address of a buffer."""
    if isinstance(error, UnidentifiedImageError):
        return "unknown format"
    return " ".join(str(error).split()) or type(error).__name__
