r"""phantom-SD's autoencoder: a small KL autoencoder of computed chests at 64 × 64.

    medjax train --config=phantom_vae --workdir=DIR

`phantom_sd.py` trains it automatically if it is missing. Ribs are three or four pixels
apart. With latents of 16 × 16 × 8, they are still faint at the end of training (PSNR
34.4 dB on 8 held-out images). Images and captions of phantom-SD have no pneumothorax.
"""

from ml_collections import ConfigDict

from medjax.pretrained.phantom import FINDINGS
from medjax.runs.config import apply_variant, make_config


def get_config(variant: str = "") -> ConfigDict:
    """Return the config. It has no variants."""
    return apply_variant(make_config("autoencoder_kl"), variant, VARIANTS, __file__)


def _recommended(config: ConfigDict) -> None:
    config.data.image_size = 64
    config.data.batch_size = 2
    config.data.phantoms.count = 8192
    config.data.phantoms.findings = FINDINGS
    config.data.workers = 0
    config.model.block_out_channels = (16, 32, 64)
    config.model.layers_per_block = 1
    config.model.latent_channels = 8
    config.model.norm_num_groups = 8
    config.model.kl_weight = 1e-4
    config.model.loss = "l1"
    config.model.dtype = "float32"
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_fraction = 0.05
    config.optim.ema_decay = 0.998
    config.train.steps = 6000
    config.train.checkpoint_every = 2000
    config.eval.every = 1000
    config.eval.sample_every = 1000


VARIANTS = {"": _recommended}
