"""Define the layers of all networks: dense, convolution, norm, time embedding, resize.

All layouts are NHWC. Norms compute their statistics in float32 for every `dtype`.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from medjax.arrays import Array
from medjax.meshes import gather_kernel
from medjax.models import contractions, lora


def parameter(
    module: nn.Module, name: str, shape: tuple[int, ...]
) -> Array | np.ndarray:
    """Return a parameter of the module that is being called.

    `nn.Module.param` traces the initializer at each call to compare shapes, which takes
    a third of the time of tracing a network. This function returns a parameter of the
    right shape directly. The initializer only gives shapes: `initial` has the values.

    Args:
        module: The module.
        name: Last part of the parameter's path.
        shape: Expected shape.

    Raises:
        flax.errors.ScopeParamShapeError: If the parameter has another shape.
    """
    value: Array | np.ndarray | None = module.get_variable("params", name)
    if value is not None and value.shape == shape:
        return value
    return module.param(name, nn.initializers.zeros_init(), shape)


class Dense(nn.Module):
    """`flax.linen.Dense` with an optional adapter; see `lora`.

    Attributes:
        features: Number of output channels.
        use_bias: Whether to add a bias.
        dtype: Dtype of the computation.
        reorder: Reorders the last axis of kernel, bias and adapter, and so the output
            channels. None keeps their order.
    """

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32
    reorder: Callable[[Array], Array] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """Apply the layer over the last axis."""

        def product(x: Array, kernel: Array) -> Array:
            return contractions.dot_general(x, kernel, None)

        return _weighted(self, x, x.shape[-1:], product, self.reorder or _unchanged)


class Conv(nn.Module):
    """`flax.linen.Conv` with a square kernel and an optional adapter; see `lora`.

    Attributes:
        features: Number of output channels.
        kernel_size: Height and width of the kernel. The padding is half of it on all
            sides.
        stride: Stride in both axes.
        use_bias: Whether to add a bias.
        dtype: Dtype of the computation.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Apply the convolution."""
        size, strides = (self.kernel_size, self.kernel_size), (self.stride, self.stride)
        padding = [(side // 2, side // 2) for side in size]

        def product(x: Array, kernel: Array) -> Array:
            return contractions.conv_general_dilated(x, kernel, strides, padding)

        return _weighted(self, x, (*size, x.shape[-1]), product)


class ConvWeights(nn.Module):
    """The weights of a `Conv` with a bias, for a caller that applies them itself.

    Attributes:
        channels: Number of input channels.
        features: Number of output channels.
        dtype: Dtype of the weights that it returns.
    """

    channels: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "3 3 c d"], Float[Array, " d"]]:
        """Return the kernel and the bias."""
        kernel = parameter(self, "kernel", (3, 3, self.channels, self.features))
        bias = parameter(self, "bias", (self.features,))
        kernel = gather_kernel(jnp.asarray(kernel, self.dtype), str(self.name))
        return kernel, jnp.asarray(bias, self.dtype)


def _unchanged(x: Any) -> Any:
    return x


def _weighted(
    layer: Dense | Conv,
    x: Array,
    fan_in: tuple[int, ...],
    product: Callable[[Array, Array], Array],
    reorder: Callable[[Array], Array] = _unchanged,
) -> Array:
    """Return a layer's output: product with the kernel, plus bias, plus adapter."""
    kernel = parameter(layer, "kernel", (*fan_in, layer.features))
    bias = None
    if layer.use_bias:
        bias = parameter(layer, "bias", (layer.features,))
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=layer.dtype)
    y = product(x, gather_kernel(reorder(kernel), str(layer.name)))
    if bias is not None:
        y = y + reorder(bias).reshape((1,) * (y.ndim - 1) + (-1,))
    return lora.adapted(layer, x, y, product, reorder)


def conv(
    features: int,
    kernel: int = 3,
    *,
    name: str,
    stride: int = 1,
    dtype: Any = jnp.float32,
) -> Conv:
    """Return a square convolution with padding ``kernel // 2`` on all sides, as torch.

    Args:
        features: Number of output channels.
        kernel: Height and width of the kernel.
        name: Last part of the path of its parameters.
        stride: Stride in both axes.
        dtype: Dtype of the computation.
    """
    return Conv(features, kernel, stride, dtype=dtype, name=name)


def dense(
    features: int,
    *,
    name: str,
    use_bias: bool = True,
    dtype: Any = jnp.float32,
    reorder: Callable[[Array], Array] | None = None,
) -> Dense:
    """Return a dense layer over the last axis.

    Args:
        features: Number of output channels.
        name: Last part of the path of its parameters.
        use_bias: Whether to add a bias.
        dtype: Dtype of the computation.
        reorder: See `Dense`.
    """
    return Dense(features, use_bias, dtype, reorder, name=name)


class GroupNorm(nn.Module):
    """Normalise over (H, W, channels of a group), then apply scale and bias.

    Attributes:
        groups: Number of groups; a divisor of the number of channels.
        epsilon: Number to add to the variance.
        dtype: Dtype of the result.

    Source: Wu and He, "Group Normalization", 2018, eq. 1–6.
    """

    groups: int = 32
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *hw c"]) -> Float[Array, "b *hw c"]:
        """Normalise `x`. The shape stays the same."""
        channels = x.shape[-1]
        scale = parameter(self, "scale", (channels,))
        bias = parameter(self, "bias", (channels,))
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
    """Embed timesteps as sines and cosines of geometrically spaced frequencies.

    Args:
        timesteps: Timesteps in [0, T), not necessarily whole.
        channels: Number of channels of the embedding, even.
        flip_sin_to_cos: Whether the cosines come first.
        freq_shift: Number to subtract from the number of frequencies in their spacing.

    Source: Vaswani et al., "Attention is all you need", 2017, section 3.5. The last two
    options come from diffusers.
    """
    half = channels // 2
    exponent = -math.log(10000) * jnp.arange(half, dtype=jnp.float32)
    angles = timesteps.astype(jnp.float32)[:, None] * jnp.exp(
        exponent / (half - freq_shift)
    )
    parts = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts[::-1] if flip_sin_to_cos else parts, axis=-1)


class TimestepEmbedding(nn.Module):
    """Map sinusoids to the embedding of the blocks: two dense layers, SiLU between."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b d"]:
        """Return the embedding of `x`, the output of `timestep_embedding`."""
        x = dense(self.features, dtype=self.dtype, name="linear_1")(x)
        return dense(self.features, dtype=self.dtype, name="linear_2")(nn.silu(x))


def resize_nearest(
    x: Float[Array, "b h w c"], height: int, width: int
) -> Float[Array, "b H W c"]:
    """Enlarge by nearest neighbour. Output row i is input row ``floor(i·h/height)``.

    This is the rule of torch. `jax.image.resize` rounds at pixel centres, which gives
    another result if the factor is not a whole number.
    """
    for axis, size in ((1, height), (2, width)):
        factor, rest = divmod(size, x.shape[axis])
        if rest == 0:
            x = jnp.repeat(x, factor, axis=axis)
        else:
            x = jnp.take(x, jnp.arange(size) * x.shape[axis] // size, axis=axis)
    return x
