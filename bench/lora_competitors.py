"""Define the competitors that train adapters (LoRA): medjax, and diffusers with peft.

    L = mean (noise − U(z_t, t, text))²                                              (1)

Every projection of attention has an adapter of rank 16, and only adapters train, as in
diffusers' script `train_text_to_image_lora.py`. The rest is the same as in
`competitors`.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from bench.competitors import (
    COMPETITORS,
    Competitors,
    LatentsGiven,
    medjax_step,
)
from bench.networks import INPUTS, Settings, draw_unet
from bench.torch_steps import compiled, load_torch, torch_device, torch_step
from bench.workers import Step
from medjax import trees
from medjax.arrays import Params
from medjax.tasks.adapters import AdapterConfig, draw_adapters, with_adapters

RANK, ALPHA = 16, 32
ADAPTERS = AdapterConfig(rank=RANK, alpha=float(ALPHA))


def draw_lora(unet: Params) -> Params:
    """Return adapters with a random B, so that the loss depends on all of them."""
    adapters = draw_adapters("unet", unet, ADAPTERS, jax.random.key(4))
    random = np.random.default_rng(4)
    drawn = {
        path: random.normal(0, 0.02, leaf.shape).astype(np.float32)
        if path.endswith("lora_b")
        else leaf
        for path, leaf in trees.flatten(adapters).items()
    }
    return trees.unflatten(drawn)


def make_medjax(settings: Settings) -> Step:
    """Return medjax's training step, with its own loss, optimiser and mesh."""
    import jax.numpy as jnp

    from medjax.models.unet_2d_condition import UNet2DCondition

    dtype = jnp.dtype(settings.dtype)
    task = _Adapted(UNet2DCondition.from_config(settings.unet_config, dtype=dtype))
    unet = draw_unet(settings)
    return medjax_step(task, {"unet": draw_lora(unet)}, {"unet": unet}, settings)


@dataclasses.dataclass(frozen=True, eq=False)
class _Adapted(LatentsGiven):
    """The loss of eq. 1."""

    unet: Any

    def loss(self, params: Any, frozen: Any, batch: Any, keys: Any, train: bool) -> Any:
        from medjax.diffusion.objective import errors
        from medjax.models.apply import apply
        from medjax.tasks.interface import Outcome

        del keys, train
        nets = self.nets(params, frozen)
        inputs = [batch[k] for k in INPUTS]
        output = apply(self.unet, with_adapters(nets["unet"], ADAPTERS), *inputs)
        return Outcome(errors(output, batch["noise"]))


def make_torch(settings: Settings) -> Step:
    """Return a training step of torch diffusers' U-Net with peft's adapters.

    It is like `competitors.make_torch`. The adapters are float32 for every dtype of the
    frozen weights, as in diffusers' script.
    """
    import torch
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig

    device, dtype = torch_device(), getattr(torch, settings.dtype)
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**settings.unet_config)
    weights = draw_unet(settings)
    load_torch(unet, weights)
    unet.requires_grad_(False).to(device, dtype).train()
    unet.add_adapter(
        LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            target_modules=["to_q", "to_k", "to_v", "to_out.0"],
        )
    )
    _load_lora(unet, draw_lora(weights))
    trained = [p for p in unet.parameters() if p.requires_grad]
    unet = compiled(unet, settings)
    return torch_step(
        lambda batch: unet(*(batch[k] for k in INPUTS)).sample, trained, settings
    )


def _load_lora(unet: Any, adapters: Params) -> None:
    """Replace peft's adapters by ours, in float32."""
    import torch

    from medjax.pretrained.names import torch_names

    for path, leaf in trees.flatten(adapters).items():
        layer, _, which = path.rpartition("/")
        name = torch_names(f"{layer}/kernel")[0].removesuffix(".weight")
        part = {"lora_a": "lora_A", "lora_b": "lora_B"}[which]
        module = getattr(unet.get_submodule(name), part)["default"]
        weight = torch.from_numpy(np.ascontiguousarray(leaf.T))
        assert module.weight.shape == weight.shape
        module.weight = torch.nn.Parameter(weight.to(module.weight.device))


# Competitors by the trained part.
CONTESTS: dict[str, Competitors] = {
    "controlnet": COMPETITORS,
    "lora": {
        "medjax": (make_medjax, ()),
        "torch": (make_torch, ("torch", "diffusers", "peft")),
    },
}
