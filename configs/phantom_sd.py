r"""phantom-SD: a small Stable Diffusion, from scratch, of computed chests at 64 × 64.

    python -m medjax.train --config=configs/phantom_sd.py --workdir=DIR

trains its autoencoder first, in DIR/autoencoder, by `phantom_vae.py`, in some three
hours on two cores (`JAX_NUM_CPU_DEVICES=2` makes a device of each, which saved a
quarter of an update). It learns heart size, effusions, nodules, view, age and sex from
captions; it sees no pneumothorax, nor the word. Of 200 images for held-out captions,
99% have the heart as captioned (59% by chance), 94.5% the effusions (60%), 93.5% both
(34%).

Those are of the one that comes with medjax. It had as many updates, but in two runs:
11,500, in most of which the noisiest third of the timesteps was drawn three times as
often, then 7500 with all timesteps alike, with a new optimiser and a cosine of their
own. In one run, as here, it was not trained.
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
    # What a caption decides is decided where there is most noise: there, a loss of the
    # noise has almost no weight.
    config.diffusion.prediction_type = "v_prediction"
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_fraction = 0.03
    config.optim.ema_decay = 0.999
    config.train.steps = 19_000
    config.train.checkpoint_every = 1000
    config.eval.every = 1000
    config.eval.sample_every = 5000
    config.eval.sampler = "dpmpp_2m"
    config.eval.sampler_steps = 30
    config.eval.guidance_scale = 4.0
    return config
