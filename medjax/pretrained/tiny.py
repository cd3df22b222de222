"""Build a tiny Stable Diffusion: the built-in default base.

Its U-Net and text encoder have random weights from a seed and must be trained. The
weights of its autoencoder are set by hand (`tiny_vae`), so it works without training.
Its tokenizer has the words of medjax's captions as single tokens. Its size suits images
of 64×64 on two processor cores.
"""

from typing import Any

import jax

from medjax.data.captions import VOCABULARY
from medjax.diffusion.schedule import make_schedule
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.models.clip_text import CLIPText
from medjax.models.unet_2d_condition import UNet2DCondition
from medjax.pretrained import tiny_vae
from medjax.pretrained.networks import Network, StableDiffusion
from medjax.pretrained.tokenizer import tokenizer_from_words

TEXT_WIDTH = 64
UNET_CONFIG: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    # The number of heads, in spite of its name.
    "attention_head_dim": 4,
    "block_out_channels": [32, 64],
    "cross_attention_dim": TEXT_WIDTH,
    # Attention only at small resolutions: 16×16 for an image of 64×64.
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": tiny_vae.SIGNALS,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "out_channels": tiny_vae.SIGNALS,
    "sample_size": 32,
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}
TEXT_CONFIG: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "hidden_act": "quick_gelu",
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 2 * TEXT_WIDTH,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "projection_dim": TEXT_WIDTH,
}
# The scheduler of Stable Diffusion 1.5.
SCHEDULER_CONFIG: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def tiny_tokenizer() -> Any:
    """Return a CLIP tokenizer with every word of medjax's captions as one token."""
    return tokenizer_from_words(VOCABULARY)


def tiny_stable_diffusion(seed: int = 0) -> StableDiffusion:
    """Return a tiny Stable Diffusion; the seed gives the same one on every machine."""
    tokenizer = tiny_tokenizer()
    text_config = TEXT_CONFIG | {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    unet_key, text_key = jax.random.split(jax.random.key(seed))
    unet = UNet2DCondition.from_config(UNET_CONFIG)
    vae = AutoencoderKL.from_config(tiny_vae.CONFIG)
    text_encoder = CLIPText.from_config(text_config)
    return StableDiffusion(
        unet=Network(unet, unet.init_params(unet_key), dict(UNET_CONFIG)),
        vae=Network(vae, tiny_vae.tiny_vae_params(vae), dict(tiny_vae.CONFIG)),
        text_encoder=Network(
            text_encoder, text_encoder.init_params(text_key), text_config
        ),
        tokenizer=tokenizer,
        schedule=make_schedule(SCHEDULER_CONFIG),
    )
