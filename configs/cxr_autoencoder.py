r"""Stable Diffusion's autoencoder, fine-tuned on chest X-rays.

    medjax prepare --dataset=nih_cxr --source=NIH --out=DATA
    medjax train --config=cxr_autoencoder:decoder --workdir=DIR \
        --config.data.root=DATA
    medjax export --workdir=DIR --to=VAE

In other runs, ``--config.model.vae=VAE`` then replaces the autoencoder of the base
model.

Variants:

* none: train encoder and decoder. Latents change their meaning, so a U-Net must be
  trained with the new autoencoder.
* ``decoder``: train only the decoder. Latents keep their meaning, so it fits every
  U-Net and ControlNet that the original autoencoder fits.
* ``demo``: train the decoder of phantom-SD, on phantoms with a finding that it has not
  seen.

Hardware: the recommended recipe splits its batch of 8 images into microbatches of 2. By
the TPU's compiler, a step needs 22.2 GB. We have not run it, so no expected result is
known.

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
