import numpy as np
import pytest

from medjax.data.edges import canny

SQUARE = np.zeros((32, 32, 3), np.uint8)
SQUARE[8:24, 8:24] = 180


@pytest.mark.parametrize("backend", ["opencv", "skimage"])
@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_edges_lie_on_the_outline_and_nowhere_else(backend, sigma):
    edges = canny(SQUARE, 100, 200, sigma=sigma, backend=backend)
    assert set(np.unique(edges)) == {0, 255}
    near = np.zeros((32, 32), bool)
    near[6:26, 6:26] = True
    near[10:22, 10:22] = False
    assert not edges[~near].any()
    assert (edges > 0).sum() >= 40


@pytest.mark.parametrize("backend", ["opencv", "skimage"])
def test_higher_thresholds_find_no_more(backend):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    counts = [
        (canny(noise, low, 2 * low, backend=backend) > 0).sum()
        for low in (25, 100, 200, 400)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_thresholds_may_come_in_any_order():
    np.testing.assert_array_equal(canny(SQUARE, 50, 200), canny(SQUARE, 200, 50))


def test_a_constant_image_has_no_edges():
    assert canny(np.full((16, 16, 3), 90, np.uint8), 1, 2).max() == 0
