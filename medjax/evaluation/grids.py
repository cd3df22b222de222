"""Draw pages of samples: condition, generated image and real image side by side."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from medjax import storage

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_SMALLEST_TILE_PX = 192
_CAPTION_LINES = 2
_INK, _FAINT_INK = (236, 236, 236), (170, 170, 176)

BACKGROUND = (22, 22, 26)
"""Background colour of pages and strips, as RGB."""


def to_uint8(images: Float[np.ndarray, "*b H W c"]) -> UInt8[np.ndarray, "*b H W c"]:
    """Return images in [-1, 1] as 0 to 255, rounded. Values outside are clipped."""
    scaled = (np.asarray(images, np.float32) + 1) * 127.5
    return np.clip(np.nan_to_num(scaled).round(), 0, 255).astype(np.uint8)


def enlarged(
    images: Float[np.ndarray, "b H W _"],
) -> UInt8[np.ndarray, "b height width 3"]:
    """Return images in [-1, 1], with 1 or 3 channels, as RGB of a visible size.

    Small images are enlarged by a whole factor without smoothing, so that each pixel
    stays visible.
    """
    factor = -(-_SMALLEST_TILE_PX // max(images.shape[1:3]))
    pixels = np.broadcast_to(to_uint8(images), (*images.shape[:3], 3))
    return pixels.repeat(factor, axis=1).repeat(factor, axis=2)


def image_page(
    columns: Mapping[str, Float[np.ndarray, "b H W _"]],
    captions: Sequence[str] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Return a page of images, with the names of the columns above them.

    A page that would be much higher than wide is divided into blocks side by side.

    Args:
        columns: Images in [-1, 1] with 1 or 3 channels, by column name. All columns
            have equal numbers and sizes of images.
        captions: One text per row, wrapped below it, and cut if it is too long.
    """
    tiles = {name: enlarged(images) for name, images in columns.items()}
    rows, height, width = next(iter(tiles.values())).shape[:3]
    if captions is not None and len(captions) != rows:
        raise ValueError(f"{len(captions)} captions for {rows} examples")
    gap = max(2, width // 64)
    size = min(max(12, width // 14), 28)
    font = ImageFont.load_default(size)
    line = round(size * 1.3)
    block = len(tiles) * width + (len(tiles) + 1) * gap
    texts = [_wrap(text, font, block - 4 * gap) for text in captions or ()]
    text_height = line * max(map(len, texts), default=0) + (gap * 3 if texts else 0)
    head = line + 2 * gap
    row = height + text_height + gap
    deep = -(-rows // max(1, round(math.sqrt(rows * row / block))))
    size_px = (-(-rows // deep) * block, head + deep * row)
    page = Image.new("RGB", size_px, BACKGROUND)
    draw = ImageDraw.Draw(page)
    for number in range(rows):
        start, top = number // deep * block, head + number % deep * row
        for index, (name, column) in enumerate(tiles.items()):
            left = start + gap + index * (width + gap)
            if number % deep == 0:
                middle = (left + width // 2, (head + gap) // 2)
                draw.text(middle, name, _INK, font, anchor="mm")
            page.paste(Image.fromarray(column[number]), (left, top))
        for offset, text in enumerate(texts[number] if texts else ()):
            below = top + height + gap + offset * line
            draw.text((start + 2 * gap, below), text, _FAINT_INK, font)
    return np.asarray(page)


def canvas(
    images: Float[np.ndarray, "b H W _"], wide: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Return images in rows of `wide`. Their number is a multiple of `wide`."""
    return image_page({str(n + 1): images[n::wide] for n in range(wide)})


def save_png(
    path: str | Path,
    image: UInt8[np.ndarray, "H W 3"],
    about: Mapping[str, str] | None = None,
) -> None:
    """Write an image as PNG. Create its folder if it is missing.

    Args:
        path: File to write.
        image: RGB image.
        about: Texts to store in the file, by keyword.
    """
    texts = PngImagePlugin.PngInfo()
    for keyword, text in (about or {}).items():
        texts.add_itxt(keyword, text)
    with storage.writing(path) as file:
        Image.fromarray(image).save(file, format="PNG", pnginfo=texts)


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """Break a caption into lines of at most `width` pixels; cut it with an ellipsis."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        elif len(lines) < _CAPTION_LINES:
            lines.append(word)
        else:
            while " " in lines[-1] and font.getlength(lines[-1] + " …") > width:
                lines[-1] = lines[-1].rpartition(" ")[0]
            lines[-1] = lines[-1].rstrip(" ,;:") + " …"
            break
    return lines
