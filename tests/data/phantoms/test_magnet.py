import dataclasses

import numpy as np
import pytest

from medjax.data.phantoms.magnet import draw_scan, expose

SCAN = dataclasses.replace(
    draw_scan(np.random.default_rng(0)), shading_x=0.0, shading_y=0.0, noise=0.02
)


def flat(size: int, signal: float):
    return np.full((size, size), signal, np.float32)


def test_noise_in_the_dark_is_that_of_a_magnitude():
    image = expose(flat(256, 0.0), SCAN) / 255
    # Rayleigh's: the mean is sqrt(pi / 2) of the deviation in each channel.
    assert image.mean() == pytest.approx(0.02 * np.sqrt(np.pi / 2), rel=0.05)
    assert image.std() == pytest.approx(0.02 * np.sqrt(2 - np.pi / 2), rel=0.1)


def test_small_pixels_have_more_noise():
    deviations = [np.std(expose(flat(size, 0.0), SCAN)) for size in (128, 512)]
    assert deviations[1] == pytest.approx(4 * deviations[0], rel=0.15)


def test_the_coil_is_more_sensitive_at_its_side():
    scan = dataclasses.replace(SCAN, shading_x=0.15, shading_y=-0.1)
    even, shaded = (expose(flat(64, 0.5), some) / 255 for some in (SCAN, scan))
    ratio = shaded / even
    assert ratio[:, -8:].mean() == pytest.approx(1.13, abs=0.01)
    assert ratio[-8:].mean() == pytest.approx(0.91, abs=0.01)


def test_nothing_is_brighter_than_white():
    assert expose(flat(32, 1.5), SCAN).min() == 255
