"""Run an exported model of images in PyTorch, with arrays of NumPy.

All arrays have channels last. A model computes in float32, for any stored dtype.
"""

import dataclasses
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from medjax import texts
from medjax.pretrained import layout
from medjax.pretrained.flax_pipelines import quiet
from medjax.pretrained.modeling_format import CODE
from medjax.pretrained.parity import as_tensor

# Number, height, width and channels; sizes of several arrays may differ.
Array = Float[np.ndarray, "_ _ _ _"]


@dataclasses.dataclass(frozen=True)
class TorchImages:
    """The functions of a model that PyTorch loaded.

    Attributes:
        unet: Function from noisy images, timesteps and the numbers of classes (or None)
            to the U-Net's output. None for an autoencoder.
        sample: Function from a seed, a height and width in pixels, the number of a
            class (or None), steps and a guidance scale to the noise and one image in
            [-1, 1], by DDIM without fresh noise. None for an autoencoder.
        encode: Function from images to latents. None without an autoencoder.
        decode: Function from latents to images. None without an autoencoder.
    """

    unet: Callable[[Array, Int[np.ndarray, " b"], Any], Array] | None = None
    sample: Callable[[int, tuple[int, int], Any, int, float], tuple[Array, Array]] | (
        None
    ) = None
    encode: Callable[[Array], Array] | None = None
    decode: Callable[[Array], Array] | None = None


def load_modeling(folder: Path) -> TorchImages:
    """Load an export by its own ``modeling.py``."""
    import torch

    # An import would write the folder `__pycache__` into the export.
    module: Any = types.ModuleType("modeling")
    exec(compile(texts.read_text(folder / CODE), CODE, "exec"), vars(module))
    model = module.load(folder)
    diffusion = hasattr(model, "unet")
    autoencoder = model.autoencoder if diffusion else model

    def sample(
        seed: int,
        size: tuple[int, int],
        label: int | None,
        steps: int,
        guidance_scale: float,
    ) -> tuple[Array, Array]:
        noise = model.noise(1, *size, torch.Generator().manual_seed(seed))
        labels = None if label is None else [model.classes[label]]
        image = model.sample(noise, labels, steps, guidance_scale)
        return _from_torch(noise), _from_torch(image)

    return TorchImages(
        _run(model.unet) if diffusion else None,
        sample if diffusion else None,
        None if autoencoder is None else _run(autoencoder.encode),
        None if autoencoder is None else _run(autoencoder.decode),
    )


def load_image_pipeline(folder: Path) -> TorchImages:
    """Load a pipeline of diffusers with a `UNet2DModel`."""
    import torch
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    with quiet():
        unet: Any = UNet2DModel.from_pretrained(folder / "unet").float().eval()
        scheduler = DDIMScheduler.from_pretrained(folder / layout.SCHEDULER)

    def sample(
        seed: int,
        size: tuple[int, int],
        label: None,
        steps: int,
        guidance_scale: float,
    ) -> tuple[Array, Array]:
        del label, guidance_scale
        unet.register_to_config(sample_size=size)
        with quiet():
            pipeline: Any = DDIMPipeline(unet, scheduler)
            pipeline.set_progress_bar_config(disable=True)
            images = pipeline(
                generator=torch.Generator().manual_seed(seed),
                num_inference_steps=steps,
                output_type="np",
            ).images
        # The pipeline draws the same noise first.
        shape = (1, unet.config.in_channels, *size)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return _from_torch(noise), 2 * images - 1

    return TorchImages(_run(lambda z, t, labels: unet(z, t).sample), sample)


def _run(function: Callable[..., Any]) -> Callable[..., Array]:
    """Return a function of arrays, or None, that calls a function of tensors."""
    import torch

    def run(*arrays: Any) -> Array:
        with torch.no_grad():
            tensors = [None if x is None else as_tensor(x) for x in arrays]
            return _from_torch(function(*tensors))

    return run


def _from_torch(tensor: Any) -> Array:
    return tensor.numpy().transpose(0, 2, 3, 1)
