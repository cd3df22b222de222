"""A task in one file: it learns the mean color of images, and draws it."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from medjax.data.config import DataConfig
from medjax.diffusion.schedule import Schedule, make_schedule
from medjax.tasks.drawing import Drawing
from medjax.tasks.eval_config import SamplingEvalConfig
from medjax.tasks.interface import NO_BASE, BuiltTask, Outcome
from medjax.tasks.row import TaskRow


@dataclasses.dataclass(frozen=True)
class MeanColorConfig:
    """Where learning starts."""

    start: float = 0.0


class MeanColor:
    """Its functions."""

    def check(self, size, sampling):
        del size, sampling

    def loss(self, params, frozen, batch, keys, train):
        del frozen, keys, train
        apart = batch["images"] - params["mean"]["color"]
        return Outcome(jnp.square(apart).mean((1, 2, 3)))

    def follow(self, statistics, observed, key):
        del observed, key
        return statistics, {}

    def sample(self, params, frozen, batch, keys, sampling):
        del frozen, keys, sampling
        color = params["mean"]["color"]
        return {"generated": jnp.broadcast_to(color, batch["images"].shape)}


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedMeanColor:
    """What it draws from."""

    nets: dict

    @property
    def schedule(self) -> Schedule:
        return make_schedule({})

    def drawing(self, sampling, size, dtype, frames):
        del sampling, dtype, frames
        return Drawing(
            self.nets,
            lambda nets, batch, keys: jnp.broadcast_to(
                nets["mean"]["color"], (1, len(keys), *size, 3)
            ),
            lambda requests: {},
        )


def make_mean_color_task(inputs):
    color = np.full(3, inputs.model.start, np.float32)
    return BuiltTask(MeanColor(), {"mean": {"color": color}}, {}, None, NO_BASE)


ROW = TaskRow(
    {"data": DataConfig, "model": MeanColorConfig, "eval": SamplingEvalConfig},
    make_mean_color_task,
    lambda checkpoint, source, autoencoder: TrainedMeanColor(checkpoint.params),
)
