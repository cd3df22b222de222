"""Infer a network's configuration from the weight shapes of its original checkpoint.

The original code fixes the values that shapes do not show. There are 32 normalisation
groups. U-Nets of SD1.x have 8 heads, and 1×1 convolutions around their transformers.
U-Nets of SD2.x have heads of 64 channels, and dense layers there. Both text encoders
have heads of 64 channels.

Names of tensors agree with the original code, without the network's prefix.

Source: CompVis/stable-diffusion's ``v1-inference.yaml``, Stability-AI/stablediffusion's
``v2-inference.yaml`` and lllyasviel/ControlNet's ``cldm_v15.yaml``.
"""

import re
from collections.abc import Mapping
from typing import Any

from medjax.errors import UserError, nearest

Shapes = Mapping[str, tuple[int, ...]]

_HEADS = 8
_HEAD_WIDTH = 64
# Latent size of the 512² training images of SD1.x, which pipelines sample by default.
_SAMPLE_SIZE = 64
_SCALING_FACTOR = 0.18215


def unet_config(shapes: Shapes, where: str) -> dict[str, Any]:
    """Return diffusers' configuration of a U-Net.

    Args:
        shapes: Shapes of its weights, by name.
        where: Location of the weights, for error messages.

    Raises:
        UserError: If weights are missing that show its size.
    """
    config = _encoder_config(shapes, where)
    kinds = [kind.replace("Down", "Up") for kind in config["down_block_types"]]
    return config | {
        "_class_name": "UNet2DConditionModel",
        "out_channels": _size(shapes, "out.2.weight", 0, where),
        "sample_size": _SAMPLE_SIZE,
        "up_block_types": kinds[::-1],
    }


def controlnet_config(shapes: Shapes, where: str) -> dict[str, Any]:
    """Return diffusers' configuration of a ControlNet; arguments as `unet_config`'s."""
    # Each level has two convolutions, each followed by an activation.
    levels = _count(shapes, r"input_hint_block\.(\d+)\.weight") // 2
    widths = [
        _size(shapes, f"input_hint_block.{4 * i}.weight", 0, where)
        for i in range(levels)
    ]
    hint = _size(shapes, "input_hint_block.0.weight", 1, where)
    return _encoder_config(shapes, where) | {
        "_class_name": "ControlNetModel",
        "conditioning_channels": hint,
        "conditioning_embedding_out_channels": widths,
        "controlnet_conditioning_channel_order": "rgb",
    }


def vae_config(
    shapes: Shapes, where: str, scaling_factor: float | None = None
) -> dict[str, Any]:
    """Return diffusers' configuration of an autoencoder; see `unet_config`.

    Args:
        shapes: Shapes of its weights, by name.
        where: Location of the weights, for error messages.
        scaling_factor: Scaling factor of the latents. None means Stable Diffusion's,
            0.18215.
    """
    levels = _count(shapes, r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight")
    widths = [
        _size(shapes, f"encoder.down.{i}.block.0.conv1.weight", 0, where)
        for i in range(max(levels, 1))
    ]
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": _size(shapes, "encoder.conv_in.weight", 1, where),
        "latent_channels": _size(shapes, "post_quant_conv.weight", 0, where),
        "layers_per_block": _count(
            shapes, r"encoder\.down\.0\.block\.(\d+)\.conv1\.weight"
        ),
        "norm_num_groups": 32,
        "out_channels": _size(shapes, "decoder.conv_out.weight", 0, where),
        "scaling_factor": scaling_factor or _SCALING_FACTOR,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def clip_config(shapes: Shapes, where: str) -> dict[str, Any]:
    """Return transformers' configuration of SD1.x's text encoder; see `unet_config`."""
    # transformers 5 omits the first word of the names.
    shapes = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
    table = "embeddings.token_embedding.weight"
    return {
        "hidden_act": "quick_gelu",
        "intermediate_size": _size(shapes, "encoder.layers.0.mlp.fc1.weight", 0, where),
        "max_position_embeddings": _size(
            shapes, "embeddings.position_embedding.weight", 0, where
        ),
        "num_hidden_layers": _count(
            shapes, r"encoder\.layers\.(\d+)\.mlp\.fc1\.weight"
        ),
        **_embedded(shapes, table, where),
    }


def open_clip_config(shapes: Shapes, where: str) -> dict[str, Any]:
    """Return transformers' configuration of SD2.x's text encoder; see `unet_config`.

    SD2.x uses the output of the last layer but one, so the last layer is not included.
    """
    layers = _count(shapes, r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.weight")
    first = "transformer.resblocks.0.mlp.c_fc.weight"
    return {
        "hidden_act": "gelu",
        "intermediate_size": _size(shapes, first, 0, where),
        "max_position_embeddings": _size(shapes, "positional_embedding", 0, where),
        "num_hidden_layers": layers - 1,
        **_embedded(shapes, "token_embedding.weight", where),
    }


def _embedded(shapes: Shapes, table: str, where: str) -> dict[str, Any]:
    width = _size(shapes, table, 1, where)
    return {
        "hidden_size": width,
        "model_type": "clip_text_model",
        "num_attention_heads": max(1, width // _HEAD_WIDTH),
        "projection_dim": width,
        "vocab_size": _size(shapes, table, 0, where),
    }


def _encoder_config(shapes: Shapes, where: str) -> dict[str, Any]:
    levels = 1 + _count(shapes, r"input_blocks\.(\d+)\.0\.op\.weight")
    each = _count(shapes, r"input_blocks\.(\d+)\.0\..*") // levels
    firsts = [f"input_blocks.{1 + i * each}" for i in range(levels)]
    widths = [
        _size(shapes, f"{first}.0.out_layers.3.weight", 0, where) for first in firsts
    ]
    middle = "middle_block.1"
    text = f"{middle}.transformer_blocks.0.attn2.to_k.weight"
    project = f"{middle}.proj_in.weight"
    _size(shapes, project, 1, where)
    linear = len(shapes[project]) == 2
    return {
        "attention_head_dim": (
            [max(1, width // _HEAD_WIDTH) for width in widths] if linear else _HEADS
        ),
        "block_out_channels": widths,
        "cross_attention_dim": _size(shapes, text, 1, where),
        "down_block_types": [
            "CrossAttnDownBlock2D"
            if f"{first}.1.norm.weight" in shapes
            else "DownBlock2D"
            for first in firsts
        ],
        "in_channels": _size(shapes, "input_blocks.0.0.weight", 1, where),
        "layers_per_block": each - 1,
        "norm_num_groups": 32,
        "transformer_layers_per_block": _count(
            shapes, rf"{re.escape(middle)}\.transformer_blocks\.(\d+)\.norm1\.weight"
        ),
        "use_linear_projection": linear,
    }


def _count(shapes: Shapes, pattern: str) -> int:
    """Return the number of different values of the pattern's group in the names."""
    found = (re.fullmatch(pattern, name) for name in shapes)
    return len({match[1] for match in found if match})


def _size(shapes: Shapes, name: str, axis: int, where: str) -> int:
    """Return the size of a weight along an axis."""
    shape = shapes.get(name)
    if shape is None:
        raise UserError(f"{where}: {name} is missing{nearest(name, shapes)}")
    if axis >= len(shape):
        raise UserError(f"{where}: {name} has shape {shape}, which has too few axes")
    return shape[axis]
