"""ControlNet: a trainable copy of the U-Net's encoder that reads a picture.

    y = F(x; Θ) + Z(F(x + Z(c; Θz1); Θc); Θz2)                                   (1)

Z are convolutions that start at zero, so that training starts from the base exactly.

Source: Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion Models",
2023, eq. 2 (1); parameter names and numbers are those of diffusers' `ControlNetModel`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Num

from medjax.arrays import Array, Params
from medjax.errors import UserError
from medjax.models.layers import conv
from medjax.models.unet_encoder import UNetEncoder

# The parts of a U-Net that a ControlNet begins as a copy of.
COPIED = ("conv_in", "time_embedding", "down_blocks_", "mid_block")


class ConditioningEmbedding(nn.Module):
    """Convolutions that bring a picture to the latents' size and the U-Net's width.

    Attributes:
        features: Channels of the result.
        widths: Channels of each level; each level after the first halves the size.
        dtype: Of the computation.
    """

    features: int
    widths: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b h w f"]:
        """Embed a picture in [0, 1]."""
        x = nn.silu(conv(self.widths[0], name="conv_in", dtype=self.dtype)(x))
        for i, (before, after) in enumerate(
            zip(self.widths[:-1], self.widths[1:], strict=True)
        ):
            same = conv(before, name=f"blocks_{2 * i}", dtype=self.dtype)
            half = conv(after, stride=2, name=f"blocks_{2 * i + 1}", dtype=self.dtype)
            x = nn.silu(half(nn.silu(same(x))))
        return conv(self.features, name="conv_out", zero=True, dtype=self.dtype)(x)


class ControlNet(UNetEncoder):
    """Residuals for a U-Net's encoder from a picture (eq. 1).

    Attributes: those of `UNetEncoder`; `conditioning_channels` of the picture;
    `conditioning_embedding_out_channels`, one level more than the autoencoder has
    halvings; `controlnet_conditioning_channel_order` "rgb" or "bgr".
    """

    conditioning_channels: int = 3
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    controlnet_conditioning_channel_order: str = "rgb"

    def check(self) -> None:
        """Raise UserError for fields that this network cannot compute."""
        super().check()
        order = self.controlnet_conditioning_channel_order
        if order not in ("rgb", "bgr"):
            raise UserError(
                f"controlnet_conditioning_channel_order is '{order}'; expected rgb, bgr"
            )

    @property
    def downsampling(self) -> int:
        """Pixels of the picture for one of the latents."""
        return 2 ** (len(self.conditioning_embedding_out_channels) - 1)

    def init_params(self, key: Array) -> Params:
        """Return freshly drawn parameters (float32), connections zero."""
        size = 2 ** (len(self.block_out_channels) - 1)
        side = size * self.downsampling
        return jax.jit(self.init)(
            key,
            jnp.zeros((1, size, size, self.in_channels)),
            jnp.zeros(1),
            jnp.zeros((1, 1, self.cross_attention_dim)),
            jnp.zeros((1, side, side, self.conditioning_channels)),
        )["params"]

    def init_from_unet(self, unet_params: Params, key: Array) -> Params:
        """Return parameters that are the U-Net's encoder, with connections at zero.

        Only the picture's embedding is drawn from `key`. At these parameters all
        residuals are exactly zero.
        """
        params = dict(self.init_params(key))
        for name, subtree in unet_params.items():
            if name.startswith(COPIED):
                params[name] = jax.tree.map(jnp.asarray, subtree)
        return params

    @nn.compact
    def __call__(
        self,
        noisy_latents: Float[Array, "b h w c"],
        timesteps: Num[Array, " b"],
        text_embeddings: Float[Array, "b l e"],
        conditioning_image: Float[Array, "b H W k"],
        conditioning_scale: float | Float[Array, "*b"] = 1.0,
    ) -> tuple[list[Float[Array, "b ..."]], Float[Array, "b ..."]]:
        """Return the residuals of the U-Net's feature maps, and of its middle.

        Args:
            noisy_latents: Those that the U-Net gets.
            timesteps: In [0, T).
            text_embeddings: The text encoder's last hidden states.
            conditioning_image: In [0, 1], `downsampling` times the latents' size.
            conditioning_scale: Multiplies every residual; a number or one each image.
        """
        if self.controlnet_conditioning_channel_order == "bgr":
            conditioning_image = conditioning_image[..., ::-1]
        temb = self.embed_time(timesteps)
        hint = ConditioningEmbedding(
            self.block_out_channels[0],
            self.conditioning_embedding_out_channels,
            self.dtype,
            name="controlnet_cond_embedding",
        )(conditioning_image)
        skips, middle = self.encode(noisy_latents, temb, text_embeddings, hint)

        scale = jnp.asarray(conditioning_scale, self.dtype)
        scale = scale.reshape(-1, 1, 1, 1)

        def connect(name: str, x: Array) -> Array:
            return scale * conv(
                x.shape[-1], 1, name=name, zero=True, dtype=self.dtype
            )(x)

        down = [connect(f"controlnet_down_blocks_{i}", x) for i, x in enumerate(skips)]
        return down, connect("controlnet_mid_block", middle)
