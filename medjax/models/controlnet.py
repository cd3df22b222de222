"""Define ControlNet, a trainable copy of the U-Net's encoder that reads a condition.

    y = F(x; Θ) + Z(F(x + Z(c; Θz1); Θc); Θz2)                                   (1)

c is the conditioning image. Z are convolutions that start at zero, so that training
starts exactly from the base model.

Source: Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion Models",
2023, eq. 2 (1). Parameter names and results agree with diffusers' `ControlNetModel`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from medjax import trees
from medjax.arrays import Array, Params
from medjax.errors import UserError
from medjax.models import contractions
from medjax.models.folded_conv import fold, folded_conv, unfolding_conv
from medjax.models.initial import draw_params, param_shapes
from medjax.models.layers import ConvWeights, conv
from medjax.models.unet_encoder import UNetEncoder

# The parts of a U-Net that initialise a ControlNet.
COPIED = ("conv_in", "time_embedding", "down_blocks_", "mid_block")
# The convolutions that start at zero: Z of eq. 1.
CONNECTIONS = (
    "controlnet_cond_embedding/conv_out/",
    "controlnet_down_blocks_",
    "controlnet_mid_block",
)
# Channels of the conditioning image's embedding, from full size to an eighth.
EMBEDDING_WIDTHS = (16, 32, 96, 256)


class ConditioningEmbedding(nn.Module):
    """Convolutions that embed a conditioning image at the size of the latents.

    Attributes:
        features: Number of output channels, equal to the first width of the U-Net.
        widths: Channels of each level. Each level after the first halves the size.
        dtype: Dtype of the computation.
    """

    features: int
    widths: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b h w f"]:
        """Embed a conditioning image in [0, 1]."""
        x = x.astype(self.dtype)
        if len(self.widths) == 1:
            x = nn.silu(conv(self.widths[0], name="conv_in", dtype=self.dtype)(x))
        else:
            x = self._first_level(x)
        for i in range(1, len(self.widths) - 1):
            before, after = self.widths[i : i + 2]
            same = conv(before, name=f"blocks_{2 * i}", dtype=self.dtype)
            half = conv(after, stride=2, name=f"blocks_{2 * i + 1}", dtype=self.dtype)
            x = nn.silu(half(nn.silu(same(x))))
        return conv(self.features, name="conv_out", dtype=self.dtype)(x)

    def _first_level(self, x: Float[Array, "b H W c"]) -> Float[Array, "b h w d"]:
        """Apply the convolutions of the full size, and halve it."""
        first, second = self.widths[:2]
        sizes = {
            "conv_in": (x.shape[-1], first),
            "blocks_0": (first, first),
            "blocks_1": (first, second),
        }
        weights = [
            ConvWeights(before, after, dtype=self.dtype, name=name)()
            for name, (before, after) in sizes.items()
        ]
        return jax.lax.platform_dependent(x, weights, tpu=_folded, default=_plain)


Weights = list[tuple[Array, Array]]


def _plain(x: Float[Array, "b H W c"], weights: Weights) -> Float[Array, "b h w d"]:
    """Apply two convolutions of stride 1 and one of stride 2, each with SiLU."""
    for (kernel, bias), stride in zip(weights, (1, 1, 2), strict=True):
        strides, padding = (stride, stride), [(1, 1), (1, 1)]
        y = contractions.conv_general_dilated(x, kernel, strides, padding)
        x = nn.silu(y + bias.reshape(1, 1, 1, -1))
    return x


def _folded(x: Float[Array, "b H W c"], weights: Weights) -> Float[Array, "b h w d"]:
    """Do the same on a folded image, which takes a quarter of the memory on a TPU."""
    one, two, three = weights
    x = nn.silu(folded_conv(fold(x), *one))
    x = nn.silu(folded_conv(x, *two))
    return nn.silu(unfolding_conv(x, *three))


def config_from_unet(
    unet_config: Mapping[str, Any], downsampling: int
) -> dict[str, Any]:
    """Return the configuration of a ControlNet for this U-Net.

    Args:
        unet_config: Configuration of the U-Net, as in its `config.json`.
        downsampling: Pixels of an image per latent, in height and in width: 1, 2, 4 or
            8.

    Raises:
        UserError: If `downsampling` has another value.
    """
    levels = int(downsampling).bit_length()
    if not 1 <= levels <= len(EMBEDDING_WIDTHS) or 2 ** (levels - 1) != downsampling:
        raise UserError(
            f"ControlNet does not support an autoencoder with {downsampling}× "
            "downsampling; expected 1, 2, 4 or 8"
        )
    own = ControlNet.__dataclass_fields__
    config = {key: value for key, value in unet_config.items() if key in own}
    return config | {
        "_class_name": "ControlNetModel",
        "conditioning_channels": 3,
        "conditioning_embedding_out_channels": EMBEDDING_WIDTHS[:levels],
        "controlnet_conditioning_channel_order": "rgb",
    }


# Fields that must be equal in a ControlNet and its U-Net.
SHARED = (
    "in_channels",
    "down_block_types",
    "block_out_channels",
    "layers_per_block",
    "cross_attention_dim",
)


class ControlNet(UNetEncoder):
    """Compute residuals for a U-Net's encoder from a conditioning image (eq. 1).

    Attributes: those of `UNetEncoder`; `conditioning_channels` of the conditioning
    image; `conditioning_embedding_out_channels`, one level more than the autoencoder
    has halvings; `controlnet_conditioning_channel_order`, "rgb" or "bgr".
    """

    conditioning_channels: int = 3
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    controlnet_conditioning_channel_order: str = "rgb"

    def check(self) -> None:
        """Raise UserError if this network does not support its fields."""
        super().check()
        order = self.controlnet_conditioning_channel_order
        if order not in ("rgb", "bgr"):
            raise UserError(
                f"controlnet_conditioning_channel_order='{order}': expected rgb or bgr"
            )

    def check_fits(self, unet: UNetEncoder, downsampling: int) -> None:
        """Raise UserError if this ControlNet was made for another base model.

        Args:
            unet: U-Net of the base model.
            downsampling: Downsampling of the base model's autoencoder.
        """
        pairs = {name: (getattr(self, name), getattr(unet, name)) for name in SHARED}
        pairs["downsampling"] = (self.downsampling, downsampling)
        wrong = [f"{name} {a}, not {b}" for name, (a, b) in pairs.items() if a != b]
        if wrong:
            raise UserError(
                "config.model.controlnet was made for another base model than "
                f"config.model.pretrained: it has {'; '.join(wrong)}"
            )

    @property
    def downsampling(self) -> int:
        """Pixels of the conditioning image per latent, in height and in width."""
        return 2 ** (len(self.conditioning_embedding_out_channels) - 1)

    def param_shapes(self) -> Params:
        """Return the shapes of the parameters."""
        size = 2 ** (len(self.block_out_channels) - 1)
        side = size * self.downsampling
        return param_shapes(
            self,
            jnp.zeros((1, size, size, self.in_channels)),
            jnp.zeros(1),
            jnp.zeros((1, 1, self.cross_attention_dim)),
            jnp.zeros((1, side, side, self.conditioning_channels)),
        )

    def init_from_unet(self, unet_params: Params, key: Array) -> Params:
        """Return a copy of the parameters of the U-Net's encoder, and zero connections.

        Only the embedding of the conditioning image is random, from `key`. With these
        parameters, all residuals are exactly zero.
        """
        params = dict(self.init_params(key))
        for name in params:
            if name.startswith(COPIED):
                params[name] = jax.tree.map(np.asarray, unet_params[name])
        return params

    def init_params(self, key: Array) -> Params:
        """Return random initial parameters (float32), with connections at zero."""
        drawn = draw_params(self.param_shapes(), key)
        connections, rest = trees.split(
            drawn, lambda path: path.startswith(CONNECTIONS)
        )
        return trees.merge(rest, jax.tree.map(np.zeros_like, connections))

    @nn.compact
    def __call__(
        self,
        noisy_latents: Float[Array, "b h w c"],
        timesteps: Num[Array, " b"],
        text_embeddings: Float[Array, "b l e"],
        conditioning_image: Float[Array, "b H W k"],
        conditioning_scale: float | Float[Array, "*b"] = 1.0,
    ) -> tuple[list[Float[Array, "b ..."]], Float[Array, "b ..."]]:
        """Return the residuals for the U-Net's feature maps and for its middle.

        Args:
            noisy_latents: Input of the U-Net.
            timesteps: Timesteps in [0, T).
            text_embeddings: Last hidden states of the text encoder.
            conditioning_image: Images in [0, 1], `downsampling` times as large as the
                latents.
            conditioning_scale: Factor on every residual; one number, or one per image.
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
            return scale * conv(x.shape[-1], 1, name=name, dtype=self.dtype)(x)

        down = [connect(f"controlnet_down_blocks_{i}", x) for i, x in enumerate(skips)]
        return down, connect("controlnet_mid_block", middle)
