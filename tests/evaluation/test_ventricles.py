import functools

import numpy as np
import pytest
from scipy import ndimage

from medjax.data.phantoms import PhantomSource
from medjax.evaluation.ventricles import VENTRICLE_MIDPOINT, ventricle_share

COUNT = 120


@functools.cache
def held_out(size: int = 64, count: int = COUNT):
    """Return gray values in [0, 1], true shares, and which brains are "AD"."""
    source = PhantomSource("test", size, count, kind="brain")
    records = [source[i] for i in range(count)]
    gray = np.stack([record["image"][..., 0] / 255 for record in records])
    shares = [record["parameters"]["ventricle_share"] for record in records]
    large = [record["labels"] == ("AD",) for record in records]
    return gray, np.array(shares), np.array(large)


def measure(gray):
    return ventricle_share(2 * np.clip(gray, 0, 1)[..., None] - 1)


def blurred(gray):
    return ndimage.gaussian_filter(gray, (0, 0.7, 0.7))


def noisy(gray):
    return gray + np.random.default_rng(0).normal(0, 0.05, gray.shape)


@pytest.mark.ci
@pytest.mark.parametrize(
    "change", [np.asarray, blurred, noisy, lambda gray: noisy(blurred(gray))]
)
def test_classes_are_told_apart_at_64_pixels(change):
    gray, _, large = held_out()
    assert ((measure(change(gray)) > VENTRICLE_MIDPOINT) == large).mean() >= 0.98


@pytest.mark.parametrize("size", [64, pytest.param(128, marks=pytest.mark.ci)])
def test_what_is_measured_is_the_parameter(size):
    gray, shares, _ = held_out(size, 40)
    found = measure(gray)
    assert np.corrcoef(found, shares)[0, 1] > 0.95
    assert np.abs(found - shares).mean() < 0.012


def test_neither_channels_nor_brightness_matter():
    gray, _, _ = held_out()
    gray = gray[:8]
    found = measure(gray)
    colour = np.repeat(2 * gray[..., None] - 1, 3, axis=3)
    # Rounding may move a pixel over a threshold.
    for same in (ventricle_share(colour), measure(0.7 * gray)):
        np.testing.assert_allclose(same, found, rtol=0.02)


def test_a_brain_without_ventricles_has_none():
    y, x = np.mgrid[:64, :64] - 31.5
    radius = np.hypot(x / 0.85, y)
    gray = np.where(radius < 22, 0.7, np.where(radius < 25, 0.05, 0.8)) * (radius < 28)
    assert measure(gray[None])[0] == 0
    hole = np.where((np.abs(x) < 4) & (np.abs(y) < 8), 0.13, gray)
    inside = 0.85 * np.pi * 22**2
    assert measure(hole[None])[0] == pytest.approx(8 * 16 / inside, rel=0.25)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_an_image_of_nothing_is_no_error(value):
    (found,) = measure(np.full((1, 64, 64), value))
    assert np.isnan(found) or found == 0


def test_noise_alone_is_no_error():
    found = measure(np.random.default_rng(0).random((8, 64, 64)))
    assert all(np.isnan(share) or 0 <= share <= 1 for share in found)
