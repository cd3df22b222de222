r"""Text to chest X-ray: fine-tune Stable Diffusion's U-Net and text encoder fully.

    medjax prepare --dataset=nih_cxr --source=NIH --out=DATA
    medjax train --config=cxr_text_to_image --workdir=DIR \
        --config.data.root=DATA

`cxr_lora.py` trains adapters instead, which need less memory and fit in a small file.
To freeze the text encoder: ``--config.model.train_text_encoder=False
--config.optim.text_encoder.learning_rate=None``.

Variants:

* none: the recommended recipe: 512², latents computed once, min-SNR weights, caption
  dropout, average of weights. The text encoder has a fifth of the U-Net's learning
  rate.
* ``v6e``, ``gpu80``: the recommended recipe for one TPU v6e chip (32 GB) or a GPU of
  80 GB. Only the split of the batch into microbatches and `remat` differ.
* ``v5e``, ``gpu24``: for one TPU v5e chip (16 GB) or a GPU of 24 GB: Adafactor instead
  of AdamW, and no average of the weights, because AdamW's state alone takes 8 GB.
* ``demo``: on phantoms, with phantom-SD, which has never seen a pneumothorax.

Hardware: the recommended recipe splits its batch of 16 images into microbatches of 4.
It stores weights, gradients, moments and average of a billion parameters: 20 GB in
float32 without activations. Without AdamW's state and the average it is 8 GB. By the
TPU's compiler, a step of `v5e` needs 9.2 GB, and a step of `v6e` 27.4 GB. The memory on
GPUs was computed, not compiled; check a variant with `medjax preflight`. We have not
run it, so no expected result is known.

Data: NIH ChestX-ray14 (Wang et al., CVPR 2017), free to use with attribution to the NIH
Clinical Center. Weights: CreativeML Open RAIL-M.
"""

from ml_collections import ConfigDict

from medjax.pretrained.sources import PHANTOM_SD
from medjax.runs.config import apply_variant, for_hardware, make_config


def get_config(variant: str = "") -> ConfigDict:
    """Return the recommended config, or that of a variant."""
    config = make_config("text_to_image")
    config.model.train_text_encoder = True
    config.model.cache_latents = True
    config.optim.schedule = "cosine"
    return apply_variant(config, variant, VARIANTS, __file__)


def _recommended(config: ConfigDict) -> None:
    config.data.image_size = 512
    config.data.batch_size = 16
    config.model.remat = "full"
    config.diffusion.min_snr_gamma = 5.0
    config.optim.learning_rate = 1e-5
    config.optim.text_encoder.learning_rate = 2e-6
    config.optim.warmup_fraction = 0.02
    config.optim.ema_decay = 0.999
    config.train.steps = 20_000
    config.train.gradient_accumulation_steps = 4


def _demo(config: ConfigDict) -> None:
    config.data.image_size = 64
    config.data.batch_size = 16
    config.data.phantoms.count = 2048
    config.data.phantoms.finding_share = 0.5
    config.data.workers = 0
    config.model.pretrained = PHANTOM_SD
    config.model.dtype = "float32"
    config.optim.learning_rate = 2e-4
    config.optim.warmup_fraction = 0.05
    config.optim.ema_decay = 0.99
    config.train.steps = 600
    config.train.log_every = 20
    config.train.checkpoint_every = 300
    config.eval.every = 100
    config.eval.sample_every = 300
    config.eval.samples = 32
    config.eval.sampler = "dpmpp_2m"
    config.eval.sampler_steps = 30
    config.eval.guidance_scale = 4.0
    config.eval.chest_findings = True


def _small(config: ConfigDict) -> None:
    _recommended(config)
    config.optim.optimizer = "adafactor"
    config.optim.ema_decay = None


VARIANTS = {
    "": _recommended,
    "demo": _demo,
    **for_hardware(_recommended, v6e=(16, "none"), gpu80=(16, "none")),
    **for_hardware(_small, v5e=(16, "attention"), gpu24=(8, "full")),
}
