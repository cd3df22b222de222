"""Likeness of images, against scikit-image's own, and without padding."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from medjax.evaluation.similarity import likeness

RNG = np.random.default_rng(0)
ORIGINAL = RNG.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
IMAGE = np.clip(ORIGINAL + RNG.normal(0, 0.3, ORIGINAL.shape), -1, 1).astype(np.float32)


def test_the_measures_are_scikit_images():
    measured = likeness(ORIGINAL, IMAGE)
    pairs = list(zip(ORIGINAL, IMAGE, strict=True))
    psnr = [peak_signal_noise_ratio(*pair, data_range=2.0) for pair in pairs]
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    ssim = [
        structural_similarity(*pair, data_range=2.0, channel_axis=-1, **window)
        for pair in pairs
    ]
    np.testing.assert_allclose(measured["psnr_db"], psnr, rtol=1e-6)
    np.testing.assert_allclose(measured["ssim"], ssim, rtol=1e-6)
    np.testing.assert_allclose(
        measured["mse"], ((ORIGINAL - IMAGE) ** 2).mean((1, 2, 3))
    )


def test_an_image_is_itself():
    measured = likeness(ORIGINAL, ORIGINAL)
    assert (measured["mse"] == 0).all() and np.isinf(measured["psnr_db"]).all()
    np.testing.assert_allclose(measured["ssim"], 1)


@pytest.mark.parametrize("name", ["mse", "psnr_db", "ssim"])
def test_padding_does_not_count(name):
    mask = np.zeros((2, 32, 32, 1), np.float32)
    mask[:, 8:24] = 1
    whole = likeness(ORIGINAL, IMAGE, np.ones_like(mask))[name]
    np.testing.assert_allclose(whole, likeness(ORIGINAL, IMAGE)[name], rtol=1e-6)
    # As far from content as the window of SSIM does not reach.
    far = IMAGE.copy()
    far[:, :3] = -1
    far[:, 29:] = 1
    assert (likeness(ORIGINAL, far)[name] != likeness(ORIGINAL, IMAGE)[name]).all()
    masked = [likeness(ORIGINAL, image, mask)[name] for image in (IMAGE, far)]
    np.testing.assert_array_equal(*masked)
