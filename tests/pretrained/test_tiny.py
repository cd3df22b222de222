"""The embedded default: small, the same every time, with an autoencoder that works."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import trees
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.pretrained.tiny import tiny_stable_diffusion
from tests.pretrained.small import assert_same


@pytest.fixture(scope="module")
def sd():
    return tiny_stable_diffusion()


def radiographs(size=64, seed=0):
    """Return gray images with the spectrum of radiographs: amplitude 1/f^1.5."""
    f = np.fft.fftfreq(size)
    frequency = np.maximum(np.hypot(f[:, None], f), 1 / size)
    white = np.random.default_rng(seed).standard_normal((4, size, size))
    image = np.fft.ifft2(np.fft.fft2(white) * frequency**-1.5).real
    image /= np.abs(image).max(axis=(1, 2), keepdims=True)
    return jnp.asarray(np.repeat(image[..., None], 3, axis=-1), jnp.float32)


def psnr(decoded, images):
    return 10 * np.log10(4 / np.square(np.asarray(decoded - images)).mean())


@pytest.mark.parametrize(
    "dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.ci)]
)
def test_the_autoencoder_gives_back_gray_images(sd, dtype):
    vae = AutoencoderKL.from_config(sd.vae.config, dtype=dtype)
    params = {"params": trees.cast(sd.vae.params, dtype)}
    images = radiographs()
    apply = jax.jit(vae.apply, static_argnames="method")
    mean, logvar = apply(params, images, method="encode")
    decoded = apply(params, mean, method="decode").astype(jnp.float32)
    assert psnr(decoded, images) > 33
    inside = (slice(None), slice(4, -4), slice(4, -4))
    assert psnr(decoded[inside], images[inside]) > 38
    assert np.exp(logvar / 2).max() < 0.01


def test_latents_are_what_the_module_says(sd):
    images = radiographs(16)
    x = np.asarray(images[:, :, 6, 0] + images[:, :, 7, 0]) / 2
    across = jnp.repeat(jnp.asarray(x)[:, :, None, None], 16, axis=2)
    rows = jnp.repeat(across, 3, axis=-1)
    apply = jax.jit(sd.vae.module.apply, static_argnames="method")
    latents, _ = apply({"params": sd.vae.params}, rows, method="encode")
    # Rows vary, columns do not: (1) and (2) along the first axis.
    before, here, after, second = x[:, 1:-4:2], x[:, 2:-3:2], x[:, 3:-2:2], x[:, 4:-1:2]
    m = 0.8 * (here + after) - 0.3 * (before + second)
    d = 0.4 * (after - here) - 0.15 * (second - before)
    column = np.asarray(latents[:, 1:-1, 4])
    np.testing.assert_allclose(column[..., 0], 2 * m, atol=2e-3)
    np.testing.assert_allclose(column[..., 2], 20 * d, atol=2e-3)
    np.testing.assert_allclose(column[..., [1, 3]], 0, atol=2e-3)


def test_latents_have_about_unit_variance(sd):
    params = {"params": sd.vae.params}
    apply = jax.jit(sd.vae.module.apply, static_argnames="method")
    latents, _ = apply(params, radiographs(), method="encode")
    deviation = np.asarray(latents).std(axis=(0, 1, 2))
    assert ((deviation > 0.3) & (deviation < 3)).all()


def test_the_seed_decides(sd):
    again, other = tiny_stable_diffusion(0), tiny_stable_diffusion(1)
    assert_same(again.unet.params, sd.unet.params)
    assert_same(again.text_encoder.params, sd.text_encoder.params)
    assert trees.fingerprint(other.unet.params) != trees.fingerprint(sd.unet.params)


def test_sizes_fit_together_and_are_small(sd):
    text_ids = jnp.array([sd.tokenizer("a chest x-ray")["input_ids"]])
    params = {"params": sd.text_encoder.params}
    text = jax.eval_shape(sd.text_encoder.module.apply, params, text_ids)
    latents = jnp.zeros((1, 8, 8, sd.vae.module.latent_channels))
    params, timesteps = {"params": sd.unet.params}, jnp.array([500])
    output = jax.eval_shape(sd.unet.module.apply, params, latents, timesteps, text)
    assert output.shape == latents.shape
    assert sd.schedule.num_timesteps == 1000
    assert trees.count(sd.unet.params) < 1_500_000
