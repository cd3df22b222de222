"""What loading gives: networks with their weights, and a whole Stable Diffusion."""

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
        module: The flax.linen module, computing in the dtype that was asked for.
        params: Its weights: NumPy arrays, which jax takes as they are.
        config: Content of `config.json`, kept whole and written back when saving.
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
    """A change of a layer's kernel: α/r A B, by LoRA.

    Attributes:
        a: A, with a kernel's axes.
        b: B.
        alpha: α.
    """

    a: Float[np.ndarray, "... i r"]
    b: Float[np.ndarray, "r o"]
    alpha: float

    @property
    def rank(self) -> int:
        """Its r."""
        return self.b.shape[0]


@dataclasses.dataclass(frozen=True)
class Adapters:
    """What LoRA changed of a network.

    Attributes:
        layers: Kernels, by the path of their layer.
        rest: Paths of what else changed, and is no kernel.
    """

    layers: Mapping[str, LowRank]
    rest: tuple[str, ...] = ()


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
        adapters: By network, what its weights have in them by LoRA.
    """

    unet: Network
    vae: Network
    text_encoder: Network
    tokenizer: Any
    schedule: Schedule
    controlnet: Network | None = None
    adapters: Mapping[str, Adapters] = dataclasses.field(default_factory=dict)
