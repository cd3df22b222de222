"""The codebook: nearest entries, gradients that pass, averages that follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import trees
from medjax.models import codebook
from medjax.models.vq_vae import VQVAE, nearest_codes, straight_through


@pytest.mark.ci
def test_the_published_network_has_its_size():
    params = VQVAE().init_params(jax.random.key(0))
    assert trees.count(params) + 8192 * 4 == 21_994_479


@pytest.mark.ci
def test_images_shrink_as_it_says_and_come_back():
    vae = VQVAE(
        channels=1, block_out_channels=(8, 8, 16), latent_channels=3, norm_num_groups=4
    )
    params = vae.init_params(jax.random.key(0))
    images = jnp.zeros((2, 16, 24, 1))
    latents = vae.apply({"params": params}, images, method="encode")
    assert latents.shape == (2, 4, 6, 3)
    assert vae.downsampling == 4
    decoded = vae.apply({"params": params}, latents, method="decode")
    assert decoded.shape == images.shape


def test_the_nearest_entry_is_found():
    rng = np.random.default_rng(0)
    latents = jnp.asarray(rng.standard_normal((2, 3, 5, 4)), jnp.float32)
    codes = jnp.asarray(rng.standard_normal((17, 4)), jnp.float32)
    distances = np.linalg.norm(latents[..., None, :] - codes, axis=-1)
    np.testing.assert_array_equal(nearest_codes(latents, codes), distances.argmin(-1))


def test_gradients_pass_straight_through():
    codes = jnp.array([[0.0, 0.0], [1.0, 1.0]])
    latents = jnp.array([[0.2, 0.4], [0.9, 0.7]])
    weights = jnp.array([[2.0, -1.0], [0.5, 3.0]])

    def loss(z):
        chosen = codes[nearest_codes(z, codes)]
        return (weights * straight_through(z, chosen) ** 2).sum()

    value, gradient = jax.value_and_grad(loss)(latents)
    # Of the entries (0, 0) and (1, 1): values theirs, gradient 2 w q, as if z were q.
    assert value == pytest.approx(3.5)
    np.testing.assert_allclose(gradient, [[0, 0], [1.0, 6.0]])


def test_the_codebook_follows_by_the_numbers():
    codes = jnp.array([[0.0], [10.0]])
    book = {"codes": codes, "share": jnp.array([0.5, 0.5]), "sums": codes / 2}
    latents = jnp.array([[1.0], [3.0], [8.0], [2.0]])
    observed = codebook.observe(latents, nearest_codes(latents, codes), codes)
    np.testing.assert_allclose(observed["share"], [0.75, 0.25])
    np.testing.assert_allclose(observed["sums"], [[1.5], [2.0]])
    np.testing.assert_allclose(observed["error"], [(1 + 9 + 4 + 4) / 4])
    new = codebook.follow(book, observed, jax.random.key(0), 0.9, 0.0)
    # N = 0.9 · 0.5 + 0.1 · 0.75 = 0.525, M = 0.9 · 0 + 0.1 · 1.5 = 0.15;
    # N = 0.9 · 0.5 + 0.1 · 0.25 = 0.475, M = 0.9 · 5 + 0.1 · 2 = 4.7.
    np.testing.assert_allclose(new["share"], [0.525, 0.475], rtol=1e-6)
    np.testing.assert_allclose(new["codes"], [[0.15 / 0.525], [4.7 / 0.475]], rtol=1e-6)


def test_perplexity_by_the_numbers():
    said = codebook.usage(jnp.array([0.5, 0.25, 0.25, 0.0]))
    # Entropy 1.5 bits.
    assert float(said["perplexity"]) == pytest.approx(2**1.5, rel=1e-6)
    assert float(said["codebook_usage"]) == 0.75
    assert float(codebook.usage(jnp.full(8, 1 / 8))["perplexity"]) == pytest.approx(8)


@pytest.mark.parametrize("dead_below", [pytest.param(0.0, marks=pytest.mark.ci), 0.03])
def test_dead_entries_are_revived(dead_below):
    random = np.random.default_rng(0)
    latents = jnp.asarray(random.uniform(-1, 1, (4096, 2)), jnp.float32)
    book = codebook.init_codebook(jax.random.key(0), 64, 2)
    # All but one far from where the latents are.
    far = book["codes"].at[1:].add(100.0)
    book = {"codes": far, "share": book["share"], "sums": far * book["share"][:, None]}

    @jax.jit
    def update(book, key):
        numbers = nearest_codes(latents, book["codes"])
        observed = codebook.observe(latents, numbers, book["codes"])
        said = codebook.usage(observed["share"])
        return codebook.follow(book, observed, key, 0.9, dead_below), said

    for key in jax.random.split(jax.random.key(1), 200):
        book, said = update(book, key)
    assert np.isfinite(book["codes"]).all()
    if dead_below:
        assert said["perplexity"] > 40
    else:
        assert said["perplexity"] < 2


def test_halves_of_a_batch_average_to_the_whole():
    random = np.random.default_rng(0)
    latents = jnp.asarray(random.standard_normal((8, 4, 4, 3)), jnp.float32)
    codes = jnp.asarray(random.standard_normal((16, 3)), jnp.float32)
    whole, first, second = (
        codebook.observe(z, nearest_codes(z, codes), codes)
        for z in (latents, latents[:4], latents[4:])
    )
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mean, whole)
