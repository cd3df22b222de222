"""Define Stable Diffusion's autoencoder, which gives mean and log-variance of latents.

    q(z | x) = N(mean(x), exp(logvar(x)))                                        (1)

Source: Rombach et al., 2022, section 3.1. Parameter names agree with diffusers'
`FlaxAutoencoderKL`. Results agree with its PyTorch class `AutoencoderKL`.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from medjax.arrays import Array, Params
from medjax.meshes import split_activations
from medjax.models.attention_forms import attend
from medjax.models.blocks import ResnetBlock, Upsample
from medjax.models.configs import module_fields
from medjax.models.initial import draw_params, param_shapes
from medjax.models.layers import GroupNorm, conv, dense

M = TypeVar("M", bound="AutoencoderKL")

EPSILON = 1e-6
FIXED = {
    "act_fn": "silu",
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
# Hints for other programs, and the block types, which have only one possible value.
IGNORED = ("sample_size", "force_upcast", "down_block_types", "up_block_types")


class AutoencoderKL(nn.Module):
    """Encode images to a diagonal Gaussian over latents (eq. 1), and decode latents.

    Attributes have the names of diffusers. The module does *not* scale latents.
    Diffusion uses ``scaling_factor * z``.
    """

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    dtype: Any = jnp.float32

    @classmethod
    def from_config(cls: type[M], config: Mapping[str, Any], **overrides: Any) -> M:
        """Build from a diffusers `config.json`; `overrides` may set `dtype`.

        Raises:
            UserError: If the network does not support the configuration.
        """
        defaults = {"block_out_channels": (64,), "layers_per_block": 1}
        fields = module_fields(
            cls.__name__, config, cls.__dataclass_fields__, fixed=FIXED, ignored=IGNORED
        )
        return cls(**{**defaults, **fields}, **overrides)

    @property
    def downsampling(self) -> int:
        """Pixels of an image per latent, in height and in width."""
        return 2 ** (len(self.block_out_channels) - 1)

    def param_shapes(self) -> Params:
        """Return the shapes of the parameters."""
        side = 2 * self.downsampling
        return param_shapes(self, jnp.zeros((1, side, side, self.in_channels)))

    def init_params(self, key: Array) -> Params:
        """Return random initial parameters (float32)."""
        return draw_params(self.param_shapes(), key)

    def setup(self) -> None:
        """Create the four parts."""
        self.encoder = _Encoder(
            2 * self.latent_channels,
            self.block_out_channels,
            self.layers_per_block,
            self.norm_num_groups,
            self.dtype,
        )
        self.decoder = _Decoder(
            self.out_channels,
            self.block_out_channels[::-1],
            self.layers_per_block + 1,
            self.norm_num_groups,
            self.dtype,
        )
        self.quant_conv = nn.Conv(2 * self.latent_channels, (1, 1), dtype=self.dtype)
        self.post_quant_conv = nn.Conv(self.latent_channels, (1, 1), dtype=self.dtype)

    def encode(
        self, images: Float[Array, "b H W c"]
    ) -> tuple[Float[Array, "b h w d"], Float[Array, "b h w d"]]:
        """Return mean and log-variance of unscaled latents. `images` are in [-1, 1]."""
        moments = self.quant_conv(self.encoder(images)).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, latents: Float[Array, "b h w d"]) -> Float[Array, "b H W c"]:
        """Return images, approximately in [-1, 1], of unscaled latents."""
        return self.decoder(self.post_quant_conv(latents))

    def __call__(self, images: Float[Array, "b H W c"]) -> Float[Array, "b H W c"]:
        """Encode images to the mean of their latents, and decode it."""
        return self.decode(self.encode(images)[0])


class _SelfAttention(nn.Module):
    """Attention with one head over all pixels, with norm and residual connection."""

    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape

        def project(name: str, y: Array) -> Array:
            return dense(channels, dtype=self.dtype, name=name)(y)

        y = GroupNorm(self.norm_groups, EPSILON, self.dtype, name="group_norm")(x)
        y = y.reshape(batch, height * width, channels)
        query, key, value = (
            project(name, y)[:, :, None, :] for name in ("query", "key", "value")
        )
        y = attend(query, key, value)[:, :, 0, :]
        return split_activations(x + project("proj_attn", y).reshape(x.shape))


class _MidBlock(nn.Module):
    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def resnet(i: int, y: Array) -> Array:
            return ResnetBlock(
                y.shape[-1],
                self.norm_groups,
                EPSILON,
                self.dtype,
                name=f"resnets_{i}",
            )(y)

        attention = _SelfAttention(self.norm_groups, self.dtype, name="attentions_0")
        return resnet(1, attention(resnet(0, x)))


class _Down(nn.Module):
    """Halve the resolution. Pad only below and to the right, as the original does."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        return nn.Conv(
            x.shape[-1],
            (3, 3),
            strides=(2, 2),
            padding="VALID",
            dtype=self.dtype,
            name="conv",
        )(x)


class _Level(nn.Module):
    """Residual blocks, then optionally half or twice the resolution."""

    features: int
    layers: int
    resample: str | None
    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.layers):
            x = ResnetBlock(
                self.features,
                self.norm_groups,
                EPSILON,
                self.dtype,
                name=f"resnets_{i}",
            )(x)
        if self.resample == "down":
            return _Down(self.dtype, name="downsamplers_0")(x)
        if self.resample == "up":
            height, width = 2 * x.shape[1], 2 * x.shape[2]
            return Upsample(self.dtype, name="upsamplers_0")(x, height, width)
        return x


class _Encoder(nn.Module):
    out_channels: int
    widths: tuple[int, ...]
    layers: int
    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = conv(self.widths[0], name="conv_in", dtype=self.dtype)(x)
        for i, width in enumerate(self.widths):
            x = _Level(
                width,
                self.layers,
                "down" if i < len(self.widths) - 1 else None,
                self.norm_groups,
                self.dtype,
                name=f"down_blocks_{i}",
            )(x)
        x = _MidBlock(self.norm_groups, self.dtype, name="mid_block")(x)
        return _out(self.out_channels, self.norm_groups, self.dtype, x)


class _Decoder(nn.Module):
    out_channels: int
    widths: tuple[int, ...]
    layers: int
    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = conv(self.widths[0], name="conv_in", dtype=self.dtype)(x)
        x = _MidBlock(self.norm_groups, self.dtype, name="mid_block")(x)
        for i, width in enumerate(self.widths):
            x = _Level(
                width,
                self.layers,
                "up" if i < len(self.widths) - 1 else None,
                self.norm_groups,
                self.dtype,
                name=f"up_blocks_{i}",
            )(x)
        return _out(self.out_channels, self.norm_groups, self.dtype, x)


def _out(features: int, norm_groups: int, dtype: Any, x: Array) -> Array:
    x = GroupNorm(norm_groups, EPSILON, dtype, name="conv_norm_out")(x)
    return conv(features, name="conv_out", dtype=dtype)(nn.silu(x))
