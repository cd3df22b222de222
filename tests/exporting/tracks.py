"""Saved runs of the tracks without captions, with tiny networks."""

from configs import brain_ldm, brain_vqvae, knee_ddpm
from medjax.runs.config import make_config
from tests.saved_runs import save_run

SIZE = 32
# Default format of each run, by its folder.
RUNS = {"knee": "pipeline", "brain": "pytorch", "brain/autoencoder": "pytorch"}
VQ = {
    "block_out_channels": (8, 8, 8),
    "norm_num_groups": 4,
    "codebook_size": 32,
    "mid_layers": 2,
}
UNET = {
    "block_out_channels": (8, 16),
    "attention_levels": (1,),
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
CONV = {
    "architecture": "conv_unet",
    "block_out_channels": (8, 8, 16),
    "attention_levels": (),
    "attention_head_dim": 32,
    "norm_num_groups": 32,
}


def export_name(run):
    """Return the name of a run's export, which begins with the format."""
    return f"{RUNS[run]}-{run.replace('/', '_')}"


def save_vqvae(workdir, **model):
    """Write a run of brain_vqvae."""
    config = brain_vqvae.get_config("demo")
    return _saved(workdir, config, VQ | model)


def save_kl(workdir, **model):
    """Write a run of a KL autoencoder of gray images."""
    config = make_config("autoencoder_kl")
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    return _saved(workdir, config, {"channels": 1, **sizes, **model})


def save_ddpm(workdir, variant="demo", **model):
    """Write a run of knee_ddpm; double underscores lead to other sections."""
    config = knee_ddpm.get_config(variant)
    return _saved(workdir, config, model or UNET)


def save_ldm(workdir, save_autoencoder=save_vqvae, **model):
    """Write a run of brain_ldm, and of its autoencoder."""
    save_autoencoder(workdir / "autoencoder")
    config = brain_ldm.get_config("demo")
    return _saved(workdir, config, model or UNET)


def _saved(workdir, config, model):
    config.data.image_size = SIZE
    config.data.phantoms.count = 16
    for name, value in model.items():
        section, _, key = name.partition("__")
        if key:
            config[section][key] = value
        else:
            config.model[name] = value
    return save_run(workdir, config=config)
