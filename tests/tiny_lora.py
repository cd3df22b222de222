"""A small run of adapters on the tiny Stable Diffusion, with phantoms of 16 × 16."""

from ml_collections import ConfigDict

from medjax.runs.config import make_config


def get_config(variant: str = "") -> ConfigDict:
    """Return the config; ``unet`` and ``text_encoder`` adapt only that network."""
    config = make_config("text_to_image")
    config.data.image_size = 16
    config.data.batch_size = 8
    config.data.phantoms.count = 16
    config.data.workers = 0
    config.model.pretrained = ""
    config.model.dtype = "float32"
    if variant != "text_encoder":
        config.model.unet_lora.rank = 4
        config.model.unet_lora.alpha = 8.0
        config.model.unet_lora.targets = ("to_q", "to_v", "to_out_0", "conv1")
        config.model.unet_lora.modules_to_save = ("conv_in/kernel",)
    if variant != "unet":
        config.model.text_encoder_lora.rank = 2
        config.model.text_encoder_lora.alpha = 3.0
    config.train.steps = 2
    config.eval.examples = 8
    config.eval.samples = 2
    config.eval.sampler_steps = 2
    return config
