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

# What Pillow raises for a damaged file; SyntaxError is its word for a broken PNG.
_DAMAGED = (
    UnidentifiedImageError,
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    Image.DecompressionBombError,
)
_UINT16_MAX = 65535


def decode_image(encoded: bytes, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """Decode one image to RGB, upright as its EXIF orientation says.

    Grayscale is repeated over the channels. 16-bit values are divided by 257 (the
    full range counts, not the values that occur, so that images stay comparable).
    Transparent pixels lie on black.

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
    except _DAMAGED as error:
        raise UserError(
            f"{name}: not a readable image ({len(encoded)} bytes): {error}; replace or "
            "remove it"
        ) from error
    return np.ascontiguousarray(_to_rgb(image, name))


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
    """Scale 16-bit gray values to 8 bits."""
    if values.min() < 0 or values.max() > _UINT16_MAX:
        raise UserError(
            f"{name}: pixel values from {values.min()} to {values.max()}; expected "
            f"0 to {_UINT16_MAX} at most"
        )
    # 257 = 65535 / 255: maps the full 16-bit range onto the full 8-bit range.
    gray = np.round(values / 257.0).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)
