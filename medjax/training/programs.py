"""The programs that a run compiles: its step, its validation and its sampler.

`set_up` and the evaluators run them. `medjax preflight` compiles the same ones for
a TPU that is not at hand.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Float

from medjax import meshes
from medjax.arrays import Array, Batch, Params, PyTree
from medjax.data.config import DataConfig
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.runs.config import RunConfig
from medjax.tasks.interface import BuiltTask, Task
from medjax.training.optimizer import make_optimizer
from medjax.training.step import TrainStep, make_train_step

Sums = Callable[
    [Params, Params, Batch, Array], tuple[dict[str, Float[Array, ""]], PyTree]
]
"""The compiled validation of one batch."""

Sampler = Callable[[Params, Params, Batch, Array], dict[str, Array]]
"""The compiled sampling of one batch."""


def make_step(
    config: RunConfig, built: BuiltTask, mesh: Mesh, earlier: Sequence[Any] = ()
) -> tuple[optax.GradientTransformation, TrainStep]:
    """Return a run's optimizer and its jitted step.

    Args:
        config: The run's.
        built: Its task.
        mesh: Devices.
        earlier: Numbers of steps that the run was planned for before.
    """
    plan = config.train
    optimizer = make_optimizer(config.optim, plan.steps, built.params, earlier)
    step = make_train_step(
        built.task,
        optimizer,
        mesh,
        accumulation_steps=plan.gradient_accumulation_steps,
        ema_decay=config.optim.ema_decay,
        max_skipped=plan.max_skipped_updates,
    )
    return optimizer, step


def make_validation(task: Task, mesh: Mesh) -> Sums:
    """Return the jitted sums over a batch's examples: metrics, and what was observed.

    Args:
        task: Gives the loss.
        mesh: Devices.
    """

    def sums_of_batch(
        params: Params, frozen: Params, batch: Batch, keys: Array
    ) -> tuple[dict[str, Float[Array, ""]], PyTree]:
        outcome = task.loss(params, frozen, batch, keys, train=False)
        weights = batch["example_weights"]
        sums = {
            name: (x * weights).sum()
            for name, x in {"loss": outcome.losses, **outcome.metrics}.items()
        }
        # A batch that is filled up counts as much as it has examples.
        return sums, jax.tree.map(lambda x: x * weights.sum(), outcome.observed)

    return jax.jit(meshes.on_mesh(mesh, sums_of_batch))


def make_sampler(task: Task, sampling: SamplingConfig | None, mesh: Mesh) -> Sampler:
    """Return the jitted columns of images for a batch.

    Args:
        task: Draws the images.
        sampling: How; None for tasks that draw none.
        mesh: Devices.
    """

    def samples_of_batch(
        params: Params, frozen: Params, batch: Batch, keys: Array
    ) -> dict[str, Array]:
        return task.sample(params, frozen, batch, keys, sampling)

    return jax.jit(meshes.on_mesh(mesh, samples_of_batch))


def microbatch(config: RunConfig) -> DataConfig:
    """Return the data config of one microbatch, which fits the memory of training."""
    size = config.data.batch_size // config.train.gradient_accumulation_steps
    return dataclasses.replace(config.data, batch_size=size)


def samples_at_once(images: int, batch_size: int, mesh: Mesh) -> int:
    """Return how many images to sample at once.

    At most a microbatch, rounded up to a multiple of the devices.

    Args:
        images: Number of images to sample.
        batch_size: Examples of a microbatch.
        mesh: Devices.
    """
    shards = meshes.batch_shards(mesh)
    return min(batch_size, -(-images // shards) * shards)
