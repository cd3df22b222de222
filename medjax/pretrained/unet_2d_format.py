"""Write a diffusion model of pixels as a pipeline of diffusers.

The pipeline has a `UNet2DModel` and a scheduler. It can express neither classes nor an
autoencoder of ours, so models with these have another format.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medjax import storage
from medjax.errors import UserError
from medjax.models.unet_2d import UNet2D
from medjax.pretrained import layout
from medjax.pretrained.diffusers_format import DIFFUSERS_VERSION
from medjax.pretrained.modeling_format import CODE, TorchNetwork
from medjax.pretrained.safetensors_io import write_tensors
from medjax.pretrained.sources import read_json

UNET, UNET_CLASS = "unet", "UNet2DModel"
_SCHEDULER, _PIPELINE = "Scheduler", "Pipeline"


def pipeline_of(scheduler_class: str) -> str:
    """Return the name of the pipeline for a scheduler: DDIM's or DDPM's."""
    return scheduler_class.removesuffix(_SCHEDULER) + _PIPELINE


def save_image_pipeline(
    module: UNet2D,
    network: TorchNetwork,
    scheduler: Mapping[str, Any],
    image_size: int,
    folder: Path,
    dtype: np.dtype,
) -> None:
    """Write a pipeline; ``model_index.json`` is last.

    Args:
        module: The U-Net. It has no classes.
        network: Its weights.
        scheduler: Content of ``scheduler_config.json``, of DDIM or DDPM.
        image_size: Height and width of the images, in pixels.
        folder: An empty folder.
        dtype: Dtype of the stored weights.

    Raises:
        UserError: If `dtype` cannot hold the weights.
    """
    write_tensors(
        folder / UNET / "diffusion_pytorch_model.safetensors", network.tensors, dtype
    )
    stamp = {"_diffusers_version": DIFFUSERS_VERSION}
    config = {"_class_name": UNET_CLASS, **stamp, **unet_config(module, image_size)}
    storage.write_json(folder / UNET / layout.CONFIG, config, sort_keys=True)
    place = folder / layout.SCHEDULER / layout.SCHEDULER_CONFIG
    storage.write_json(place, {**stamp, **scheduler}, sort_keys=True)
    name = scheduler["_class_name"]
    index = {
        "_class_name": pipeline_of(name),
        **stamp,
        "scheduler": ["diffusers", name],
        UNET: ["diffusers", UNET_CLASS],
    }
    storage.write_json(folder / layout.MODEL_INDEX, index, sort_keys=True)


def check_captioned(folder: Path) -> None:
    """Check that a folder does not contain an export of a model without captions.

    Raises:
        UserError: If it does.
    """
    index = folder / layout.MODEL_INDEX
    unet = read_json(index).get(UNET) if index.is_file() else None
    if unet == ["diffusers", UNET_CLASS] or (folder / CODE).is_file():
        raise UserError(
            f"'{folder}' contains a model without captions. Expected a Stable "
            "Diffusion. To use this model, run the code in its README.md, or use "
            "medjax sample --workdir=RUN"
        )


def unet_config(module: UNet2D, image_size: int) -> dict[str, Any]:
    """Return the arguments of `UNet2DModel`."""
    levels = range(len(module.block_out_channels))
    attends = [level in module.attention_levels for level in levels]
    return {
        "sample_size": image_size,
        "in_channels": module.channels,
        "out_channels": module.channels,
        "block_out_channels": list(module.block_out_channels),
        "layers_per_block": module.layers_per_block,
        "down_block_types": [_block("Down", one) for one in attends],
        "up_block_types": [_block("Up", one) for one in reversed(attends)],
        "add_attention": any(attends),
        "attention_head_dim": module.attention_head_dim,
        "norm_num_groups": module.norm_num_groups,
        "norm_eps": 1e-5,
    }


def _block(direction: str, attends: bool) -> str:
    return f"{'Attn' if attends else ''}{direction}Block2D"
