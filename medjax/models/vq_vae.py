"""Define VQ-VAE, an autoencoder whose latents are entries of a learned codebook.

    k(z) = argmin_j ‖z − e_j‖²                                                   (1)
    z_q = z + sg[e_k − z]                                                        (2)
    L = d(x, D(z_q)) + w ‖sg[z] − e_k‖² + β ‖z − sg[e_k]‖²                       (3)

where sg is the identity without a gradient. So by (2), the decoder's gradient passes
unchanged to the encoder.

Source: van den Oord et al., "Neural Discrete Representation Learning", 2017, eq. 1–3.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from medjax.arrays import Array, Params
from medjax.meshes import split_activations
from medjax.models.attention_forms import attend
from medjax.models.initial import draw_params, param_shapes
from medjax.models.layers import GroupNorm, conv, dense

EPSILON = 1e-6


class VQVAE(nn.Module):
    """Encode images to latents, and decode entries of a codebook.

    The parameters do not include the codebook. The caller stores the codebook and
    replaces latents by its entries.

    Attributes:
        channels: Number of channels of images, 1 or 3.
        block_out_channels: Channels of each level. Each level except the last halves
            the resolution.
        layers_per_block: Number of residual blocks of each level.
        latent_channels: Number of channels of latents and of codebook entries.
        mid_layers: Number of residual blocks in the middle, with self-attention between
            them.
        attention_heads: Number of heads of the self-attention.
        norm_num_groups: Number of groups of every norm.
        dtype: Dtype of the computation.
    """

    channels: int = 3
    block_out_channels: tuple[int, ...] = (64, 128, 256, 256)
    layers_per_block: int = 2
    latent_channels: int = 4
    mid_layers: int = 3
    attention_heads: int = 4
    norm_num_groups: int = 32
    dtype: Any = jnp.float32

    @property
    def downsampling(self) -> int:
        """Pixels of an image per latent, in height and in width."""
        return 2 ** (len(self.block_out_channels) - 1)

    def init_params(self, key: Array) -> Params:
        """Return random initial parameters (float32)."""
        side = 2 * self.downsampling
        images = jnp.zeros((1, side, side, self.channels))
        return draw_params(param_shapes(self, images), key)

    def setup(self) -> None:
        """Create the two halves."""
        shared = {
            "layers": self.layers_per_block,
            "mid_layers": self.mid_layers,
            "heads": self.attention_heads,
            "norm_groups": self.norm_num_groups,
            "dtype": self.dtype,
        }
        widths = self.block_out_channels
        self.encoder = _Encoder(self.latent_channels, widths, **shared)
        self.decoder = _Decoder(self.channels, widths[::-1], **shared)

    def encode(self, images: Float[Array, "b H W c"]) -> Float[Array, "b h w d"]:
        """Return latents before quantisation. `images` are in [-1, 1]."""
        return self.encoder(images).astype(jnp.float32)

    def decode(self, latents: Float[Array, "b h w d"]) -> Float[Array, "b H W c"]:
        """Return images, approximately in [-1, 1], of quantised latents."""
        return self.decoder(latents)

    def __call__(self, images: Float[Array, "b H W c"]) -> Float[Array, "b H W c"]:
        """Encode and decode images, without quantisation."""
        return self.decode(self.encode(images))


def nearest_codes(
    latents: Float[Array, "*n d"], codebook: Float[Array, "k d"]
) -> Int[Array, " *n"]:
    """Return the index of each latent's nearest entry (eq. 1)."""
    # ‖z‖² is the same for all entries.
    highest = jax.lax.Precision.HIGHEST
    products = jnp.matmul(latents, codebook.T, precision=highest)
    return jnp.argmin(jnp.square(codebook).sum(-1) - 2 * products, axis=-1)


def straight_through(
    latents: Float[Array, "*n d"], quantized: Float[Array, "*n d"]
) -> Float[Array, "*n d"]:
    """Return `quantized`, with the gradient of `latents` (eq. 2)."""
    return latents + jax.lax.stop_gradient(quantized - latents)


class _Block(nn.Module):
    """Apply norm–SiLU–conv twice, and always add a 1×1 convolution of the input."""

    features: int
    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = x
        for i in (1, 2):
            y = GroupNorm(self.norm_groups, EPSILON, self.dtype, name=f"norm{i}")(y)
            y = conv(self.features, name=f"conv{i}", dtype=self.dtype)(nn.silu(y))
        shortcut = conv(self.features, 1, name="conv_shortcut", dtype=self.dtype)
        return split_activations(y + shortcut(x))


class _SelfAttention(nn.Module):
    """Attention over all pixels, with a norm and a residual connection."""

    heads: int
    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        y = GroupNorm(self.norm_groups, EPSILON, self.dtype, name="group_norm")(x)
        y = y.reshape(batch, height * width, channels)
        packed = dense(3 * channels, dtype=self.dtype, name="to_qkv")(y)
        packed = packed.reshape(batch, height * width, 3, self.heads, -1)
        y = attend(*(packed[:, :, i] for i in range(3)))
        y = dense(channels, dtype=self.dtype, name="to_out_0")(
            y.reshape(batch, height * width, channels)
        )
        return split_activations(x + y.reshape(x.shape))


class _Half(nn.Module):
    """Base of encoder and decoder."""

    features: int
    widths: tuple[int, ...]
    layers: int
    mid_layers: int
    heads: int
    norm_groups: int
    dtype: Any

    def blocks(self, x: Array, features: int, count: int, name: str) -> Array:
        """Apply residual blocks."""
        for i in range(count):
            block = _Block(features, self.norm_groups, self.dtype, name=f"{name}_{i}")
            x = block(x)
        return x

    def middle(self, x: Array) -> Array:
        """Apply residual blocks with self-attention between them."""
        for i in range(self.mid_layers):
            x = self.blocks(x, x.shape[-1], 1, f"mid_block_{i}")
            if i < self.mid_layers - 1:
                x = _SelfAttention(
                    self.heads, self.norm_groups, self.dtype, name=f"mid_attention_{i}"
                )(x)
        return x

    def out(self, x: Array) -> Array:
        """Apply a norm, SiLU, and a convolution to the output channels."""
        x = GroupNorm(self.norm_groups, EPSILON, self.dtype, name="conv_norm_out")(x)
        return conv(self.features, name="conv_out", dtype=self.dtype)(nn.silu(x))


class _Encoder(_Half):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = conv(self.widths[0], name="conv_in", dtype=self.dtype)(x)
        for i, width in enumerate(self.widths[1:]):
            x = self.blocks(x, width, self.layers, f"down_{i}_block")
            x = nn.Conv(
                width,
                (4, 4),
                strides=(2, 2),
                padding=1,
                dtype=self.dtype,
                name=f"down_{i}_conv",
            )(x)
        x = self.out(self.middle(x))
        return conv(self.features, 1, name="quant_conv", dtype=self.dtype)(x)


class _Decoder(_Half):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = conv(x.shape[-1], 1, name="post_quant_conv", dtype=self.dtype)(x)
        x = conv(self.widths[0], name="conv_in", dtype=self.dtype)(x)
        x = self.middle(x)
        for i, width in enumerate(self.widths[1:]):
            x = nn.ConvTranspose(
                x.shape[-1],
                (4, 4),
                strides=(2, 2),
                padding="SAME",
                dtype=self.dtype,
                name=f"up_{i}_conv",
            )(x)
            x = self.blocks(x, width, self.layers, f"up_{i}_block")
        return self.out(x)
