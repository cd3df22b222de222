"""The Fréchet distance is what its formula says."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from medjax.errors import UserError
from medjax.evaluation.frechet import frechet_distance


def drawn(count, width=5, seed=0, scale=1.0, shift=0.0):
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(9).normal(size=(width, width))
    return (scale * rng.normal(size=(count, width)) @ mix + shift).astype(np.float32)


def by_the_formula(a, b):
    one, two = np.cov(a.T), np.cov(b.T)
    root = np.real(sqrtm(one @ two))
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(one + two - 2 * root)


@pytest.mark.parametrize(("count", "other"), [(50, 50), (40, 90)])
def test_it_is_the_formulas(count, other):
    a, b = drawn(count), drawn(other, seed=1, scale=1.5, shift=0.5)
    assert frechet_distance(a, b) == pytest.approx(by_the_formula(a, b), rel=1e-5)


def test_equal_sets_are_at_no_distance_and_shifted_ones_at_the_shifts():
    a = drawn(30)
    assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 2) == pytest.approx(4 * 5, rel=1e-5)
    assert frechet_distance(a, a + 2) == pytest.approx(frechet_distance(a + 2, a))


def test_fewer_images_than_features_are_no_trouble():
    a, b = drawn(4, width=40), drawn(4, width=40, seed=1)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert np.isfinite(frechet_distance(a, b)) and frechet_distance(a, b) > 0


def test_what_has_no_distance_is_refused():
    with pytest.raises(UserError, match="1 generated images"):
        frechet_distance(drawn(3), drawn(1))
    broken = drawn(3)
    broken[1, 1] = np.nan
    with pytest.raises(UserError, match="real images is not a finite"):
        frechet_distance(broken, drawn(3))
