"""What loading gives: networks with their weights, and a whole Stable Diffusion."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from medjax.arrays import Params
from medjax.diffusion.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Network:
    """A module and its weights.

    Attributes:
        module: The flax.linen module, computing in the dtype that was asked for.
        params: Its weights: NumPy arrays, which jax takes as they are.
        config: Content of `config.json`, kept whole and written back when saving.
    """

    module: Any
    params: Params
    config: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class StableDiffusion:
    """The parts of a Stable Diffusion.

    Attributes:
        unet: With a `UNet2DCondition`.
        vae: With an `AutoencoderKL`.
        text_encoder: With a `CLIPText`.
        tokenizer: A `transformers` CLIP tokenizer.
        schedule: The noise that the U-Net was trained on.
        controlnet: With a `ControlNet` that steers the U-Net, where there is one.
    """

    unet: Network
    vae: Network
    text_encoder: Network
    tokenizer: Any
    schedule: Schedule
    controlnet: Network | None = None
