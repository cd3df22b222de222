"""Layers that all networks share: dense, convolution, norm, time embedding, resizing.

Everything is NHWC. Statistics of norms are computed in float32 whatever `dtype` is.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Num

from medjax.arrays import Array
from medjax.models import contractions, lora


class Dense(nn.Module):
    """`flax.linen.Dense`, and what an adapter of it adds; see `lora`.

    Attributes:
        features: Output channels.
        use_bias: Whether something is added.
        dtype: Of the computation.
    """

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """Multiply over the last axis."""

        def product(x: Array, kernel: Array) -> Array:
            return contractions.dot_general(x, kernel, None)

        return _weighted(self, x, x.shape[-1:], product)


class Conv(nn.Module):
    """A square `flax.linen.Conv`, and what an adapter of it adds; see `lora`.

    Attributes:
        features: Output channels.
        kernel_size: Side of the kernel; half of it is padded all round.
        stride: Step in both axes.
        use_bias: Whether something is added.
        dtype: Of the computation.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Convolve."""
        size, strides = (self.kernel_size, self.kernel_size), (self.stride, self.stride)
        padding = [(side // 2, side // 2) for side in size]

        def product(x: Array, kernel: Array) -> Array:
            return contractions.conv_general_dilated(x, kernel, strides, padding)

        return _weighted(self, x, (*size, x.shape[-1]), product)


def _weighted(
    layer: Dense | Conv,
    x: Array,
    fan_in: tuple[int, ...],
    product: Callable[[Array, Array], Array],
) -> Array:
    """Return the product with a layer's kernel, its bias and its adapter's added."""
    shape = (*fan_in, layer.features)
    kernel = layer.param("kernel", nn.initializers.lecun_normal(), shape)
    bias = None
    if layer.use_bias:
        bias = layer.param("bias", nn.initializers.zeros_init(), (layer.features,))
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=layer.dtype)
    y = product(x, kernel)
    if bias is not None:
        y = y + bias.reshape((1,) * (y.ndim - 1) + (-1,))
    return lora.adapted(layer, x, y, product)


def conv(
    features: int,
    kernel: int = 3,
    *,
    name: str,
    stride: int = 1,
    dtype: Any = jnp.float32,
) -> Conv:
    """Return a square convolution, padded by ``kernel // 2`` all round as in torch.

    Args:
        features: Output channels.
        kernel: Side of the kernel.
        name: The last part of its parameters' path.
        stride: Step in both axes.
        dtype: Of the computation.
    """
    return Conv(features, kernel, stride, dtype=dtype, name=name)


def dense(
    features: int, *, name: str, use_bias: bool = True, dtype: Any = jnp.float32
) -> Dense:
    """Return a dense layer over the last axis.

    Args:
        features: Output channels.
        name: The last part of its parameters' path.
        use_bias: Whether something is added.
        dtype: Of the computation.
    """
    return Dense(features, use_bias=use_bias, dtype=dtype, name=name)


class GroupNorm(nn.Module):
    """Group normalisation over (H, W, channels of the group), then scale and bias.

    Attributes:
        groups: Number of groups; divides the channels.
        epsilon: Added to the variance.
        dtype: Of the result.

    Source: Wu and He, "Group Normalization", 2018, eq. 1–6.
    """

    groups: int = 32
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *hw c"]) -> Float[Array, "b *hw c"]:
        """Normalise; the shape is kept."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        grouped = x.astype(jnp.float32).reshape(
            x.shape[0], -1, self.groups, channels // self.groups
        )
        mean = grouped.mean(axis=(1, 3), keepdims=True)
        variance = jnp.square(grouped - mean).mean(axis=(1, 3), keepdims=True)
        normed = (grouped - mean) * jax.lax.rsqrt(variance + self.epsilon)
        normed = normed.reshape(x.shape)
        return (normed * scale.astype(jnp.float32) + bias).astype(self.dtype)


def timestep_embedding(
    timesteps: Num[Array, " b"],
    channels: int,
    *,
    flip_sin_to_cos: bool = True,
    freq_shift: float = 0,
) -> Float[Array, "b c"]:
    """Embed timesteps in sines and cosines of geometrically spaced frequencies.

    Args:
        timesteps: In [0, T); fractions are allowed.
        channels: Even width of the embedding.
        flip_sin_to_cos: Whether the cosines come first.
        freq_shift: Taken from the number of frequencies when spacing them.

    Source: Vaswani et al., "Attention is all you need", 2017, section 3.5; the two
    options are diffusers'.
    """
    half = channels // 2
    exponent = -math.log(10000) * jnp.arange(half, dtype=jnp.float32)
    angles = timesteps.astype(jnp.float32)[:, None] * jnp.exp(
        exponent / (half - freq_shift)
    )
    parts = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts[::-1] if flip_sin_to_cos else parts, axis=-1)


class TimestepEmbedding(nn.Module):
    """Two dense layers with SiLU between, from sinusoids to the blocks' embedding."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b d"]:
        """Embed; `x` comes from `timestep_embedding`."""
        x = dense(self.features, dtype=self.dtype, name="linear_1")(x)
        return dense(self.features, dtype=self.dtype, name="linear_2")(nn.silu(x))


def resize_nearest(
    x: Float[Array, "b h w c"], height: int, width: int
) -> Float[Array, "b H W c"]:
    """Enlarge by nearest neighbour; output row i reads input row ``floor(i·h/height)``.

    This is torch's rule. `jax.image.resize` rounds at pixel centres instead, which
    differs wherever the factor is no whole number.
    """
    for axis, size in ((1, height), (2, width)):
        factor, rest = divmod(size, x.shape[axis])
        if rest == 0:
            x = jnp.repeat(x, factor, axis=axis)
        else:
            x = jnp.take(x, jnp.arange(size) * x.shape[axis] // size, axis=axis)
    return x
