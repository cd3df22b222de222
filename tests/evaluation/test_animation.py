"""A strip and a GIF begin with noise, end with the image, and take their time."""

import numpy as np
import pytest
from PIL import Image

from medjax.evaluation.animation import save_gif, strip
from medjax.evaluation.grids import BACKGROUND, enlarged, to_uint8


def rising(count, size=32, channels=1):
    """Frames of one value each, from -1 to 1."""
    levels = np.linspace(-1, 1, count, dtype=np.float32)
    return np.broadcast_to(
        levels[:, None, None, None], (count, size, size, channels)
    ).copy()


def read_gif(path):
    with Image.open(path) as gif:
        frames, durations = [], []
        for number in range(gif.n_frames):
            gif.seek(number)
            frames.append(np.asarray(gif.convert("RGB")))
            durations.append(gif.info["duration"])
        return np.stack(frames), durations, gif.info["loop"]


@pytest.mark.parametrize(("count", "shown"), [(1000, 8), (8, 8), (3, 3), (1, 1)])
def test_a_strip_goes_evenly_from_the_first_to_the_last(count, shown):
    page = strip(rising(count))
    middle = page[len(page) // 2]
    inside = [
        row[0]
        for row in middle.reshape(-1, 3)[100 :: 192 + 3][:shown]  # a pixel of each
    ]
    assert page.shape == (192 + 6, shown * (192 + 3) + 3, 3)
    expected = to_uint8(np.linspace(-1, 1, shown, dtype=np.float32).reshape(-1, 1, 1))
    np.testing.assert_allclose(inside, expected.ravel(), atol=1)
    assert (page[0] == BACKGROUND).all()


def test_a_strip_shows_colours_and_every_pixel():
    frames = np.random.default_rng(0).uniform(-1, 1, (2, 64, 48, 3)).astype(np.float32)
    page = strip(frames)
    tile = page[2 : 2 + 192, 2 : 2 + 144]
    np.testing.assert_array_equal(tile[1::3, 1::3], to_uint8(frames)[0])


def test_a_gray_gif_keeps_every_level_and_the_ends(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.uniform(-1, 1, (3, 192, 192, 1)).astype(np.float32)
    save_gif(frames, tmp_path / "made" / "a.gif", seconds=1)
    seen, _, loop = read_gif(tmp_path / "made" / "a.gif")
    np.testing.assert_array_equal(seen, enlarged(frames))
    assert loop == 0


@pytest.mark.parametrize("count", [2, 7, 81, 1000])
def test_a_gif_takes_the_time_that_it_is_given(tmp_path, count):
    frames = np.random.default_rng(0).uniform(-1, 1, (count, 4, 4, 1))
    save_gif(frames.astype(np.float32), tmp_path / "a.gif", seconds=3, hold_seconds=0.5)
    seen, durations, _ = read_gif(tmp_path / "a.gif")
    assert len(seen) == min(count, 61)
    assert sum(durations[:-1]) == 3000
    assert durations[-1] == 500
    assert max(durations[:-1]) - min(durations[:-1]) <= 10


def test_a_coloured_gif_stays_coloured(tmp_path):
    frames = rising(2, channels=3)
    frames[1, :, :, 1:] = -1
    save_gif(frames, tmp_path / "a.gif")
    seen, _, _ = read_gif(tmp_path / "a.gif")
    np.testing.assert_array_equal(seen[:, 0, 0], [[0, 0, 0], [255, 0, 0]])


def test_one_frame_is_a_gif_too(tmp_path):
    save_gif(rising(1), tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 1
