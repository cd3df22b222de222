"""A ControlNet task small enough to compile in seconds, with every part drawn."""

import dataclasses

import jax
import numpy as np

from medjax import trees
from medjax.diffusion.objective import DiffusionConfig
from medjax.diffusion.schedule import make_schedule
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.models.clip_text import CLIPText
from medjax.models.controlnet import ControlNet, config_from_unet
from medjax.models.lora import is_adapter
from medjax.models.unet_2d_condition import UNet2DCondition
from medjax.tasks.adapters import draw_adapters
from medjax.tasks.captioned import CaptionedTask
from medjax.tasks.latent_diffusion import LatentDiffusion

UNET = {
    "block_out_channels": (8,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 8,
}
# With a change of resolution: a convolution of stride 2, and one after an enlargement.
TWO_LEVELS = UNET | {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
VAE = {"block_out_channels": (4, 8), "norm_num_groups": 2, "layers_per_block": 1}
TEXT = {
    "vocab_size": 50,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
}


def make(seed=0, unet=UNET, **diffusion):
    """Return the task, and the weights of all its networks.

    Args:
        seed: Of all weights.
        unet: Config of the U-Net.
        diffusion: Of the objective.
    """
    model = LatentDiffusion(
        unet=UNet2DCondition.from_config(unet),
        controlnet=ControlNet.from_config(config_from_unet(unet, 2)),
        vae=AutoencoderKL.from_config(VAE),
        text_encoder=CLIPText.from_config(TEXT),
        schedule=make_schedule(SCHEDULE),
        null_text_ids=np.zeros(77, np.int32),
    )
    keys = jax.random.split(jax.random.key(seed), 4)
    unet_params = model.unet.init_params(keys[0])
    # Not zero convolutions, for their gradient alone would be tested.
    controlnet = jax.tree.map(
        lambda x: x + 0.02, model.controlnet.init_from_unet(unet_params, keys[1])
    )
    weights = {
        "unet": unet_params,
        "controlnet": controlnet,
        "vae": model.vae.init_params(keys[2]),
        "text_encoder": model.text_encoder.init_params(keys[3]),
    }
    diffusion = dataclasses.replace(DiffusionConfig(), **diffusion)
    return CaptionedTask(model, diffusion), weights


def make_adapted(configs, trains=(), seed=0, **diffusion):
    """Return a task of a U-Net with adapters, what it trains, and what it does not.

    Args:
        configs: Adapters by network.
        trains: Paths that train beside them.
        seed: Of all weights.
        diffusion: Of the objective.
    """
    whole, weights = make(seed, **diffusion)
    del weights["controlnet"]
    model = dataclasses.replace(whole.model, controlnet=None)
    adapters = {
        name: draw_adapters(name, weights[name], config, jax.random.key(seed))
        for name, config in configs.items()
    }
    params, frozen = trees.split(
        trees.merge(weights, adapters), lambda p: is_adapter(p) or p in trains
    )
    return CaptionedTask(model, whole.diffusion, configs), params, frozen


def split(weights):
    """Return what a locked ControlNet trains, and what it does not."""
    return trees.split(weights, lambda path: path.startswith("controlnet/"))


def batch(size=8, side=8, seed=1):
    """Return a batch of random examples."""
    random = np.random.default_rng(seed)
    edges = random.random((size, side, side, 1)) < 0.2
    return {
        "images": random.uniform(-1, 1, (size, side, side, 3)).astype(np.float32),
        "conditioning_image": np.repeat(edges, 3, -1).astype(np.float32),
        "text_ids": random.integers(0, 50, (size, 77)).astype(np.int32),
    }
