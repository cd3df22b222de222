"""Define the U-Net of pixels or latents, unconditional or conditioned on a class.

Source: Ho et al., "Denoising Diffusion Probabilistic Models", 2020, appendix B;
Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, appendix
A (the class embedding is added to the time embedding). Parameter names and numbers are
those of diffusers' `UNet2DModel`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Int, Num

from medjax.arrays import Array, Params
from medjax.errors import UserError
from medjax.models.attention_forms import Form
from medjax.models.blocks import DownLevel, MidLevel, UpLevel
from medjax.models.initial import draw_params, param_shapes
from medjax.models.layers import (
    GroupNorm,
    TimestepEmbedding,
    conv,
    timestep_embedding,
)
from medjax.models.remat import Policy


class UNet2D(nn.Module):
    """Predict noise, velocity or clean images from noisy ones.

    Attributes:
        channels: Number of input and output channels.
        block_out_channels: Channels of each level.
        layers_per_block: Number of residual blocks of each level.
        attention_levels: Indices of the levels with self-attention; 0 is the finest.
            If any level has it, the middle has it, too. () means no attention.
        attention_head_dim: Number of channels of an attention head.
        norm_num_groups: Number of groups of every norm.
        num_classes: Number of classes, without the additional class "none". 0 means
            unconditional.
        remat: What each block keeps for the backward pass; see `models.remat`.
        attention: How attention is computed; see `attention_forms`.
        dtype: Dtype of the computation.
    """

    channels: int = 1
    block_out_channels: tuple[int, ...] = (64, 128, 256, 512)
    layers_per_block: int = 2
    attention_levels: tuple[int, ...] = ()
    attention_head_dim: int = 32
    norm_num_groups: int = 32
    num_classes: int = 0
    remat: Policy = "none"
    attention: Form = "auto"
    dtype: Any = jnp.float32

    def check(self) -> None:
        """Raise UserError if widths, groups, heads or levels do not fit together."""
        heads = self.attention_head_dim if self.attention_levels else 1
        for width in self.block_out_channels:
            if width % self.norm_num_groups or width % heads:
                raise UserError(
                    f"block_out_channels has {width}, which is not divisible by "
                    f"norm_num_groups={self.norm_num_groups} and "
                    f"attention_head_dim={self.attention_head_dim}"
                )
        for level in self.attention_levels:
            if not 0 <= level < len(self.block_out_channels):
                raise UserError(
                    f"attention_levels contains {level}; expected levels from 0 to "
                    f"{len(self.block_out_channels) - 1}"
                )

    @property
    def downsampling(self) -> int:
        """Factor by which the coarsest level is smaller than the input, per side."""
        return 2 ** (len(self.block_out_channels) - 1)

    def init_variables(self, key: Array) -> tuple[Params, Params]:
        """Return random initial parameters, and {}, as it has no running averages."""
        side = self.downsampling
        images = jnp.zeros((1, side, side, self.channels))
        labels = jnp.zeros(1, jnp.int32) if self.num_classes else None
        return draw_params(param_shapes(self, images, jnp.zeros(1), labels), key), {}

    @nn.compact
    def __call__(
        self,
        noisy_images: Float[Array, "b h w c"],
        timesteps: Num[Array, " b"],
        labels: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Return ε, v or z_0, depending on the schedule's `prediction_type`.

        Args:
            noisy_images: Noisy images. Height and width are multiples of
                `downsampling`.
            timesteps: Timesteps in [0, T).
            labels: Numbers of the classes. `num_classes` means no class.
        """
        temb = self._embed(timesteps, labels)
        x = conv(self.block_out_channels[0], name="conv_in", dtype=self.dtype)(
            noisy_images
        )
        skips = [x]
        last = len(self.block_out_channels) - 1
        for i in range(last + 1):
            x, maps = DownLevel(
                layers=self.layers_per_block,
                resample=i < last,
                name=f"down_blocks_{i}",
                **self._level(i),
            )(x, temb, None)
            skips.extend(maps)
        attends = self._heads(last) if self.attention_levels else None
        middle = self._level(last) | {"heads": attends}
        x = MidLevel(layers=1, name="mid_block", **middle)(x, temb, None)
        layers = self.layers_per_block + 1
        for i in range(last + 1):
            used, skips = skips[-layers:], skips[:-layers]
            _, height, width, _ = skips[-1].shape if i < last else x.shape
            size = (height, width) if i < last else None
            x = UpLevel(layers=layers, name=f"up_blocks_{i}", **self._level(last - i))(
                x, used, temb, None, size
            )
        norm = GroupNorm(self.norm_num_groups, 1e-5, self.dtype, name="conv_norm_out")
        return conv(self.channels, name="conv_out", dtype=self.dtype)(nn.silu(norm(x)))

    def _embed(self, timesteps: Array, labels: Array | None) -> Array:
        width = self.block_out_channels[0]
        temb = timestep_embedding(timesteps, width)
        temb = TimestepEmbedding(4 * width, self.dtype, name="time_embedding")(temb)
        if labels is None:
            return temb
        return temb + nn.Embed(
            self.num_classes + 1, 4 * width, dtype=self.dtype, name="class_embedding"
        )(labels)

    def _heads(self, i: int) -> int:
        return self.block_out_channels[i] // self.attention_head_dim

    def _level(self, i: int) -> dict[str, Any]:
        return {
            "features": self.block_out_channels[i],
            "heads": self._heads(i) if i in self.attention_levels else None,
            "norm_groups": self.norm_num_groups,
            "remat": self.remat,
            "attention": self.attention,
            "dtype": self.dtype,
        }
