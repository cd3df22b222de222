"""Attention over pixels and text: the transformer that sits inside the U-Net.

    Attention(Q, K, V) = softmax(Q Kᵀ / √d) V                                    (1)

Source: Vaswani et al., 2017. Scores and softmax are computed in float32.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from medjax.arrays import Array
from medjax.meshes import split_activations
from medjax.models.attention_forms import Form, attend
from medjax.models.feed_forward import FeedForward
from medjax.models.layers import GroupNorm, conv, dense
from medjax.models.remat import Policy, rematerialized


class Attention(nn.Module):
    """Multi-head attention from pixels to themselves or to text.

    Attributes:
        heads: Number of heads; divides the channels.
        dtype: Dtype of the projections.
        form: How attention is computed; see `attention_forms`.
    """

    heads: int
    dtype: Any = jnp.float32
    form: Form = "auto"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], context: Float[Array, "b l d"] | None = None
    ) -> Float[Array, "b n c"]:
        """Attend from `x` to `context`, or to `x` itself where that is None."""
        channels = x.shape[-1]
        context = x if context is None else context

        def project(name: str, source: Array) -> Array:
            y = dense(channels, use_bias=False, dtype=self.dtype, name=name)(source)
            heads = y.reshape(*y.shape[:2], self.heads, -1)
            return split_activations(heads, None, "tensor")

        attended = attend(
            project("to_q", x),
            project("to_k", context),
            project("to_v", context),
            form=self.form,
        )
        return dense(channels, dtype=self.dtype, name="to_out_0")(
            attended.reshape(x.shape)
        )


class SelfAttention2D(nn.Module):
    """Attention of a feature map's pixels to each other, normed and residual.

    Attributes:
        heads: Number of heads; divides the channels.
        norm_groups: Groups of the norm before.
        epsilon: Number that the norm adds to the variance.
        dtype: Dtype of the computation.
        form: How attention is computed; see `attention_forms`.
    """

    heads: int
    norm_groups: int = 32
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    form: Form = "auto"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Attend over all pixels."""
        batch, height, width, channels = x.shape

        def project(name: str, y: Array) -> Array:
            y = dense(channels, dtype=self.dtype, name=name)(y)
            heads = y.reshape(*y.shape[:2], self.heads, -1)
            return split_activations(heads, None, "tensor")

        y = GroupNorm(self.norm_groups, self.epsilon, self.dtype, name="group_norm")(x)
        y = y.reshape(batch, height * width, channels)
        query, key, value = (project(name, y) for name in ("to_q", "to_k", "to_v"))
        y = attend(query, key, value, form=self.form)
        y = dense(channels, dtype=self.dtype, name="to_out_0")(
            y.reshape(batch, height * width, channels)
        )
        return split_activations(x + y.reshape(x.shape))


class TransformerBlock(nn.Module):
    """Self-attention, attention to text, feed-forward; each normed and residual."""

    heads: int
    dtype: Any = jnp.float32
    form: Form = "auto"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], context: Float[Array, "b l d"]
    ) -> Float[Array, "b n c"]:
        """Transform pixels, given the text."""

        def norm(name: str, y: Array) -> Array:
            # One pass of E[x²] − E[x]² loses what torch's two passes keep.
            return nn.LayerNorm(
                epsilon=1e-5, dtype=self.dtype, use_fast_variance=False, name=name
            )(y)

        attention = Attention(self.heads, self.dtype, self.form, name="attn1")
        x = split_activations(x + attention(norm("norm1", x)))
        attention = Attention(self.heads, self.dtype, self.form, name="attn2")
        x = split_activations(x + attention(norm("norm2", x), context))
        return split_activations(
            x + FeedForward(self.dtype, name="ff")(norm("norm3", x))
        )


class Transformer2D(nn.Module):
    """Transformer blocks over the pixels of a feature map, with a residual around.

    Attributes:
        heads: Number of heads.
        depth: Number of transformer blocks.
        linear_projection: Dense layers in and out (SD2.x) rather than 1×1
            convolutions (SD1.x): the same numbers from kernels of other shapes.
        norm_groups: Groups of the norm before.
        remat: What each block keeps for its gradient; see `models.remat`.
        dtype: Dtype of the computation.
        form: How attention is computed; see `attention_forms`.
    """

    heads: int
    depth: int = 1
    linear_projection: bool = False
    norm_groups: int = 32
    remat: Policy = "none"
    dtype: Any = jnp.float32
    form: Form = "auto"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], context: Float[Array, "b l d"]
    ) -> Float[Array, "b h w c"]:
        """Transform a feature map, given the text."""
        batch, height, width, channels = x.shape

        def project(name: str, y: Array) -> Array:
            if self.linear_projection:
                return dense(channels, dtype=self.dtype, name=name)(y)
            return conv(channels, 1, name=name, dtype=self.dtype)(y)

        block = rematerialized(TransformerBlock, self.remat)
        y = GroupNorm(self.norm_groups, 1e-6, self.dtype, name="norm")(x)
        y = project("proj_in", y).reshape(batch, height * width, channels)
        y = split_activations(y)
        for i in range(self.depth):
            name = f"transformer_blocks_{i}"
            y = block(self.heads, self.dtype, self.form, name=name)(y, context)
        return x + project("proj_out", y.reshape(batch, height, width, channels))
