"""Define the networks that all competitors train, their random weights and inputs.

Nothing is downloaded, because the time of a step does not depend on the weights. All
competitors get the same numbers, from NumPy with fixed seeds, so that their losses are
equal.
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

# With the names of diffusers, where `attention_head_dim` is the number of heads.
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    # The smallest that diffusers' Flax classes support, because they have 32 groups.
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
# Pixels of an image per latent, in height and in width; number of CLIP tokens.
DOWNSAMPLING = 8
DTYPES = ("float32", "bfloat16")
TOKENS = 77
# AdamW of all competitors, and the largest norm of its gradient.
LEARNING_RATE, BETAS, DECAY, CLIP_NORM = 1e-5, (0.9, 0.999), 1e-2, 1.0
# Inputs of both networks, in a batch of `draw_batch`.
INPUTS = ("noisy_latents", "timesteps", "text_embeddings")
# How torch compiles on a GPU: modes of `torch.compile`, and no compilation.
EAGER = "eager"
TORCH_MODES = ("default", "reduce-overhead", "max-autotune-no-cudagraphs", EAGER)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Network, sizes and trained part of a measurement.

    Attributes:
        network: Key of `UNETS`.
        size: Height and width of the images, in pixels.
        batch: Number of examples of one step.
        dtype: Dtype of activations and of the frozen U-Net: "float32" or "bfloat16".
        trains: Trained part: "controlnet", or "lora" for adapters of the U-Net.
        torch_mode: One of `TORCH_MODES`, for torch on a GPU.
    """

    network: str = "sd15"
    size: int = 256
    batch: int = 1
    dtype: str = "float32"
    trains: str = "controlnet"
    torch_mode: str = "default"

    @property
    def unet_config(self) -> dict[str, Any]:
        """Configuration of diffusers' `UNet2DConditionModel`."""
        return UNETS[self.network]

    @property
    def vae_config(self) -> dict[str, Any]:
        """Configuration of diffusers' `AutoencoderKL`."""
        return VAES[self.network]

    @property
    def controlnet_config(self) -> dict[str, Any]:
        """Configuration of diffusers' `ControlNetModel`."""
        config = dict(self.unet_config)
        del config["up_block_types"]
        return config


def draw_unet(settings: Settings) -> Params:
    """Return random weights of the frozen U-Net, float32."""
    module = UNet2DCondition.from_config(settings.unet_config)
    return draw_params(module.param_shapes(), jax.random.key(0))


def draw_controlnet(settings: Settings) -> Params:
    """Return random weights of the trained ControlNet, float32.

    The connections are random, too, although a ControlNet normally starts them at zero.
    So the loss depends on every weight, and all get gradients from the first step.
    """
    module = ControlNet.from_config(settings.controlnet_config)
    return draw_params(module.param_shapes(), jax.random.key(1))


def draw_vae(settings: Settings) -> Params:
    """Return random weights of the autoencoder, float32."""
    module = AutoencoderKL.from_config(settings.vae_config)
    return draw_params(module.param_shapes(), jax.random.key(3))


def draw_batch(settings: Settings) -> dict[str, np.ndarray]:
    """Return the inputs of the networks, b h w c, float32 except for the timesteps."""
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
    """Raise UserError unless a network supports this image size and these dtypes."""
    step = DOWNSAMPLING * 2 ** (len(UNETS[network]["block_out_channels"]) - 1)
    if size < step or size % step:
        raise UserError(f"--size={size}: expected a multiple of {step}")
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise UserError(f"--dtype={dtype}: expected {' or '.join(DTYPES)}")
