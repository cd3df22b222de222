"""Decode image files of every usual kind to 8-bit RGB.

Pillow decodes, because it refuses a truncated file, where OpenCV returns a grey
rectangle and says so on stderr only.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from medjax.errors import UserError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
"""File name endings (in lower case) that count as images."""

# Bits that detectors of radiographs have; files keep more than 8 of them in 16.
_DEPTHS = (8, 10, 12, 14, 16)


def decode_image(encoded: bytes, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """Decode one image to RGB, upright as its EXIF orientation says.

    Grayscale is repeated over the channels. Transparent pixels lie on black. Of an
    animation or a file of many pages the first image counts. A 16-bit image is scaled
    by the smallest usual depth (8, 10, 12, 14 or 16 bits) that its values fit in: files
    seldom say how many bits the detector had, and 12 of 16 would be nearly black.

    Args:
        encoded: The content of a PNG, JPEG, WebP, BMP or TIFF file.
        name: What an error calls the image: a file or the id of a record.

    Raises:
        UserError: If the image is damaged or its pixels are floating-point.
    """
    try:
        with warnings.catch_warnings():
            # Large radiographs are no decompression bombs; real ones still raise.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(encoded)) as opened:
                image = ImageOps.exif_transpose(opened)
                image.load()
                return np.ascontiguousarray(_to_rgb(image, name))
    except UserError:
        raise
    # Whatever its decoders stumble upon in a damaged file: SyntaxError, struct.error...
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
    """Convert any of Pillow's modes."""
    if image.mode == "F":
        raise UserError(
            f"{name}: floating-point pixels have no fixed range; store it as 8-bit or "
            "16-bit integers"
        )
    if image.mode.startswith("I"):
        return _from_integers(np.asarray(image), name)
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        backdrop = Image.new("RGBA", opaque.size, (0, 0, 0, 255))
        image = Image.alpha_composite(backdrop, opaque)
    return np.asarray(image.convert("RGB"))


def _from_integers(values: np.ndarray, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """Scale gray values of at most 16 bits to 8."""
    least, most = int(values.min()), int(values.max())
    if least < 0 or most >= 2 ** _DEPTHS[-1]:
        raise UserError(
            f"{name}: pixel values from {least} to {most}; expected 0 to "
            f"{2 ** _DEPTHS[-1] - 1} at most"
        )
    white = next(2**bits - 1 for bits in _DEPTHS if most < 2**bits)
    gray = np.round(values * (255.0 / white)).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def _reason(error: Exception) -> str:
    """Return what an error says, without the address of the buffer it was read from."""
    if isinstance(error, UnidentifiedImageError):
        return "of no known format"
    return " ".join(str(error).split()) or type(error).__name__
