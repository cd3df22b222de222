"""A small U-Net and text encoder with adapters, and two steps of their training."""

import dataclasses

import jax

from medjax.tasks.adapters import AdapterConfig
from tests.tasks import small
from tests.training import two_steps

CONFIGS = {
    "unet": AdapterConfig(
        rank=2,
        alpha=4.0,
        dropout=0.3,
        # The gated layer has an order of its own on a mesh.
        targets=("to_q", "to_k", "to_v", "to_out_0", "proj"),
        modules_to_save=("conv_in",),
    ),
    "text_encoder": AdapterConfig(rank=1, dropout=0.2),
}
SAVED = ("unet/conv_in/kernel", "unet/conv_in/bias")
DIFFUSION = {"min_snr_gamma": 5.0, "caption_dropout": 0.5}


def made(**changes):
    configs = {
        name: dataclasses.replace(config, **changes) for name, config in CONFIGS.items()
    }
    return small.make_adapted(configs, SAVED, **DIFFUSION)


def batch(**options):
    drawn = small.batch(**options)
    del drawn["conditioning_image"]
    return jax.tree.map(jax.numpy.asarray, drawn)


def run_adapted(mesh_sizes=(1, 1, 1), accumulation=1):
    """Train the adapters for two steps."""
    batches = [batch(seed=i) for i in range(2)]
    return two_steps.run(made(), batches, mesh_sizes, accumulation)
