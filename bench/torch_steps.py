"""Define the training steps of torch diffusers, whose networks a GPU compiles.

They are the same steps as those of `competitors` and `lora_competitors`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from bench.networks import (
    BETAS,
    CLIP_NORM,
    DECAY,
    EAGER,
    INPUTS,
    LEARNING_RATE,
    Settings,
    draw_batch,
    draw_controlnet,
    draw_unet,
)
from bench.workers import Step
from medjax import trees


def make_torch(settings: Settings) -> Step:
    """Return a training step of torch diffusers' modules with AdamW.

    In bfloat16 the step uses autocast, and the frozen weights are stored in bfloat16.
    Attention is torch's `scaled_dot_product_attention`, the default of diffusers. The
    optimiser is the fused one. On a GPU both networks are compiled, and channels come
    last; see `torch_device` and `compiled`.
    """
    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel

    device, dtype = torch_device(), getattr(torch, settings.dtype)
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**settings.unet_config)
        controlnet: Any = ControlNetModel(**settings.controlnet_config)
    load_torch(unet, draw_unet(settings))
    load_torch(controlnet, draw_controlnet(settings))
    unet = compiled(unet.requires_grad_(False).to(device, dtype), settings)
    controlnet = compiled(controlnet.train().to(device), settings)

    def predict(batch: Any) -> Any:
        inputs = [batch[k] for k in INPUTS]
        down, mid = controlnet(*inputs, batch["conditioning_image"], return_dict=False)
        return unet(
            *inputs,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample

    return torch_step(predict, controlnet.parameters(), settings)


def torch_device() -> Any:
    """Return torch's device: a GPU, set up for speed, or else the CPU.

    On a GPU, float32 matrix products may use TF32, as in jax, and cuDNN measures which
    of its convolutions is fastest.
    """
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda")


def compiled(module: Any, settings: Settings) -> Any:
    """Return a module, on a GPU with channels last and compiled.

    Args:
        module: Module on `torch_device`.
        settings: Their `torch_mode` can switch off the compilation.
    """
    import torch

    if not torch.cuda.is_available():
        return module
    return compile_torch(module.to(memory_format=torch.channels_last), settings)


def compile_torch(function: Any, settings: Settings) -> Any:
    """Return a module or function, on a GPU compiled as `settings.torch_mode` says."""
    import torch

    if settings.torch_mode == EAGER or not torch.cuda.is_available():
        return function
    return torch.compile(function, mode=settings.torch_mode, dynamic=False)


def torch_step(
    predict: Callable[[Any], Any], parameters: Iterable[Any], settings: Settings
) -> Step:
    """Return torch's training step, with the fused AdamW, and autocast in bfloat16.

    Args:
        predict: Returns the output of the U-Net for a batch.
        parameters: Trained weights.
        settings: Settings of the batch.
    """
    import torch

    parameters = list(parameters)
    device, dtype = parameters[0].device, getattr(torch, settings.dtype)
    optimizer = torch.optim.AdamW(
        parameters, LEARNING_RATE, BETAS, weight_decay=DECAY, fused=True
    )
    batch = {
        name: torch.from_numpy(channels_first(x)).to(device)
        for name, x in draw_batch(settings).items()
    }

    def step() -> float:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = predict(batch)
        loss = torch.nn.functional.mse_loss(output.float(), batch["noise"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    return step


def load_torch(module: Any, params: Any) -> None:
    """Load all weights of our tree into a torch module."""
    import torch

    from medjax.pretrained.names import to_torch, torch_names

    weights = {
        torch_names(path)[0]: torch.from_numpy(
            np.ascontiguousarray(to_torch(path, leaf))
        )
        for path, leaf in trees.flatten(params).items()
    }
    module.load_state_dict(weights, strict=True, assign=True)


def channels_first(x: np.ndarray) -> np.ndarray:
    """Return images in torch's layout, b c h w, and other arrays unchanged."""
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if x.ndim == 4 else x
