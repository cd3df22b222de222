"""The cached examples of a tiny run, on all devices."""

import dataclasses
from pathlib import Path

import jax

from medjax import meshes
from medjax.config_files import load_config
from medjax.data.pipeline import open_dataset
from medjax.runs.config import parse
from medjax.tasks import TASKS
from medjax.tasks.interface import TaskInputs
from medjax.training.cached_examples import cached_examples
from medjax.training.stop import StopRequest

EXAMPLES = 20


def tiny_run(recipe):
    """Return the config of a demo with tiny networks, its task and its training split.

    All weights are random.
    """
    config = load_config("config", f"{recipe}:demo")
    config.model.update(pretrained="", cache_latents=True, dtype="float32")
    if recipe == "cxr_text_to_image":
        config.model.update(autoencoder=None, train_text_encoder=False)
    config.data.update(image_size=16, batch_size=8, workers=0)
    config.data.phantoms.count = EXAMPLES
    config.train.gradient_accumulation_steps = 1
    config = parse(config)
    given = TaskInputs(config.model, config.data, config.diffusion, jax.random.key(0))
    return config, TASKS[config.task].build(given), open_dataset(config.data, "train")


def cached_examples_of(recipe, workdir: Path, cache: str | None = None, stop=None):
    """Return the training split of `tiny_run` with latents and captions cached.

    Args:
        recipe: Name of a config.
        workdir: Folder of the run.
        cache: Folder of cached images, if there are any.
        stop: A request to stop, if there is one.
    """
    config, built, source = tiny_run(recipe)
    data = dataclasses.replace(config.data, cache=cache)
    config = dataclasses.replace(config, data=data)
    mesh = meshes.make_mesh(config.mesh)
    frozen = meshes.place_params(built.frozen, mesh)
    inputs = {"base": built.base}
    return cached_examples(
        config, built, inputs, source, frozen, mesh, workdir, stop or StopRequest()
    )
