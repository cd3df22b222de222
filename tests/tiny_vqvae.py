"""The VQ-VAE of the brain demo, with a few steps."""

from ml_collections import ConfigDict

from configs import brain_vqvae


def get_config(variant: str = "") -> ConfigDict:
    """Return the config."""
    assert not variant
    config = brain_vqvae.get_config("demo")
    config.train.steps = 2
    config.eval.examples = 4
    config.eval.samples = 2
    return config
