import numpy as np
import pytest

from medjax.data.phantoms.curves import closed_curve, grown, signed_area
from medjax.data.phantoms.layers import Layer, compose, coverage
from medjax.data.phantoms.poses import pose_in_field


def pixels(size: int):
    """Return the pose in which a cm is a pixel, from the image's corner."""
    return pose_in_field(size, size, 0.0, 1.0, (-0.5, -0.5))


def box(left, top, right, bottom):
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)


def blob(size: int, seed: int = 0):
    random = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, 9)[:-1]
    radius = size * (0.2 + 0.2 * random.random(8))
    knots = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return closed_curve(knots + size / 2)


def test_a_pixel_is_covered_by_the_share_of_its_square():
    inside = coverage(pixels(4), [box(0.25, 1.5, 2.5, 3)])
    expected = [[0, 0, 0, 0], [0.375, 0.5, 0.25, 0], [0.75, 1, 0.5, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(inside, expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_covered_shares_sum_to_the_area(seed):
    outline = blob(40, seed)
    total = coverage(pixels(40), [outline]).sum()
    assert total == pytest.approx(abs(signed_area(outline)), rel=1e-5)


def test_a_small_coverage_is_the_mean_of_a_large_one():
    outlines = [blob(40), blob(30, 1)]
    for outline in outlines:
        large, small = (
            coverage(pose_in_field(size, 40, 7.0, 0.9, (-0.5, -0.4)), [outline])
            for size in (128, 32)
        )
        means = large.reshape(32, 4, 32, 4).mean((1, 3))
        np.testing.assert_allclose(small, means, atol=1e-5)


def test_what_lies_outside_of_the_image_does_not_matter():
    outline = blob(40) - 13
    whole = coverage(pixels(60), [outline + 20])[20:40, 20:40]
    np.testing.assert_allclose(coverage(pixels(20), [outline]), whole, atol=1e-6)


def test_a_union_counts_once_whichever_way_outlines_turn():
    first, second = box(1, 1, 4, 4), box(2, 2, 6, 6)
    union = coverage(pixels(8), [first, second])
    assert union.sum() == pytest.approx(9 + 16 - 4)
    np.testing.assert_array_equal(union, coverage(pixels(8), [first[::-1], second]))


def test_later_layers_cover_earlier_ones_as_far_as_they_fill_the_slice():
    layers = [Layer([box(0, 0, 4, 4)], 0.8), Layer([box(0, 0, 2, 4)], 0.2, share=0.5)]
    image = compose(pixels(4), layers)
    np.testing.assert_allclose(image[:, :2], 0.5, atol=1e-6)
    np.testing.assert_allclose(image[:, 2:], 0.8, atol=1e-6)


def test_layers_in_an_outline_are_seen_there_only():
    inner = [Layer([box(0, 0, 8, 8)], 0.3), Layer([box(0, 0, 8, 3)], 0.9)]
    image = compose(pixels(8), [Layer([box(2, 2, 6, 6)], inner)])
    assert image[2:3, 2:6] == pytest.approx(0.9)
    assert image[3:6, 2:6] == pytest.approx(0.3)
    assert image.sum() == pytest.approx(4 * 0.9 + 12 * 0.3, rel=1e-5)


def test_growing_moves_an_outline_to_its_outside():
    square = closed_curve(box(0, 0, 4, 4))
    for outline in (square, square[::-1]):
        area = abs(signed_area(outline))
        assert abs(signed_area(grown(outline, 0.1))) > area + 1
        assert abs(signed_area(grown(outline, -0.1))) < area - 1
