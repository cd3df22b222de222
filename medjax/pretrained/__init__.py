"""Load and save published weights: diffusers folders, hub ids, and original files.

Only functions that need transformers, diffusers or torch import them.
"""

from medjax.pretrained.load import (
    load_autoencoder,
    load_controlnet,
    load_controlnet_config,
    load_stable_diffusion,
    save_autoencoder,
    save_controlnet,
    save_stable_diffusion,
)
from medjax.pretrained.networks import Adapters, LowRank, Network, StableDiffusion

__all__ = [
    "Adapters",
    "LowRank",
    "Network",
    "StableDiffusion",
    "load_autoencoder",
    "load_controlnet",
    "load_controlnet_config",
    "load_stable_diffusion",
    "save_autoencoder",
    "save_controlnet",
    "save_stable_diffusion",
]
