"""The published variants have exactly the parameters that their systems had."""

import jax
import pytest

from configs import brain_ldm, brain_vqvae, knee_ddpm
from medjax import trees
from medjax.models.vq_vae import VQVAE
from medjax.runs.config import parse
from medjax.tasks import TASKS
from medjax.tasks.interface import TaskInputs
from medjax.tasks.latent_scaling import TrainedAutoencoder


@pytest.mark.ci
@pytest.mark.parametrize(
    ("module", "count"),
    [
        (brain_vqvae, 21_994_479),
        (knee_ddpm, 31_140_577),
        (brain_ldm, 45_152_996),
    ],
)
def test_the_published_variants_have_their_size(module, count, monkeypatch):
    config = parse(module.get_config("published"))
    autoencoder = None
    if module is brain_ldm:
        # Its network alone decides the size: no latents are measured.
        autoencoder = TrainedAutoencoder(VQVAE(), {}, "")
        monkeypatch.setattr(
            "medjax.tasks.latent_scaling.measure_latents", lambda *_: (None, None)
        )
    key = jax.random.key(0)
    given = TaskInputs(config.model, config.data, config.diffusion, key, autoencoder)
    assert trees.count(TASKS[config.task].build(given).params) == count
