"""Workdirs of runs as training leaves them, without the training."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.cxr_controlnet import get_config
from medjax.arrays import Params
from medjax.data.pipeline import dataset_identity
from medjax.tasks import TASKS
from medjax.training.checkpoints import Checkpoints
from medjax.training.config import parse
from medjax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Saved:
    """What was saved: the weights of the last step, and what did not train."""

    params: Params
    ema_params: Params | None
    frozen: Params


def save_run(workdir: Path, steps: tuple[int, ...] = (2,), **changes: Any) -> Saved:
    """Write checkpoints of the demo with drawn weights.

    Args:
        workdir: The run's.
        steps: Which checkpoints; each has other weights.
        changes: Of the demo's config, dots as double underscores:
            ``model__train_unet=False``.
    """
    config = get_config("demo")
    for key, value in changes.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    run = parse(config)
    assembly = TASKS[run.task][1](run.model, run.diffusion, jax.random.key(0))
    inputs = {"base": assembly.base, "dataset": dataset_identity(run.data)}
    place = workdir / "checkpoints"
    with Checkpoints(place, dataclasses.asdict(run), inputs) as checkpoints:
        for step in steps:
            params = drawn(assembly.params, step)
            kept = run.optim.ema_decay is not None
            ema = drawn(assembly.params, step + 1000) if kept else None
            count = jnp.int32(step)
            state = TrainState(count, jnp.int32(0), params, ema, {"moments": params})
            checkpoints.save(step, state, {"val/loss": 1 / step})
            checkpoints.wait()
    return Saved(params, ema, assembly.frozen)


def drawn(params: Params, seed: int) -> Params:
    """Return the tree with every leaf moved a little, zeros too."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + 0.02 * rng.standard_normal(x.shape).astype(np.float32), params
    )
