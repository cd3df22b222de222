"""Write workdirs of runs as training does, but without training."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from medjax.arrays import Params
from medjax.data.pipeline import dataset_identity, open_dataset
from medjax.runs.checkpoints import Checkpoints
from medjax.runs.config import parse
from medjax.runs.open_run import AUTOENCODER, load_run, trained_autoencoder
from medjax.tasks import TASKS
from medjax.tasks.interface import TaskInputs
from medjax.training.step import TrainState
from tests.tiny_demo import get_config


@dataclasses.dataclass(frozen=True)
class Saved:
    """The saved weights of the last step, and the frozen weights."""

    params: Params
    ema_params: Params | None
    frozen: Params


def save_run(
    workdir: Path,
    steps: tuple[int, ...] = (2,),
    config: ConfigDict | None = None,
    **changes: Any,
) -> Saved:
    """Write checkpoints with random weights.

    Args:
        workdir: Folder of the run.
        steps: Steps of the checkpoints. Each has different weights.
        config: Config of the run. None means that of the demo. The autoencoder that
            it needs is the run in the workdir's folder ``autoencoder``.
        changes: Changes to the config, with double underscores for dots:
            ``model__train_unet=False``.
    """
    config = config or get_config()
    for key, value in changes.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    run = parse(config)
    given = TaskInputs(run.model, run.data, run.diffusion, jax.random.key(0))
    if TASKS[run.task].first_stage(run.model) is not None:
        done = trained_autoencoder(load_run(workdir / AUTOENCODER))
        source = open_dataset(run.data, "train")
        given = dataclasses.replace(given, autoencoder=done, source=source)
    assembly = TASKS[run.task].build(given)
    inputs = {"base": assembly.base, "dataset": dataset_identity(run.data)}
    place = workdir / "checkpoints"
    with Checkpoints(place, dataclasses.asdict(run), inputs) as checkpoints:
        for step in steps:
            params = drawn(assembly.params, step)
            kept = run.optim.ema_decay is not None
            statistics = drawn(assembly.statistics, step)
            whole = assembly.params | assembly.statistics
            ema = drawn(whole, step + 1000) if kept else None
            count = jnp.int32(step)
            moments = {"moments": params}
            state = TrainState(count, jnp.int32(0), params, statistics, ema, moments)
            checkpoints.save(step, state, {"val/loss": 1 / step})
            checkpoints.wait()
    return Saved(params, ema, assembly.frozen)


def drawn(params: Params, seed: int) -> Params:
    """Return the tree with a small random change to every leaf, zeros too."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + 0.02 * rng.standard_normal(x.shape).astype(np.float32), params
    )
