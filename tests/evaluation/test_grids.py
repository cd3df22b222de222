"""A page shows every image where its column and row say, and its captions whole."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from medjax.evaluation.grids import _wrap, image_page, save_png, to_uint8


def flat(value, count=2, size=32, channels=3):
    return np.full((count, size, size, channels), value, np.float32)


def page_of(*columns, captions=None):
    return image_page(dict(zip("abc", columns, strict=True)), captions)


def share(page, colour):
    """Return the part of a page that has a colour."""
    return (page == np.asarray(colour, np.uint8)).all(-1).mean()


def test_every_column_is_shown_enlarged_and_in_order():
    page = page_of(flat(1.0), flat(-1.0), flat(0.2, channels=1))
    height, width, _ = page.shape
    tile = 192
    third = width // 3
    for index, colour in enumerate([(255,) * 3, (0,) * 3, (153,) * 3]):
        column = page[:, index * third : (index + 1) * third]
        expected = 2 * tile * tile / (height * third)
        assert share(column, colour) == pytest.approx(expected, rel=0.02)


def test_enlarging_keeps_every_pixel():
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (1, 64, 64, 1)).astype(np.float32)
    page = page_of(flat(0.0, 1, 64), flat(0.0, 1, 64), images)
    tile = page[-195:-3, -195:-3]
    np.testing.assert_array_equal(tile[1::3, 1::3, :1], to_uint8(images)[0])


def test_large_images_are_not_enlarged():
    page = page_of(*(flat(0.5, 1, 256) for _ in range(3)))
    assert 3 * 256 < page.shape[1] < 3 * 256 + 30


def test_captions_take_room_and_stay_on_the_page():
    images = [flat(0.0) for _ in range(3)]
    plain = page_of(*images)
    short = page_of(*images, captions=["a", "b"])
    long = page_of(*images, captions=["word " * 100, ""])
    assert plain.shape[0] < short.shape[0] < long.shape[0]
    assert plain.shape[1] == short.shape[1] == long.shape[1]
    with pytest.raises(ValueError, match="1 captions for 2 examples"):
        page_of(*images, captions=["a"])


def test_long_captions_end_in_an_ellipsis_and_short_ones_are_whole():
    font = ImageFont.load_default(14)
    assert _wrap("Chest X-ray.", font, 300) == ["Chest X-ray."]
    assert _wrap("", font, 300) == [""]
    text = "Findings: effusion, nodule, " * 20
    lines = _wrap(text, font, 300)
    assert len(lines) == 2
    assert lines[1].endswith(" …")
    assert all(font.getlength(line) <= 300 for line in lines)
    assert text.startswith(" ".join(lines).removesuffix(" …"))
    assert len(_wrap("x" * 500, font, 300)) == 1


def test_pixels_are_rounded_and_clipped():
    values = np.array([-2, -1, 0, 1, 2, np.nan], np.float32).reshape(1, 1, 6, 1)
    np.testing.assert_array_equal(to_uint8(values).ravel(), [0, 0, 128, 255, 255, 0])
    every = np.arange(256, dtype=np.float32).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(to_uint8(every / 127.5 - 1), every.astype(np.uint8))


def test_a_png_comes_back(tmp_path):
    page = page_of(*(flat(0.5, 1) for _ in range(3)))
    save_png(tmp_path / "samples" / "step.png", page)
    with Image.open(tmp_path / "samples" / "step.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), page)


def test_reconstructions_stand_beside_their_originals():
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (3, 192, 192, 1)).astype(np.float32)
    page = image_page({"original": images, "reconstruction": -images})
    shown, mirrored = (
        np.stack([page[-195 * (3 - i) :][:192, left : left + 192, 0] for i in range(3)])
        for left in (3, 198)
    )
    np.testing.assert_array_equal(shown, to_uint8(images)[..., 0])
    np.testing.assert_array_equal(mirrored, to_uint8(-images)[..., 0])


@pytest.mark.parametrize("count", [5, 31, 32])
def test_many_examples_stand_beside_one_another(count):
    values = np.linspace(-1, 1, count).astype(np.float32)
    images = np.broadcast_to(values[:, None, None, None], (count, 192, 192, 1))
    page = image_page({"drawn": images, "real": -images}, ["a caption"] * count)
    height, width, _ = page.shape
    assert 0.5 < height / width < 2
    # Pairs are found one below the other, then to the right.
    block = 2 * 192 + 3 * 3
    drawn, real = (
        page[:, left::block][:, : width // block, 0].T.ravel() for left in (99, 294)
    )
    for column, shown in ((drawn, images), (real, -images)):
        expected = to_uint8(shown)[:, 0, 0, 0]
        changes = np.flatnonzero(np.diff(column)) + 1
        runs = np.split(column, changes)
        tiles = [run[0] for run in runs if len(run) >= 192][:count]
        np.testing.assert_array_equal(tiles, expected)
