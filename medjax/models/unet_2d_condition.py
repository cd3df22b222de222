"""Define Stable Diffusion's U-Net, which predicts the noise in latents, given a text.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion
Models", 2022, section 3.3. Parameter names and results agree with diffusers'
`UNet2DConditionModel`.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Num

from medjax.arrays import Array, Params
from medjax.errors import UserError
from medjax.models.blocks import UpLevel
from medjax.models.configs import per_level
from medjax.models.initial import draw_params, param_shapes
from medjax.models.layers import GroupNorm, conv
from medjax.models.unet_encoder import UNetEncoder


class UNet2DCondition(UNetEncoder):
    """Predict noise, velocity or clean latents from noisy ones.

    Attributes: those of `UNetEncoder`, and diffusers' `out_channels` and
    `up_block_types`.
    """

    out_channels: int = 4
    up_block_types: tuple[str, ...] = (
        "UpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
    )

    def check(self) -> None:
        """Raise UserError if this network does not support its fields."""
        super().check()
        for kind in per_level(self.up_block_types, len(self.block_out_channels)):
            if kind not in ("CrossAttnUpBlock2D", "UpBlock2D"):
                raise UserError(f"UNet2DCondition does not support block '{kind}'")

    def param_shapes(self) -> Params:
        """Return the shapes of the parameters."""
        size = 2 ** (len(self.block_out_channels) - 1)
        latents = jnp.zeros((1, size, size, self.in_channels))
        text = jnp.zeros((1, 1, self.cross_attention_dim))
        return param_shapes(self, latents, jnp.zeros(1), text)

    def init_params(self, key: Array) -> Params:
        """Return random initial parameters (float32)."""
        return draw_params(self.param_shapes(), key)

    @nn.compact
    def __call__(
        self,
        noisy_latents: Float[Array, "b h w c"],
        timesteps: Num[Array, " b"],
        text_embeddings: Float[Array, "b l e"],
        down_residuals: list[Float[Array, "b ..."]] | None = None,
        mid_residual: Float[Array, "b ..."] | None = None,
    ) -> Float[Array, "b h w o"]:
        """Return ε, v or z_0, depending on the schedule's `prediction_type`.

        Args:
            noisy_latents: Noisy latents of any height and width.
            timesteps: Timesteps in [0, T).
            text_embeddings: Last hidden states of the text encoder.
            down_residuals: Residuals of a ControlNet for each feature map of the
                encoder. None means no ControlNet.
            mid_residual: Residual of a ControlNet for the middle. None means no
                ControlNet.
        """
        temb = self.embed_time(timesteps)
        skips, x = self.encode(noisy_latents, temb, text_embeddings)
        if down_residuals is not None:
            skips = [a + b for a, b in zip(skips, down_residuals, strict=True)]
        x = x if mid_residual is None else x + mid_residual

        last = len(self.block_out_channels) - 1
        layers = self.layers_per_block + 1
        for i, kind in enumerate(self.up_block_types):
            fields = self.level(last - i)
            if kind == "UpBlock2D":
                fields["heads"] = None
            used, skips = skips[-layers:], skips[:-layers]
            _, height, width, _ = skips[-1].shape if i < last else x.shape
            size = (height, width) if i < last else None
            x = UpLevel(layers=layers, name=f"up_blocks_{i}", **fields)(
                x, used, temb, text_embeddings, size
            )
        x = GroupNorm(
            self.norm_num_groups, self.norm_eps, self.dtype, name="conv_norm_out"
        )(x)
        return conv(self.out_channels, name="conv_out", dtype=self.dtype)(nn.silu(x))
