"""The halves of a gated network stay together on each device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from medjax.meshes import AXES
from medjax.models.feed_forward import interleave_halves, split_halves


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("width", [16, 18])
def test_halves_come_back_and_each_part_has_some_of_both(tensor, width):
    x = jnp.arange(3 * width).reshape(3, width)
    with jax.sharding.use_abstract_mesh(AbstractMesh((1, 1, tensor), AXES)):
        mixed = interleave_halves(x)
        halves = split_halves(mixed)
    np.testing.assert_array_equal(halves, jnp.split(x, 2, axis=-1))
    half = width // 2
    if half % tensor == 0:
        for part in jnp.split(mixed, tensor, axis=-1):
            assert (part % width < half).sum() == (part % width >= half).sum()
