"""Define the half of Stable Diffusion's U-Net that a ControlNet copies."""

from collections.abc import Mapping
from typing import Any, TypeVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Num

from medjax.arrays import Array
from medjax.errors import UserError
from medjax.models.attention_forms import Form
from medjax.models.blocks import DownLevel, MidLevel
from medjax.models.configs import module_fields, per_level
from medjax.models.layers import TimestepEmbedding, conv, timestep_embedding
from medjax.models.remat import Policy

M = TypeVar("M", bound="UNetEncoder")

# Values of all SD1.x and SD2.x configurations. No other values are supported.
FIXED = {
    "act_fn": "silu",
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "downsample_padding": 1,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "dropout": 0.0,
    "encoder_hid_dim_type": None,
}
# The first key is a hint. The second matters only with a key that is refused. The third
# makes no difference, because attention scores are always float32.
IGNORED = ("sample_size", "addition_embed_type_num_heads", "upcast_attention")


class UNetEncoder(nn.Module):
    """Fields and encoder that `UNet2DCondition` and `ControlNet` have in common.

    Attributes have the names and meanings of diffusers' `UNet2DConditionModel`. As
    there, `attention_head_dim` is the *number* of heads: one number for all levels, or
    one per level. `remat` says what blocks keep for the backward pass (`models.remat`),
    and `attention` how attention is computed (`attention_forms`). `dtype` is the dtype
    of the computation.
    """

    in_channels: int = 4
    down_block_types: tuple[str, ...] = (
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    )
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: int | tuple[int, ...] | None = None
    cross_attention_dim: int = 768
    transformer_layers_per_block: int | tuple[int, ...] = 1
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    remat: Policy = "none"
    attention: Form = "auto"
    dtype: Any = jnp.float32

    @classmethod
    def from_config(cls: type[M], config: Mapping[str, Any], **overrides: Any) -> M:
        """Build from a diffusers `config.json`; `overrides` set other fields.

        Raises:
            UserError: If the network does not support the configuration.
        """
        fields = module_fields(
            cls.__name__, config, cls.__dataclass_fields__, fixed=FIXED, ignored=IGNORED
        )
        module = cls(**fields, **overrides)
        module.check()
        return module

    def check(self) -> None:
        """Raise UserError if widths do not fit together or a block is unknown."""
        levels = len(self.block_out_channels)
        for kind in per_level(self.down_block_types, levels):
            if kind not in ("CrossAttnDownBlock2D", "DownBlock2D"):
                raise UserError(
                    f"{type(self).__name__} does not support block '{kind}'"
                )
        for width, heads in zip(self.block_out_channels, self.heads(), strict=True):
            if width % self.norm_num_groups or width % heads:
                raise UserError(
                    f"{type(self).__name__}: {width} channels are not divisible by "
                    f"{self.norm_num_groups} groups and {heads} heads"
                )

    def heads(self) -> tuple[int, ...]:
        """Return the number of attention heads of each level."""
        # diffusers' files call the number of heads `attention_head_dim`.
        heads = self.num_attention_heads or self.attention_head_dim
        return per_level(heads, len(self.block_out_channels))

    def level(self, i: int) -> dict[str, Any]:
        """Return the fields of `Level` at level `i`. Level 0 is the finest."""
        depths = per_level(
            self.transformer_layers_per_block, len(self.block_out_channels)
        )
        return {
            "features": self.block_out_channels[i],
            "heads": self.heads()[i],
            "depth": depths[i],
            "linear_projection": self.use_linear_projection,
            "norm_groups": self.norm_num_groups,
            "epsilon": self.norm_eps,
            "remat": self.remat,
            "attention": self.attention,
            "dtype": self.dtype,
        }

    def embed_time(self, timesteps: Num[Array, " b"]) -> Float[Array, "b d"]:
        """Embed timesteps for the blocks."""
        width = self.block_out_channels[0]
        embedded = timestep_embedding(
            timesteps,
            width,
            flip_sin_to_cos=self.flip_sin_to_cos,
            freq_shift=self.freq_shift,
        )
        return TimestepEmbedding(4 * width, self.dtype, name="time_embedding")(embedded)

    def encode(
        self,
        noisy_latents: Float[Array, "b h w c"],
        temb: Float[Array, "b d"],
        text_embeddings: Float[Array, "b l e"],
        hint: Float[Array, "b h w f"] | None = None,
    ) -> tuple[list[Float[Array, "b ..."]], Float[Array, "b ..."]]:
        """Return the feature maps for the decoder, and that of the middle.

        `hint` is added after the first convolution. ControlNet's condition enters here.
        """
        x = conv(self.block_out_channels[0], name="conv_in", dtype=self.dtype)(
            noisy_latents
        )
        x = x if hint is None else x + hint
        skips = [x]
        last = len(self.block_out_channels) - 1
        for i, kind in enumerate(self.down_block_types):
            fields = self.level(i)
            if kind == "DownBlock2D":
                fields["heads"] = None
            x, maps = DownLevel(
                layers=self.layers_per_block,
                resample=i < last,
                name=f"down_blocks_{i}",
                **fields,
            )(x, temb, text_embeddings)
            skips.extend(maps)
        middle = MidLevel(layers=1, name="mid_block", **self.level(last))
        return skips, middle(x, temb, text_embeddings)
