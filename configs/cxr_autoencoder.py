r"""Stable Diffusion's autoencoder, fitted to chest X-rays.

    medjax prepare --dataset=nih_cxr --source=NIH --out=DATA
    medjax train --config=cxr_autoencoder:decoder --workdir=DIR \
        --config.data.root=DATA
    medjax export --workdir=DIR --to=VAE

Then ``--config.model.vae=VAE`` puts it in place of a base's own.

Variants:

* none: encoder and decoder. Latents come to mean something else, so a U-Net has to be
  trained upon it.
* ``decoder``: the decoder alone. Latents stay what they were, so it fits every U-Net
  and ControlNet that the former one did.
* ``demo``: the decoder of phantom-SD, on phantoms with a finding that it has not seen.

Hardware: the recommended recipe takes its 8 images in microbatches of 2. We have not
run it, so there is no expected result to quote.

Data: NIH ChestX-ray14 (Wang et al., CVPR 2017), free to use with attribution to the NIH
Clinical Center. Weights: CreativeML Open RAIL-M.
"""

from ml_collections import ConfigDict

from medjax.pretrained.sources import PHANTOM_SD
from medjax.runs.config import apply_variant, make_config


def get_config(variant: str = "") -> ConfigDict:
    """Return the recommended config, or that of a variant."""
    config = make_config("autoencoder_kl")
    config.optim.schedule = "cosine"
    config.model.loss = "l1"
    return apply_variant(config, variant, VARIANTS, __file__)


def _recommended(config: ConfigDict) -> None:
    config.data.image_size = 512
    config.data.batch_size = 8
    config.model.pretrained = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    config.optim.learning_rate = 1e-5
    config.optim.warmup_fraction = 0.02
    config.optim.ema_decay = 0.999
    config.train.steps = 10_000
    config.train.gradient_accumulation_steps = 4


def _decoder(config: ConfigDict) -> None:
    _recommended(config)
    config.model.decoder_only = True


def _demo(config: ConfigDict) -> None:
    config.model.decoder_only = True
    config.data.image_size = 64
    config.data.batch_size = 4
    config.data.phantoms.count = 2048
    config.data.workers = 0
    config.model.pretrained = PHANTOM_SD
    config.model.dtype = "float32"
    config.optim.learning_rate = 2e-4
    config.optim.warmup_fraction = 0.05
    config.optim.ema_decay = 0.99
    config.train.steps = 500
    config.train.log_every = 20
    config.train.checkpoint_every = 250
    config.eval.every = 100
    config.eval.sample_every = 250
    config.eval.samples = 8


VARIANTS = {"": _recommended, "decoder": _decoder, "demo": _demo}
