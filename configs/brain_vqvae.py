r"""VQ-VAE on brain MRI: the autoencoder that `brain_ldm.py` uses.

    medjax prepare --dataset=adni --source=AD_NC --out=DATA
    medjax train --config=brain_vqvae --workdir=DIR \
        --config.data.root=DATA

`brain_ldm.py` trains it automatically if it is missing.

Variants:

* none: the recommended recipe: grayscale images, and a codebook of 1024 entries that
  follows its latents. Unused entries are moved to busy places.
* ``published``: the settings of the published system: 256², three channels, 21,994,479
  parameters, a codebook of 8192 × 4 that learns by gradient, commitment weight 1, Adam
  at 1e-5, batch size 4, 20 epochs of about 30,000 slices as 150,000 steps. One bug is
  not reproduced: training and test images were one set, so nothing was held out.
* ``demo``: a quarter of an hour on two slow CPU cores, at 64², with brain phantoms. It
  reaches a PSNR of 27.4 dB on 200 held-out phantoms, with 99% of the codebook in use.
  Trained on 192 real slices of 12 subjects, without skulls, it reaches 30.4 dB (SSIM
  0.92) on 32 slices of two other subjects.

Hardware: by the TPU's compiler, a step needs 5.7 GB. We have not run the recommended
recipe to the end, so no expected result is known.

Data: ADNI, for research, under its data use agreement.
"""

from ml_collections import ConfigDict

from medjax.runs.config import apply_variant, make_config


def get_config(variant: str = "") -> ConfigDict:
    """Return the recommended config, or that of a variant."""
    config = make_config("vq_vae")
    config.data.phantoms.kind = "brain"
    return apply_variant(config, variant, VARIANTS, __file__)


def _recommended(config: ConfigDict) -> None:
    config.data.image_size = 256
    config.data.batch_size = 16
    config.optim.learning_rate = 2e-4
    config.optim.schedule = "cosine"
    config.optim.warmup_fraction = 0.02
    config.optim.ema_decay = 0.999
    config.train.steps = 40_000


def _published(config: ConfigDict) -> None:
    config.data.image_size = 256
    config.data.batch_size = 4
    config.data.resize = "stretch"
    config.model.channels = 3
    config.model.codebook_size = 8192
    config.model.codebook_learning = "gradient"
    config.model.commitment_weight = 1.0
    config.model.dtype = "float32"
    config.optim.learning_rate = 1e-5
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = None
    config.train.steps = 150_000


def _demo(config: ConfigDict) -> None:
    config.data.image_size = 64
    config.data.batch_size = 8
    config.data.phantoms.count = 2048
    config.data.workers = 0
    config.model.block_out_channels = (16, 32, 64)
    config.model.layers_per_block = 1
    config.model.mid_layers = 1
    config.model.norm_num_groups = 8
    config.model.codebook_size = 1024
    # Finds unused entries within 68 steps. With 0.99 it would take 350, too many here.
    config.model.codebook_decay = 0.95
    config.model.dtype = "float32"
    config.optim.learning_rate = 2e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_fraction = 0.05
    config.optim.ema_decay = 0.99
    config.train.steps = 1500
    config.train.log_every = 20
    config.train.checkpoint_every = 500
    config.eval.every = 100
    config.eval.examples = 64
    config.eval.sample_every = 500
    config.eval.samples = 8


VARIANTS = {"": _recommended, "published": _published, "demo": _demo}
