r"""Latent diffusion of brain MRI, in the latents of a VQ-VAE.

    medjax prepare --dataset=adni --source=ADNI --out=DATA
    medjax train --config=brain_ldm --workdir=DIR \
        --config.data.root=DATA

This one command trains the autoencoder first, by `brain_vqvae.py`, in DIR/autoencoder,
on the same data and mesh, but by its own config's other settings; or it takes one that
is there as it is: --config.model.autoencoder=RUN.

    medjax sample --workdir=DIR --mode=generate --num=16 --prompt=AD

Variants:

* none: the recommended recipe. Given the class (AD, NC), with guidance; latents of unit
  variance, as measured on the training set; a U-Net with group normalisation and
  attention; velocity prediction, average of weights.
* ``published``: the numbers of the system it reimplements: unconditional, a U-Net of
  residual convolutions with batch normalisation (45,152,996 parameters), T = 1000,
  linear β, smooth L1 on the noise, Adam at 1e-4, batch 4, 23 epochs as 172,500
  updates, 1000 steps to draw. Not reproduced, being bugs: latents that were not scaled,
  and a sampler whose noise was 1.63 times too large, which clamped latents to ±1 and
  repeated its last 30 steps five times.
* ``demo``: half an hour on two slow CPU cores, autoencoder included, at 64², with brain
  phantoms, whose class is the size of the ventricles: right in 98% of 200 images.

Hardware: the recommended recipe is meant for one device of 24 GB. We have not run it to
its end, so there is no expected result to quote.

Data: ADNI, for research, by its data use agreement.
"""

from ml_collections import ConfigDict

from medjax.runs.config import apply_variant, make_config


def get_config(variant: str = "") -> ConfigDict:
    """Return the recommended config, or that of a variant."""
    config = make_config("unconditional")
    config.data.phantoms.kind = "brain"
    config.model.autoencoder = ""
    config.model.autoencoder_config = "brain_vqvae"
    return apply_variant(config, variant, VARIANTS, __file__)


def _recommended(config: ConfigDict) -> None:
    config.data.image_size = 256
    config.data.batch_size = 32
    config.data.classes = ("AD", "NC")
    config.model.block_out_channels = (128, 256, 384)
    config.model.attention_levels = (1, 2)
    config.diffusion.prediction_type = "v_prediction"
    config.optim.learning_rate = 1e-4
    config.optim.warmup_fraction = 0.02
    config.optim.ema_decay = 0.999
    config.train.steps = 50_000
    config.eval.guidance_scale = 2.0


def _published(config: ConfigDict) -> None:
    config.data.image_size = 256
    config.data.batch_size = 4
    config.data.resize = "stretch"
    config.model.autoencoder_config = "brain_vqvae:published"
    config.model.channels = 3
    config.model.architecture = "conv_unet"
    config.model.block_out_channels = (64, 128, 256, 512, 1024)
    config.model.layers_per_block = 2
    config.model.residual = True
    config.model.dtype = "float32"
    config.diffusion.loss = "smooth_l1"
    config.diffusion.label_dropout = 0.0
    config.optim.learning_rate = 1e-4
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = None
    config.train.steps = 172_500
    config.eval.sampler = "ddpm"
    config.eval.sampler_steps = 1000
    config.eval.guidance_scale = 1.0


def _demo(config: ConfigDict) -> None:
    config.data.image_size = 64
    config.data.batch_size = 16
    config.data.phantoms.count = 2048
    config.data.workers = 0
    config.data.classes = ("AD", "NC")
    config.model.autoencoder_config = "brain_vqvae:demo"
    config.model.block_out_channels = (32, 64)
    config.model.layers_per_block = 1
    config.model.attention_levels = (1,)
    config.model.norm_num_groups = 8
    config.model.dtype = "float32"
    config.diffusion.prediction_type = "v_prediction"
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
    config.eval.guidance_scale = 2.0


VARIANTS = {"": _recommended, "published": _published, "demo": _demo}
