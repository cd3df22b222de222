"""Convolutions of folded images against those of plain images, with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.models import controlnet
from medjax.models.folded_conv import fold, folded_conv, unfolding_conv


def plain(x, kernel, bias, stride):
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=layout
    )
    return y + bias.reshape(1, 1, 1, -1)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_folded_convolution_equals_a_plain_one(stride):
    rng = np.random.default_rng(stride)
    x, kernel, bias = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((2, 6, 10, 3), (3, 3, 3, 5), (5,))
    )

    def folded(x, kernel, bias):
        convolve = folded_conv if stride == 1 else unfolding_conv
        return convolve(fold(x), kernel, bias)

    def expected(x, kernel, bias):
        y = plain(x, kernel, bias, stride)
        return fold(y) if stride == 1 else y

    wanted, pull = jax.vjp(expected, x, kernel, bias)
    found, pull_found = jax.vjp(folded, x, kernel, bias)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    gradient = jnp.asarray(rng.normal(size=wanted.shape), jnp.float32)
    for ours, theirs in zip(pull_found(gradient), pull(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_condition_is_embedded_alike():
    rng = np.random.default_rng(0)
    image, *weights = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in (
            *((1, 8, 8, 3), (3, 3, 3, 4), (4,), (3, 3, 4, 4), (4,)),
            *((3, 3, 4, 6), (6,)),
        )
    )
    pairs = list(zip(weights[::2], weights[1::2], strict=True))
    np.testing.assert_allclose(
        controlnet._folded(image, pairs), controlnet._plain(image, pairs), rtol=1e-4
    )


def test_a_folded_image_keeps_every_number():
    x = jnp.arange(4.0 * 6).reshape(1, 4, 6, 1)
    # The first folded pixel: rows 0 and 1 of columns 0 and 1.
    assert fold(x)[0, 0, 0].tolist() == [0, 1, 6, 7]
