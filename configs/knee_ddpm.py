r"""Diffusion of knee MRI, in pixels, without classes or captions.

    medjax prepare --dataset=oai_akoa --source=AKOA_Analysis --out=DATA
    medjax train --config=knee_ddpm --workdir=DIR \
        --config.data.root=DATA

    medjax sample --workdir=DIR --mode=generate --num=16

Variants:

* none: the recommended recipe: a U-Net with group normalisation, and attention at
  32 × 32 pixels and below; velocity prediction; cosine noise schedule; average of
  weights. Images are sampled by DDIM in 50 steps with new noise in each, because the
  knees of the demo are then closer to real ones (bench/results/demos-knee-cpu.md).
* ``published``: the settings of the published system: 256², grayscale, a U-Net of plain
  convolutions with batch normalisation (31,140,577 parameters), T = 1000, linear β from
  1e-4 to 0.02, L1 loss of the noise, Adam at 1e-3, batch size 4, 50 epochs of 14,800
  slices as 185,000 steps, 1000 sampling steps. Two bugs are not reproduced: its split
  took every fifth file, so one knee could be on both sides, and batch normalisation
  stayed in training mode in validation and sampling.
* ``demo``: minutes on two CPU cores, at 64², with knee phantoms.

Hardware: by the TPU's compiler, a step needs 8.3 GB. We have not run the recommended
recipe to the end, so no expected result is known. The published system took 20 s per
image.

Data: OAI AKOA (Osteoarthritis Initiative), for research, under the NIH's terms of use.
"""

from ml_collections import ConfigDict

from medjax.runs.config import apply_variant, make_config


def get_config(variant: str = "") -> ConfigDict:
    """Return the recommended config, or that of a variant."""
    config = make_config("unconditional")
    # The images have no classes, so guidance is off.
    config.eval.guidance_scale = 1.0
    config.diffusion.label_dropout = 0.0
    return apply_variant(config, variant, VARIANTS, __file__)


def _recommended(config: ConfigDict) -> None:
    config.data.image_size = 256
    config.data.batch_size = 16
    config.data.phantoms.kind = "knee"
    config.model.block_out_channels = (64, 128, 192, 256, 256)
    config.model.attention_levels = (3, 4)
    config.diffusion.prediction_type = "v_prediction"
    config.diffusion.beta_schedule = "squaredcos_cap_v2"
    config.optim.learning_rate = 1e-4
    config.optim.warmup_fraction = 0.02
    config.optim.ema_decay = 0.999
    config.train.steps = 50_000
    config.eval.sampler_eta = 1.0


def _published(config: ConfigDict) -> None:
    config.data.image_size = 256
    config.data.batch_size = 4
    config.data.phantoms.kind = "knee"
    config.data.resize = "stretch"
    config.model.architecture = "conv_unet"
    config.model.block_out_channels = (64, 128, 256, 512, 1024)
    config.model.layers_per_block = 1
    config.model.dtype = "float32"
    config.diffusion.loss = "l1"
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = None
    config.train.steps = 185_000
    config.eval.every = 3700
    config.eval.sampler = "ddpm"
    config.eval.sampler_steps = 1000


def _demo(config: ConfigDict) -> None:
    config.data.image_size = 64
    config.data.batch_size = 8
    config.data.phantoms.kind = "knee"
    config.data.phantoms.count = 2048
    config.data.workers = 0
    config.model.block_out_channels = (16, 32, 64, 96)
    config.model.layers_per_block = 1
    config.model.attention_levels = (3,)
    config.model.attention_head_dim = 16
    config.model.norm_num_groups = 8
    config.model.dtype = "float32"
    config.diffusion.prediction_type = "v_prediction"
    config.diffusion.beta_schedule = "squaredcos_cap_v2"
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_fraction = 0.05
    config.optim.ema_decay = 0.995
    config.train.steps = 2000
    config.train.log_every = 20
    config.train.checkpoint_every = 500
    config.eval.every = 200
    config.eval.examples = 64
    config.eval.sample_every = 500
    config.eval.samples = 8
    config.eval.sampler_steps = 50
    config.eval.sampler_eta = 1.0


VARIANTS = {"": _recommended, "published": _published, "demo": _demo}
