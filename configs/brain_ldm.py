r"""Latent diffusion of brain MRI, in the latents of a VQ-VAE.

    medjax prepare --dataset=adni --source=AD_NC --out=DATA
    medjax train --config=brain_ldm --workdir=DIR \
        --config.data.root=DATA

This one command first trains the autoencoder in DIR/autoencoder, on the same data and
mesh. All other settings of the autoencoder come from `brain_vqvae.py`. To use an
existing autoencoder unchanged, set ``--config.model.autoencoder=RUN``.

    medjax sample --workdir=DIR --mode=generate --num=16 --prompt=AD

Variants:

* none: the recommended recipe: images of a class (AD, NC), with guidance; latents of
  unit variance, as measured on the training set; a U-Net with group normalisation and
  attention; velocity prediction; average of weights.
* ``published``: the settings of the published system: no classes, a U-Net of residual
  convolutions with batch normalisation (45,152,996 parameters), T = 1000, linear β,
  smooth L1 loss of the noise, Adam at 1e-4, batch size 4, 23 epochs as 172,500 steps,
  1000 sampling steps. Two bugs are not reproduced: its latents were not scaled, and its
  sampler started with noise 1.63 times too large, clamped latents to ±1 and repeated
  the last 30 steps five times.
* ``demo``: half an hour on two slow CPU cores, autoencoder included, at 64², with brain
  phantoms. Their class is the size of the ventricles, which is correct in 98% of 200
  sampled images.

Hardware: by the TPU's compiler, a step needs 4.1 GB. We have not run the recommended
recipe to the end, so no expected result is known.

Data: ADNI, for research, under its data use agreement.
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
