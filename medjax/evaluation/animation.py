"""Show the steps of a sampler from noise to image, as a strip or an animated GIF."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from medjax import storage
from medjax.evaluation.grids import BACKGROUND, enlarged

# Browsers slow down frames of less than 20 ms, and each frame makes the file larger.
_FRAMES_PER_SECOND = 20
# The unit of time in a GIF.
_TICK_MS = 10


def strip(
    frames: Float[np.ndarray, "n H W _"], count: int = 8
) -> UInt8[np.ndarray, "height width 3"]:
    """Return evenly spaced frames side by side, including the first and the last.

    Args:
        frames: Images from noise to result, in [-1, 1], with 1 or 3 channels.
        count: Largest number of frames to show.
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
    """Write frames as a GIF that repeats forever. Create its folder if it is missing.

    The GIF keeps at most 20 evenly spaced frames per second. Gray images keep all their
    levels. In colour images, each frame keeps its best 256 colours.

    Args:
        frames: Images from noise to result, in [-1, 1], with 1 or 3 channels.
        path: File to write.
        seconds: Time from the first frame to the last.
        hold_seconds: Time for which the last frame stays.
        comment: Comment to store in the file.
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
    """Return at most `most` evenly spaced indices from 0 to count - 1, inclusive."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def _durations(count: int, seconds: float, hold_seconds: float) -> list[int]:
    """Return the duration of each frame in ms. Rounding errors do not accumulate."""
    ends = np.linspace(0, seconds, count) * 1000 / _TICK_MS
    ticks = np.diff(ends.round()).astype(int).tolist()
    hold = max(1, round(hold_seconds * 1000 / _TICK_MS))
    return [_TICK_MS * tick for tick in (*ticks, hold)]
