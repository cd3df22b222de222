"""Layers that all networks share: dense, convolution, norm, time embedding, resizing.

Everything is NHWC. Statistics of norms are computed in float32 whatever `dtype` is.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Num

from medjax.arrays import Array
from medjax.models import contractions


def conv(
    features: int,
    kernel: int = 3,
    *,
    name: str,
    stride: int = 1,
    dtype: Any = jnp.float32,
) -> nn.Conv:
    """Return a square convolution, padded by ``kernel // 2`` all round as in torch.

    Args:
        features: Output channels.
        kernel: Side of the kernel.
        name: The last part of its parameters' path.
        stride: Step in both axes.
        dtype: Of the computation.
    """
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=kernel // 2,
        dtype=dtype,
        conv_general_dilated=contractions.conv_general_dilated,
        name=name,
    )


def dense(
    features: int, *, name: str, use_bias: bool = True, dtype: Any = jnp.float32
) -> nn.Dense:
    """Return a dense layer over the last axis.

    Args:
        features: Output channels.
        name: The last part of its parameters' path.
        use_bias: Whether something is added.
        dtype: Of the computation.
    """
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        dot_general=contractions.dot_general,
        name=name,
    )


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
