"""Networks with their weights, and a whole Stable Diffusion."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from medjax.arrays import Params
from medjax.diffusion.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Network:
    """A module and its weights.

    Attributes:
        module: The flax.linen module, which computes in the requested dtype.
        params: The module's weights, as NumPy arrays that jax accepts.
        config: Complete content of ``config.json``, which saving writes back.
    """

    module: Any
    params: Params
    config: Mapping[str, Any]

    def scaled(self, deviation: float) -> "Network":
        """Return an autoencoder that scales latents of this deviation to one."""
        config = {**self.config, "scaling_factor": float(np.float32(1 / deviation))}
        module = type(self.module).from_config(config)
        return dataclasses.replace(self, module=module, config=config)


@dataclasses.dataclass(frozen=True)
class LowRank:
    """A LoRA change of a layer's kernel: α/r A B.

    Attributes:
        a: Matrix A, with the axes of a kernel.
        b: Matrix B.
        alpha: Scale α; the change is multiplied by α/r.
    """

    a: Float[np.ndarray, "... i r"]
    b: Float[np.ndarray, "r o"]
    alpha: float

    @property
    def rank(self) -> int:
        """Rank r of the change."""
        return self.b.shape[0]


@dataclasses.dataclass(frozen=True)
class Adapters:
    """Changes of a network that was trained with LoRA.

    Attributes:
        layers: Changes of kernels, by the path of their layer.
        rest: Paths of all other trained parameters.
    """

    layers: Mapping[str, LowRank]
    rest: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class StableDiffusion:
    """The parts of a Stable Diffusion.

    Attributes:
        unet: Network with a `UNet2DCondition`.
        vae: Network with an `AutoencoderKL`.
        text_encoder: Network with a `CLIPText`.
        tokenizer: CLIP tokenizer of `transformers`.
        schedule: Noise schedule that the U-Net was trained with.
        controlnet: Network with a `ControlNet` for the U-Net. None means no ControlNet.
        adapters: LoRA changes that the weights already include, by name of the network.
    """

    unet: Network
    vae: Network
    text_encoder: Network
    tokenizer: Any
    schedule: Schedule
    controlnet: Network | None = None
    adapters: Mapping[str, Adapters] = dataclasses.field(default_factory=dict)
