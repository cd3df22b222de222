"""From noise to image: the steps of a sampler as a strip and as an animated GIF."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from medjax import storage
from medjax.evaluation.grids import BACKGROUND, enlarged

# Browsers show frames that last under 20 ms too slowly, and files grow with each frame.
_FRAMES_PER_SECOND = 20
# GIF counts time in these.
_TICK_MS = 10


def strip(
    frames: Float[np.ndarray, "n H W _"], count: int = 8
) -> UInt8[np.ndarray, "height width 3"]:
    """Return evenly chosen frames side by side, the first and the last among them.

    Args:
        frames: In [-1, 1], of 1 or 3 channels, from noise to image.
        count: How many to show, at most.
    """
    tiles = enlarged(frames[_evenly(len(frames), count)])
    _, height, width, _ = tiles.shape
    gap = max(2, width // 64)
    page_width = len(tiles) * (width + gap) + gap
    page = np.full((height + 2 * gap, page_width, 3), BACKGROUND, np.uint8)
    for number, tile in enumerate(tiles):
        left = gap + number * (width + gap)
        page[gap : gap + height, left : left + width] = tile
    return page


def save_gif(
    frames: Float[np.ndarray, "n H W _"],
    path: str | Path,
    seconds: float = 5.0,
    hold_seconds: float = 1.5,
    comment: str = "",
) -> None:
    """Write frames as a GIF that runs for ever, and the folder it goes to if need be.

    At most 20 frames a second are kept, evenly chosen. Gray images keep all their
    levels; colours are reduced to each frame's best 256.

    Args:
        frames: In [-1, 1], of 1 or 3 channels, from noise to image.
        path: Of the file.
        seconds: From the first frame to the last.
        hold_seconds: How long the last one stays.
        comment: What the file says of itself.
    """
    most = max(2, round(seconds * _FRAMES_PER_SECOND) + 1)
    tiles = enlarged(frames[_evenly(len(frames), most)])
    is_gray = bool((tiles == tiles[..., :1]).all())
    images = [Image.fromarray(tile[..., 0] if is_gray else tile) for tile in tiles]
    first, *others = images
    with storage.writing(path) as file:
        first.save(
            file,
            format="GIF",
            save_all=True,
            append_images=others,
            duration=_durations(len(images), seconds, hold_seconds),
            loop=0,
            comment=comment.encode(),
        )


def _evenly(count: int, most: int) -> Int[np.ndarray, " _"]:
    """Return at most `most` indices from 0 to count - 1, both among them."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def _durations(count: int, seconds: float, hold_seconds: float) -> list[int]:
    """Return how long each frame lasts, in ms; rounding does not add up."""
    ends = np.linspace(0, seconds, count) * 1000 / _TICK_MS
    ticks = np.diff(ends.round()).astype(int).tolist()
    hold = max(1, round(hold_seconds * 1000 / _TICK_MS))
    return [_TICK_MS * tick for tick in (*ticks, hold)]
