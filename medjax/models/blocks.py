"""Define residual blocks, and the levels of a U-Net.

A level has several residual blocks, then a change of resolution. In a level with
attention, each residual block is followed by a transformer, or by self-attention if the
network has no text. Names agree with diffusers.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from medjax.arrays import Array
from medjax.meshes import split_activations
from medjax.models.attention import SelfAttention2D, Transformer2D
from medjax.models.attention_forms import Form
from medjax.models.layers import GroupNorm, conv, dense, resize_nearest
from medjax.models.remat import Policy, rematerialized


class ResnetBlock(nn.Module):
    """Apply norm–SiLU–conv twice, add the time embedding between, and add a shortcut.

    Attributes:
        features: Number of output channels. If it differs from that of the input, the
            shortcut has a 1×1 convolution.
        norm_groups: Number of groups of both norms.
        epsilon: Number that both norms add to the variance.
        dtype: Dtype of the computation.

    Source: He et al., 2016 (residual); Ho et al., 2020, appendix B (time embedding).
    """

    features: int
    norm_groups: int = 32
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], temb: Float[Array, "b d"] | None = None
    ) -> Float[Array, "b h w f"]:
        """Apply the block. `temb` is None in autoencoders, which have no timestep."""

        def normed(name: str, y: Array) -> Array:
            norm = GroupNorm(self.norm_groups, self.epsilon, self.dtype, name=name)
            return nn.silu(norm(y))

        y = conv(self.features, name="conv1", dtype=self.dtype)(normed("norm1", x))
        if temb is not None:
            shift = dense(self.features, dtype=self.dtype, name="time_emb_proj")
            y = y + shift(nn.silu(temb))[:, None, None, :]
        y = conv(self.features, name="conv2", dtype=self.dtype)(normed("norm2", y))
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, name="conv_shortcut", dtype=self.dtype)(x)
        return split_activations(x + y)


class Downsample(nn.Module):
    """Halve the resolution by a strided convolution. Odd sizes round up."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Halve height and width."""
        return conv(x.shape[-1], stride=2, name="conv", dtype=self.dtype)(x)


class Upsample(nn.Module):
    """Enlarge by nearest neighbour, then convolve."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], height: int, width: int
    ) -> Float[Array, "b H W c"]:
        """Enlarge to `height` × `width`."""
        x = resize_nearest(x, height, width)
        return conv(x.shape[-1], name="conv", dtype=self.dtype)(x)


class Level(nn.Module):
    """Base of the levels of a U-Net: their settings, residual blocks and attention.

    Attributes:
        features: Number of channels of every block.
        layers: Number of residual blocks.
        heads: Number of attention heads. None means no attention.
        depth: Number of transformer blocks after each residual block.
        linear_projection: See `Transformer2D`.
        norm_groups: Number of groups of every norm.
        epsilon: Number that the norms of the residual blocks add to the variance.
        resample: Whether the resolution changes at the end of the level.
        remat: What each block keeps for the backward pass; see `models.remat`.
        attention: How attention is computed; see `attention_forms`.
        dtype: Dtype of the computation.
    """

    features: int
    layers: int
    heads: int | None
    depth: int = 1
    linear_projection: bool = False
    norm_groups: int = 32
    epsilon: float = 1e-5
    resample: bool = True
    remat: Policy = "none"
    dtype: Any = jnp.float32
    attention: Form = "auto"

    def resnet(self, i: int, x: Array, temb: Array) -> Array:
        """Apply residual block `i`."""
        block = rematerialized(ResnetBlock, self.remat)
        return block(
            self.features,
            self.norm_groups,
            self.epsilon,
            self.dtype,
            name=f"resnets_{i}",
        )(x, temb)

    def attend(self, i: int, x: Array, text_embeddings: Array | None) -> Array:
        """Apply attention `i` if the level has attention: to the text, or to itself."""
        if self.heads is None:
            return x
        if text_embeddings is None:
            return SelfAttention2D(
                self.heads,
                self.norm_groups,
                self.epsilon,
                self.dtype,
                self.attention,
                name=f"attentions_{i}",
            )(x)
        return Transformer2D(
            self.heads,
            self.depth,
            self.linear_projection,
            self.norm_groups,
            self.remat,
            self.dtype,
            self.attention,
            name=f"attentions_{i}",
        )(x, text_embeddings)


class DownLevel(Level):
    """A level of the encoder."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        temb: Float[Array, "b d"],
        text_embeddings: Float[Array, "b l e"] | None,
    ) -> tuple[Float[Array, "b ..."], list[Float[Array, "b ..."]]]:
        """Return the last feature map, and all feature maps for the decoder."""
        skips = []
        for i in range(self.layers):
            x = self.attend(i, self.resnet(i, x, temb), text_embeddings)
            skips.append(x)
        if self.resample:
            x = Downsample(self.dtype, name="downsamplers_0")(x)
            skips.append(x)
        return x, skips


class MidLevel(Level):
    """The lowest level: a residual block, then `layers` times attention and a block."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        temb: Float[Array, "b d"],
        text_embeddings: Float[Array, "b l e"] | None,
    ) -> Float[Array, "b h w c"]:
        """Apply the level, at the lowest resolution."""
        x = self.resnet(0, x, temb)
        for i in range(self.layers):
            x = self.attend(i, x, text_embeddings)
            x = self.resnet(i + 1, x, temb)
        return x


class UpLevel(Level):
    """A level of the decoder."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        skips: list[Float[Array, "b h w _"]],
        temb: Float[Array, "b d"],
        text_embeddings: Float[Array, "b l e"] | None,
        size: tuple[int, int] | None,
    ) -> Float[Array, "b H W f"]:
        """Return the feature map, enlarged to `size` unless that is None.

        `skips` are the encoder's feature maps in its order. The last one is used first.
        """
        for i, skip in enumerate(reversed(skips)):
            x = self.resnet(i, jnp.concatenate([x, skip], axis=-1), temb)
            x = self.attend(i, x, text_embeddings)
        if size is not None:
            x = Upsample(self.dtype, name="upsamplers_0")(x, *size)
        return x
