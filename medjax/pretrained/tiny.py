"""A tiny Stable Diffusion with random weights, for demos and tests without a download.

Nothing in it is trained, so what it draws means nothing; its parts and its files are
those of the real one. Autoencoder: 4× smaller latents. Text encoder: two layers over a
vocabulary that has each word of our captions, and can spell any other.
"""

from typing import Any

import jax

from medjax.data.captions import VOCABULARY
from medjax.diffusion.schedule import make_schedule
from medjax.pretrained import layout
from medjax.pretrained.networks import Network, StableDiffusion
from medjax.pretrained.tokenizer import tokenizer_from_words

_UNET = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
}
_VAE = {
    "sample_size": 64,
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
_TEXT_ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_act": "quick_gelu",
}
# Stable Diffusion 1.5's.
_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def tiny_tokenizer() -> Any:
    """Return a CLIP tokenizer that has each word of our captions as one token."""
    return tokenizer_from_words(VOCABULARY)


def tiny_stable_diffusion(seed: int = 0) -> StableDiffusion:
    """Return a tiny Stable Diffusion, the same for the same seed on every machine."""
    tokenizer = tiny_tokenizer()
    text_encoder = _TEXT_ENCODER | {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    configs = {"unet": _UNET, "vae": _VAE, "text_encoder": text_encoder}
    keys = jax.random.split(jax.random.key(seed), len(configs))
    networks = {}
    for (name, config), key in zip(configs.items(), keys, strict=True):
        module = layout.STABLE_DIFFUSION[name].module.from_config(config)
        networks[name] = Network(module, module.init_params(key), config)
    return StableDiffusion(
        **networks, tokenizer=tokenizer, schedule=make_schedule(_SCHEDULER)
    )
