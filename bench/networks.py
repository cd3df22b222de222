"""The networks that all competitors train, with drawn weights, and what they are fed.

Nothing is downloaded: a step takes the same time whatever the weights are. Everyone
gets the same numbers, drawn from fixed seeds by NumPy, so that everyone's loss is the
same too.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from medjax.arrays import Params
from medjax.errors import UserError
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.models.controlnet import ControlNet
from medjax.models.initial import draw_params
from medjax.models.unet_2d_condition import UNet2DCondition

# In diffusers' words, which are everyone's; `attention_head_dim` counts the heads.
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    # As small as diffusers' Flax classes go: they have 32 groups, always.
    "tiny": {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": 32,
    },
}
VAES: dict[str, dict[str, Any]] = {
    "sd15": {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
    },
    "tiny": {
        "block_out_channels": (32, 32, 32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "latent_channels": 4,
    },
}
# Pixels of an image for one latent, and CLIP's tokens.
DOWNSAMPLING = 8
DTYPES = ("float32", "bfloat16")
TOKENS = 77


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is trained, and how.

    Attributes:
        network: Key of `UNETS`.
        size: Height and width of the images, in pixels.
        batch: Examples of one update.
        dtype: Of activations and of the frozen U-Net: "float32" or "bfloat16".
        trains: "controlnet" or "lora": a ControlNet, or adapters of the U-Net.
    """

    network: str = "sd15"
    size: int = 256
    batch: int = 1
    dtype: str = "float32"
    trains: str = "controlnet"

    @property
    def unet_config(self) -> dict[str, Any]:
        """Of diffusers' `UNet2DConditionModel`."""
        return UNETS[self.network]

    @property
    def vae_config(self) -> dict[str, Any]:
        """Of diffusers' `AutoencoderKL`."""
        return VAES[self.network]

    @property
    def controlnet_config(self) -> dict[str, Any]:
        """Of diffusers' `ControlNetModel`."""
        config = dict(self.unet_config)
        del config["up_block_types"]
        return config


def draw_unet(settings: Settings) -> Params:
    """Return the frozen weights, float32."""
    module = UNet2DCondition.from_config(settings.unet_config)
    return draw_params(module.param_shapes(), jax.random.key(0))


def draw_controlnet(settings: Settings) -> Params:
    """Return the weights that train, float32.

    Those that a ControlNet begins with at zero are drawn too: the loss then depends on
    every weight, and gradients reach all of them from the first step on.
    """
    module = ControlNet.from_config(settings.controlnet_config)
    return draw_params(module.param_shapes(), jax.random.key(1))


def draw_vae(settings: Settings) -> Params:
    """Return the autoencoder's weights, float32."""
    module = AutoencoderKL.from_config(settings.vae_config)
    return draw_params(module.param_shapes(), jax.random.key(3))


def draw_batch(settings: Settings) -> dict[str, np.ndarray]:
    """Return what the networks are given, b h w c, float32 but for the timesteps."""
    random = np.random.default_rng(2)
    b, side = settings.batch, settings.size // DOWNSAMPLING
    latents = (b, side, side, 4)
    text = (b, TOKENS, settings.unet_config["cross_attention_dim"])
    return {
        "noisy_latents": random.standard_normal(latents, np.float32),
        "noise": random.standard_normal(latents, np.float32),
        "timesteps": random.integers(0, 1000, b).astype(np.int32),
        "text_embeddings": random.standard_normal(text, np.float32),
        "conditioning_image": random.random(
            (b, settings.size, settings.size, 3), np.float32
        ),
    }


def check_choices(network: str, size: int, dtypes: Iterable[str]) -> None:
    """Raise UserError unless a network takes images of this size in these dtypes."""
    step = DOWNSAMPLING * 2 ** (len(UNETS[network]["block_out_channels"]) - 1)
    if size < step or size % step:
        raise UserError(f"--size={size}: expected a multiple of {step}")
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise UserError(f"--dtype={dtype}: expected {' or '.join(DTYPES)}")
