"""The demo of a ControlNet on a base with random weights that trains too: a small run.

`get_config` takes a variant, as in a config file, but supports only the empty one.
"""

from ml_collections import ConfigDict

from configs import cxr_controlnet
from medjax.data.phantoms import FINDINGS


def get_config(variant: str = "") -> ConfigDict:
    """Return the config."""
    assert not variant
    config = cxr_controlnet.get_config("demo")
    config.data.phantoms.findings = FINDINGS
    config.model.pretrained = ""
    config.model.train_unet = True
    # The network learns the mean of possible images before it learns details.
    config.diffusion.prediction_type = "sample"
    config.data.phantoms.count = 512
    config.train.steps = 200
    config.train.log_every = 10
    config.train.checkpoint_every = 100
    config.eval.every = 50
    config.eval.sample_every = 100
    config.eval.samples = 4
    config.eval.guidance_scale = 1.0
    return config
