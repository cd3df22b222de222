"""Shapes of published weights, known without a download; their values stay blank.

Source: the ``config.json`` files of the repositories named here.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from medjax.blank import blank_tree
from medjax.diffusion.schedule import make_schedule
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.models.clip_text import CLIPText
from medjax.models.controlnet import ControlNet, config_from_unet
from medjax.models.unet_2d_condition import UNet2DCondition
from medjax.pretrained.networks import Network, StableDiffusion

_WIDTHS = (320, 640, 1280, 1280)
_UNET = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": _WIDTHS,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "layers_per_block": 2,
}
_VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
_UNET_1 = {**_UNET, "attention_head_dim": 8, "cross_attention_dim": 768}
_UNET_2 = {
    **_UNET,
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
_TEXT_1 = {
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "vocab_size": 49408,
}
_TEXT_2 = {
    **_TEXT_1,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
}
_EPSILON = {
    "_class_name": "PNDMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
_VELOCITY = {
    **_EPSILON,
    "_class_name": "DDIMScheduler",
    "prediction_type": "v_prediction",
}
_BASES: dict[str, tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]] = {
    **dict.fromkeys(
        (
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "runwayml/stable-diffusion-v1-5",
            "CompVis/stable-diffusion-v1-4",
        ),
        (_UNET_1, _TEXT_1, _EPSILON),
    ),
    "stabilityai/stable-diffusion-2-1-base": (_UNET_2, _TEXT_2, _EPSILON),
    "stabilityai/stable-diffusion-2-1": (_UNET_2, _TEXT_2, _VELOCITY),
}
# All of them upon SD1.5.
_CONTROLNETS = ("lllyasviel/sd-controlnet-canny", "lllyasviel/control_v11p_sd15_canny")
_VAES = ("stabilityai/sd-vae-ft-mse", "stabilityai/sd-vae-ft-ema")


class _WordCount:
    """Replaces CLIP's tokenizer, because shapes need only its sizes."""

    pad_token_id = 49407

    def __len__(self) -> int:
        return 49408

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        """Return the ids of the empty caption."""
        del text, options
        return {"input_ids": [49406, 49407]}


def published_base(source: str, dtype: np.dtype) -> StableDiffusion | None:
    """Return the networks of a published Stable Diffusion, without its weights.

    Args:
        source: Hub id.
        dtype: Dtype of the weights.

    Returns:
        Networks whose weights have only shapes and dtypes; see `medjax.blank`. None if
        the hub id is unknown.
    """
    if source not in _BASES:
        return None
    unet, text, scheduler = _BASES[source]
    return StableDiffusion(
        unet=_network(UNet2DCondition, unet, dtype),
        vae=_network(AutoencoderKL, _VAE, dtype),
        text_encoder=_network(CLIPText, text, dtype),
        tokenizer=_WordCount(),
        schedule=make_schedule(scheduler),
    )


def published_controlnet(source: str, dtype: np.dtype) -> Network | None:
    """Return a published ControlNet with blank weights; None if unknown."""
    if source not in _CONTROLNETS:
        return None
    return _network(ControlNet, config_from_unet(_UNET_1, 8), dtype)


def published_autoencoder(source: str, dtype: np.dtype) -> Network | None:
    """Return a published KL autoencoder with blank weights; None if unknown."""
    known = source in _VAES or source in _BASES
    return _network(AutoencoderKL, _VAE, dtype) if known else None


def _network(module: Any, config: Mapping[str, Any], dtype: np.dtype) -> Network:
    made = module.from_config(config, dtype=dtype)
    return Network(made, blank_tree(made.param_shapes(), dtype), config)
