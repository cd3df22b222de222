"""Diffusion of 16 × 16 phantoms by a network that compiles in seconds: a short run."""

from ml_collections import ConfigDict

from medjax.runs.config import make_config


def get_config(variant: str = "") -> ConfigDict:
    """Return the config."""
    assert not variant
    config = make_config("unconditional")
    config.data.image_size = 16
    config.data.batch_size = 4
    config.data.phantoms.count = 16
    config.data.workers = 0
    config.model.architecture = "conv_unet"
    config.model.block_out_channels = (8, 8)
    config.model.layers_per_block = 1
    config.model.dtype = "float32"
    config.optim.learning_rate = 1e-3
    config.optim.warmup_fraction = 0.0
    config.optim.ema_decay = 0.9
    config.train.steps = 3
    config.train.log_every = 1
    config.train.checkpoint_every = 2
    config.eval.every = 100
    config.eval.examples = 3
    config.eval.sample_every = 100
    config.eval.samples = 2
    config.eval.sampler_steps = 2
    return config
