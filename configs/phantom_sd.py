r"""phantom-SD: a small Stable Diffusion, from scratch, of computed chests at 64 × 64.

    python -m medjax.train --config=configs/phantom_sd.py --workdir=DIR

trains its autoencoder first, in DIR/autoencoder, by `phantom_vae.py`, in some two
hours on two cores (`JAX_NUM_CPU_DEVICES=2` makes a device of each, which saved a
quarter of an update). It learns heart size, effusions, nodules, view, age and sex from
captions; it sees no pneumothorax, nor the word. Of 200 images for held-out captions,
94% have the heart as captioned (57% by chance), 75.5% the effusions (50%), 72.5% both
(28%). Wherever fluid is asked for there is some; nearly a quarter of the other
images measure as if there were, too. That run, the one that comes with
medjax, drew all timesteps alike in its first 1672 updates.
"""

from ml_collections import ConfigDict

from medjax.pretrained.phantom import FINDINGS
from medjax.training.config import make_config, variant_error

VARIANTS = ()


def get_config(variant: str = "") -> ConfigDict:
    """Return the config; there is no variant."""
    if variant:
        raise variant_error("configs/phantom_sd.py", variant, VARIANTS)
    config = make_config("text_to_image")
    config.data.image_size = 64
    config.data.batch_size = 16
    config.data.phantoms = 8192
    config.data.phantom_findings = FINDINGS
    config.data.workers = 0
    config.model.pretrained = ""
    config.model.autoencoder = ""
    config.model.autoencoder_config = "configs/phantom_vae.py"
    config.model.train_text_encoder = True
    config.model.cache_latents = True
    config.model.dtype = "float32"
    # Where there is most noise, what a caption decides counts most: so predict velocity
    # and draw the noisiest third of the timesteps more often.
    config.diffusion.prediction_type = "v_prediction"
    config.diffusion.timestep_bias_multiplier = 3.0
    config.diffusion.timestep_bias_portion = 0.35
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_fraction = 0.03
    config.optim.ema_decay = 0.999
    config.train.steps = 11_500
    config.train.checkpoint_every = 1000
    config.eval.every = 1000
    config.eval.sample_every = 5000
    config.eval.sampler_steps = 30
    config.eval.guidance_scale = 3.0
    return config
