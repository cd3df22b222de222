"""First parameters: their shapes are those of Flax's own, and are traced once."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from medjax.models.initial import param_shapes

traced = []


class Layers(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, other=None, *, bias=True):
        traced.append((self.features, bias))
        return nn.Dense(self.features, use_bias=bias)(nn.LayerNorm()(x))


def test_shapes_are_flax_own():
    x = jnp.zeros((2, 3))
    for bias in (True, False):
        expected = Layers(4).init(jax.random.key(1), x, None, bias=bias)["params"]
        got = param_shapes(Layers(4), x, None, bias=bias)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), got) == (
            jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), expected)
        )


def test_shapes_are_traced_once_and_each_caller_has_its_own_tree():
    first = param_shapes(Layers(5), jnp.zeros((1, 3)))
    traced.clear()
    second = param_shapes(Layers(5), jnp.ones((1, 3)))
    assert traced == []
    assert second == first
    second["Dense_0"].clear()
    assert param_shapes(Layers(5), jnp.zeros((1, 3))) == first
    assert param_shapes(Layers(5), jnp.zeros((1, 6))) != first
    assert param_shapes(Layers(6), jnp.zeros((1, 3))) != first
