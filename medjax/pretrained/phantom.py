"""Build phantom-SD: a Stable Diffusion of computed chests of 64 × 64 pixels.

This module initializes its U-Net and text encoder at random. `configs/phantom_vae.py`
trains its autoencoder first, then `configs/phantom_sd.py` trains the other two. Its
tokenizer has the words of captions without pneumothorax as single tokens, and spells
any other word.
"""

from typing import Any

import jax
import numpy as np

from medjax.data.captions import vocabulary
from medjax.diffusion.schedule import make_schedule
from medjax.models.clip_text import CLIPText
from medjax.models.unet_2d_condition import UNet2DCondition
from medjax.pretrained.networks import Network, StableDiffusion
from medjax.pretrained.tiny import SCHEDULER_CONFIG, TEXT_CONFIG, UNET_CONFIG
from medjax.pretrained.tokenizer import tokenizer_from_words

FINDINGS = ("Cardiomegaly", "Effusion", "Nodule")
"""Findings that its chests may have."""

_TEXT_WIDTH = 96
# Scale of the embeddings of tokens that are in no caption of such chests and therefore
# never train. They must be as long as trained embeddings become. If not, the position
# embeddings would hide what the tokens spell.
_SPELLING_SCALE = 3.6
_CHANNELS = ("in_channels", "out_channels")
_UNET: dict[str, Any] = {
    "block_out_channels": [48, 96, 96],
    "cross_attention_dim": _TEXT_WIDTH,
    # Attention at small resolutions only: 8 × 8 and 4 × 4.
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
    "norm_num_groups": 16,
    "sample_size": 16,
    "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
}
_TEXT: dict[str, Any] = {
    "hidden_size": _TEXT_WIDTH,
    "intermediate_size": 4 * _TEXT_WIDTH,
    "num_hidden_layers": 2,
    "projection_dim": _TEXT_WIDTH,
}


def drawn_stable_diffusion(vae: Network, key: jax.Array) -> StableDiffusion:
    """Return a Stable Diffusion with random weights except for its autoencoder.

    Args:
        vae: Autoencoder of any shape; the U-Net is built for its latents.
        key: Random key for all other weights.
    """
    tokenizer = tokenizer_from_words(vocabulary(FINDINGS))
    latents = dict.fromkeys(_CHANNELS, vae.module.latent_channels)
    text_config = (
        TEXT_CONFIG
        | _TEXT
        | {
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
    )
    unet_config = UNET_CONFIG | _UNET | latents
    unet_key, text_key = jax.random.split(key)
    unet = UNet2DCondition.from_config(unet_config)
    text_encoder = CLIPText.from_config(text_config)
    text_params = text_encoder.init_params(text_key)
    embedding = text_params["text_model"]["embeddings"]["token_embedding"]
    captions = tokenizer(" ".join(vocabulary(FINDINGS)))["input_ids"]
    spells = ~np.isin(np.arange(len(tokenizer)), captions)
    scale = np.where(spells, _SPELLING_SCALE, 1)[:, None]
    embedding["embedding"] = embedding["embedding"] * scale.astype(np.float32)
    return StableDiffusion(
        unet=Network(unet, unet.init_params(unet_key), unet_config),
        vae=vae,
        text_encoder=Network(text_encoder, text_params, text_config),
        tokenizer=tokenizer,
        schedule=make_schedule(SCHEDULER_CONFIG),
    )
