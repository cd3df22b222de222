r"""ControlNet on chest X-rays, from Canny edges, with Stable Diffusion 1.5.

    medjax prepare --dataset=nih_cxr --source=NIH --out=DATA
    medjax train --config=cxr_controlnet --workdir=DIR \
        --config.data.root=DATA

Variants:

* none: the recommended recipe: captions that name the findings, edges at random
  thresholds for each image (25–100 and 100–200), caption dropout, aspect ratio kept,
  warm-up, average of weights.
* ``published``: the settings of the published system: 512² without keeping the aspect
  ratio, thresholds 100/200, AdamW at a constant 1e-5 in float32, batch size 2, 50
  epochs of 800 images as 20,000 steps, no caption dropout, starting from the published
  Canny ControlNet. Prepare the data with ``--caption_style=binary``. Two bugs are not
  reproduced: its split had images of one patient on both sides, and some config keys
  had no effect.
* ``v5e``, ``v6e``, ``gpu24``, ``gpu80``: the recommended recipe for one TPU v5e chip
  (16 GB), one v6e chip (32 GB), or a GPU of 24 or 80 GB. Only the split of the batch
  into microbatches and `remat` differ, so each trains the same model.
* ``demo``: minutes on two CPU cores, on phantoms, with phantom-SD as base model. This
  small Stable Diffusion comes with medjax. It samples chests from captions, but has
  never seen edges.

Hardware: the recommended recipe splits its batch of 16 images into microbatches of 8.
Weights, optimizer and average take 7.6 GB. By the TPU's compiler, a step of `v5e` needs
13.4 GB, and a step of `v6e` 18.9 GB. The memory on GPUs was computed, not compiled.
Check a variant with `medjax preflight`. Several devices share a batch automatically
(`config.mesh`). We have not run the recipe on a TPU or GPU, so no expected result is
known yet. The published system reached an SSIM of 0.58 to 0.59 on 199 images,
with a measure that cropped them.

Data: NIH ChestX-ray14 (Wang et al., CVPR 2017), free to use with attribution to the NIH
Clinical Center. Weights: CreativeML Open RAIL-M.
"""

from ml_collections import ConfigDict

from medjax.pretrained.phantom import FINDINGS
from medjax.pretrained.sources import PHANTOM_SD
from medjax.runs.config import apply_variant, for_hardware, make_config


def get_config(variant: str = "") -> ConfigDict:
    """Return the recommended config, or that of a variant."""
    config = make_config("controlnet")
    return apply_variant(config, variant, VARIANTS, __file__)


def _recommended(config: ConfigDict) -> None:
    config.data.image_size = 512
    config.data.batch_size = 16
    # From fine to coarse, so that the model learns to follow every level of detail.
    config.data.canny_low = (25.0, 100.0)
    config.data.canny_high = (100.0, 200.0)
    config.model.controlnet = "lllyasviel/sd-controlnet-canny"
    config.model.cache_latents = True
    config.model.remat = "full"
    config.optim.learning_rate = 1e-5
    config.optim.warmup_fraction = 0.02
    config.optim.ema_decay = 0.999
    config.train.steps = 20_000
    config.train.gradient_accumulation_steps = 2


def _published(config: ConfigDict) -> None:
    config.data.image_size = 512
    config.data.batch_size = 2
    config.data.resize = "stretch"
    config.model.controlnet = "lllyasviel/sd-controlnet-canny"
    config.model.dtype = "float32"
    config.optim.learning_rate = 1e-5
    config.optim.clip_norm = None
    config.diffusion.caption_dropout = 0.0
    config.train.steps = 20_000
    config.eval.sampler_steps = 20


def _demo(config: ConfigDict) -> None:
    config.data.image_size = 64
    config.data.batch_size = 8
    config.data.phantoms.count = 1024
    # Findings that the base model has seen.
    config.data.phantoms.findings = FINDINGS
    config.data.canny_sigma = 1.0
    config.data.workers = 0
    config.model.pretrained = PHANTOM_SD
    config.model.dtype = "float32"
    config.optim.learning_rate = 1e-3
    config.optim.warmup_fraction = 0.05
    config.optim.ema_decay = 0.99
    config.train.steps = 600
    config.train.log_every = 20
    config.train.checkpoint_every = 200
    config.eval.every = 100
    config.eval.examples = 32
    config.eval.sample_every = 200
    config.eval.samples = 16
    config.eval.sampler_steps = 20
    # Same as for the base model. With 2, fewer hearts and effusions match the captions.
    config.eval.guidance_scale = 4.0


VARIANTS = {
    "": _recommended,
    "published": _published,
    "demo": _demo,
    **for_hardware(
        _recommended,
        v5e=(16, "attention"),
        v6e=(16, "none"),
        gpu24=(8, "attention"),
        gpu80=(16, "none"),
    ),
}
