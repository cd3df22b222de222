"""The gated feed-forward network of a transformer block.

    GEGLU(x) = (x W + b) ⊙ GELU(x V + c), with the exact (erf) GELU               (1)

W and V are the halves of one kernel. If ``tensor`` split it as it is stored, one device
would have W and another V, and each would need the other's activations. So the columns
are reordered before the product, and each device has the same part of both.

Source: Shazeer, "GLU Variants Improve Transformer", 2020.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from medjax.arrays import Array
from medjax.models.layers import dense


class GEGLU(nn.Module):
    """A dense layer gated by GELU (eq. 1)."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n f"]:
        """Project to twice `features` and gate one half with the other."""
        # In this order, no device along `tensor` needs activations of another.
        x = dense(
            2 * self.features,
            dtype=self.dtype,
            name="proj",
            reorder=interleave_halves,
        )(x)
        # Elsewhere than on the CPU, reading x again is less traffic than keeping GELU.
        again = jax.checkpoint(_gated)
        return jax.lax.platform_dependent(x, cpu=_gated, default=again)


def _gated(x: Float[Array, "b n g"]) -> Float[Array, "b n f"]:
    """Gate the first half of the channels with the second (eq. 1)."""
    linear, gate = split_halves(x)
    return linear * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """GEGLU to four times the width, and back."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Transform each position by itself."""
        channels = x.shape[-1]
        x = GEGLU(4 * channels, dtype=self.dtype, name="net_0")(x)
        return dense(channels, dtype=self.dtype, name="net_2")(x)


def interleave_halves(x: Array) -> Array:
    """Reorder the last axis so that splitting it over ``tensor`` splits both halves.

    Device i of T then holds part i of the first half, and part i of the second.
    `split_halves` is the inverse. With one device along ``tensor``, nothing changes.
    """
    parts = _parts_of_halves(x)
    if parts == 1:
        return x
    return x.reshape(*x.shape[:-1], 2, parts, -1).swapaxes(-3, -2).reshape(x.shape)


def split_halves(x: Array) -> tuple[Array, Array]:
    """Return the two halves of the last axis that `interleave_halves` reordered."""
    parts = _parts_of_halves(x)
    if parts == 1:
        first, second = jnp.split(x, 2, axis=-1)
        return first, second
    pairs = x.reshape(*x.shape[:-1], parts, 2, -1)
    shape = (*x.shape[:-1], x.shape[-1] // 2)
    return pairs[..., 0, :].reshape(shape), pairs[..., 1, :].reshape(shape)


def _parts_of_halves(x: Array) -> int:
    """Return into how many parts ``tensor`` splits each half of the last axis."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else mesh.shape["tensor"]
    return parts if x.shape[-1] // 2 % parts == 0 else 1
