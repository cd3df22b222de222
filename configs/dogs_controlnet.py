r"""ControlNet on any folder of photos, from Canny edges, with Stable Diffusion 1.5.

    medjax prepare --dataset=folder --source=PHOTOS --out=DATA
    medjax train --config=dogs_controlnet --workdir=DIR \
        --config.data.root=DATA

PHOTOS may be nested as in Stanford Dogs (`Images/<wnid>-<breed>/`). Captions come from
its `metadata.csv` or `metadata.jsonl` (`file_name`, `text`). Without such a file, they
are empty. The ControlNet starts as a copy of the U-Net's encoder.

Variants:

* none: the recommended recipe, at 512².
* ``published``: the settings of the published system: 256², batch size 11, 13 epochs of
  20,580 photos as 24,322 steps, at most 24 hours, and a grid of 4 images every 300
  steps, sampled by DDIM in 50 steps. Resizing does not keep the aspect ratio, and no
  captions are dropped.
* ``v5e``, ``v6e``, ``gpu24``, ``gpu80``: the recommended recipe for one TPU v5e chip
  (16 GB), one v6e chip (32 GB), or a GPU of 24 or 80 GB. Only the split of the batch
  into microbatches and `remat` differ, so each trains the same model.
* ``demo``: minutes on two CPU cores, with phantoms instead of photos, and a tiny random
  Stable Diffusion whose U-Net trains too.

Hardware: as `cxr_controlnet`, but the recommended recipe does not split its batch of 16
images, so its step needs more memory. We have not run it to the end, so no expected
result is known. The published system trained at 3.1 images/s on a 16 GB GPU.

Data: Stanford Dogs (Khosla et al., 2011), for research; its photos are from ImageNet.
Weights: CreativeML Open RAIL-M.
"""

from ml_collections import ConfigDict

from medjax.runs.config import apply_variant, for_hardware, make_config


def get_config(variant: str = "") -> ConfigDict:
    """Return the recommended config, or that of a variant."""
    config = make_config("controlnet")
    return apply_variant(config, variant, VARIANTS, __file__)


def _recommended(config: ConfigDict) -> None:
    config.data.image_size = 512
    config.data.batch_size = 16
    config.data.canny_low = (50.0, 100.0)
    config.data.canny_high = (100.0, 200.0)
    config.model.cache_latents = True
    config.model.remat = "full"
    config.optim.learning_rate = 1e-5
    config.optim.warmup_fraction = 0.02
    config.optim.ema_decay = 0.999
    config.train.steps = 20_000


def _published(config: ConfigDict) -> None:
    config.data.image_size = 256
    config.data.batch_size = 11
    config.data.resize = "stretch"
    config.model.dtype = "float32"
    config.model.remat = "full"
    config.optim.learning_rate = 1e-5
    config.optim.clip_norm = None
    config.diffusion.caption_dropout = 0.0
    config.train.steps = 24_322
    config.train.max_hours = 24.0
    config.eval.sample_every = 300
    config.eval.samples = 4
    config.eval.sampler_steps = 50


def _demo(config: ConfigDict) -> None:
    config.data.image_size = 64
    config.data.batch_size = 8
    config.data.phantoms.count = 512
    config.data.canny_sigma = 1.0
    config.data.workers = 0
    config.model.pretrained = ""
    config.model.train_unet = True
    config.model.dtype = "float32"
    config.optim.learning_rate = 1e-3
    config.optim.warmup_fraction = 0.05
    config.train.steps = 60
    config.train.log_every = 10
    config.eval.examples = 16
    config.eval.samples = 4
    config.eval.sampler_steps = 10


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
