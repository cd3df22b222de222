"""Edge F1 is 1 for the same edges, tolerant by a pixel, and told beside its chance."""

import math

import numpy as np
import pytest

from medjax.evaluation.adherence import (
    dilate,
    edge_adherence,
    pairwise_edge_f1,
)


def random_edges(count=3, size=24, density=0.1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((count, size, size + 3)) < density


def edge_f1(generated, condition, radius=1):
    """Return the F1 of each edge map against its own condition."""
    return np.diagonal(pairwise_edge_f1(generated, condition, radius))


def naive_f1(generated, condition, radius):
    """Return F1 pixel by pixel, as it is defined."""

    def found(edges, others):
        near = [
            others[
                max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1
            ]
            for y, x in zip(*np.nonzero(edges), strict=True)
        ]
        return np.mean([window.any() for window in near])

    precision, recall = found(generated, condition), found(condition, generated)
    return 2 * precision * recall / max(precision + recall, 1e-12)


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_it_is_what_its_definition_says(radius):
    a, b = random_edges(seed=0), random_edges(seed=1, density=0.03)
    expected = [naive_f1(x, y, radius) for x, y in zip(a, b, strict=True)]
    pairs = pairwise_edge_f1(a, b, radius)
    np.testing.assert_allclose(np.diagonal(pairs), expected, rtol=1e-6)
    assert pairs[0, 2] == pytest.approx(naive_f1(a[0], b[2], radius), rel=1e-6)


def test_the_same_edges_score_one_and_do_so_after_a_shift_within_tolerance():
    edges = random_edges(density=0.02)
    edges[:, [0, -1]] = edges[:, :, [0, -1]] = False
    np.testing.assert_array_equal(edge_f1(edges, edges, 0), 1)
    moved = np.roll(edges, (1, 1), axis=(1, 2))
    np.testing.assert_array_equal(edge_f1(moved, edges, 1), 1)
    assert (edge_f1(moved, edges, 0) < 0.5).all()


def test_it_is_symmetric_and_grows_with_the_tolerance():
    a, b = random_edges(seed=0), random_edges(seed=1)
    np.testing.assert_allclose(edge_f1(a, b), edge_f1(b, a), rtol=1e-6)
    scores = np.stack([edge_f1(a, b, radius) for radius in range(4)])
    assert (np.diff(scores, axis=0) >= 0).all()


def test_empty_maps_agree_with_each_other_only():
    none, some = np.zeros((1, 8, 8), bool), np.eye(8, dtype=bool)[None]
    assert edge_f1(none, none)[0] == 1
    assert edge_f1(none, some)[0] == 0
    assert edge_f1(some, none)[0] == 0
    np.testing.assert_array_equal(
        pairwise_edge_f1(np.concatenate([none, some]), none), [[1], [0]]
    )


def test_dilation_stays_in_the_image():
    corner = np.zeros((1, 4, 5), bool)
    corner[0, 0, 0] = True
    assert dilate(corner, 1).sum() == 4
    assert dilate(corner, 100).all()
    assert not dilate(corner, 1)[0, -1].any()
    np.testing.assert_array_equal(dilate(corner, 0), corner)


def threshold(image):
    return (image[..., 0] > 127).astype(np.uint8) * 255


def images_of(edges, channels=3):
    images = np.where(edges, 1.0, -1.0)[..., None].astype(np.float32)
    return np.repeat(images, channels, axis=-1)


@pytest.mark.parametrize("channels", [1, 3])
def test_adherence_is_one_for_images_that_are_their_conditions(channels):
    edges = random_edges(density=0.02)
    condition = edges[..., None].astype(np.float32).repeat(3, axis=-1)
    scores = edge_adherence(images_of(edges, channels), condition, threshold)
    assert scores["edge_f1"] == pytest.approx(1)
    assert scores["edge_f1_chance"] < 0.5


def test_images_that_ignore_their_conditions_score_at_chance():
    edges = random_edges(count=40, density=0.05, seed=3)
    condition = random_edges(count=40, density=0.05, seed=4)[..., None]
    scores = edge_adherence(images_of(edges), condition.astype(np.float32), threshold)
    assert scores["edge_f1"] == pytest.approx(scores["edge_f1_chance"], abs=0.03)


def test_padding_does_not_count():
    edges = random_edges(density=0.1)
    condition = edges.copy()
    mask = np.ones_like(edges)
    mask[:, :, :8] = condition[:, :, :8] = False
    given = (images_of(edges), condition[..., None].astype(np.float32), threshold)
    assert edge_adherence(*given, mask=mask)["edge_f1"] == pytest.approx(1)
    assert edge_adherence(*given)["edge_f1"] < 0.95


def test_a_single_image_has_no_chance_level():
    edges = random_edges(count=1)
    condition = edges[..., None].astype(np.float32)
    scores = edge_adherence(images_of(edges), condition, threshold)
    assert scores["edge_f1"] == pytest.approx(1)
    assert math.isnan(scores["edge_f1_chance"])


def test_each_image_can_have_its_own_edges():
    edges = random_edges(count=2, density=0.1)
    condition = edges.copy()
    condition[1] = False
    given = (images_of(edges), condition[..., None].astype(np.float32))
    nothing = np.zeros_like
    own = [threshold, lambda image: nothing(threshold(image))]
    assert edge_adherence(*given, own)["edge_f1"] == pytest.approx(1)
    assert edge_adherence(*given, threshold)["edge_f1"] < 0.6
