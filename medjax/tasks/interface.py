"""The functions of a task, what it is built from, and what a checkpoint holds of it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float, Key

from medjax.arrays import Array, Batch, Params
from medjax.data.config import DataConfig
from medjax.diffusion.sampling_config import SamplingConfig

NO_BASE = {"source": "", "fingerprint": "none"}
"""The base of a task that starts from random weights."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a task says of a batch.

    Fields have no array types, because as a pytree it also holds other leaves.

    Attributes:
        losses: (b,) each example's loss.
        metrics: (b,) each, by name: what else to log, as parts of the loss.
        observed: What `Task.follow` follows: means over the batch, a nested dict.
    """

    losses: Any
    metrics: Any = dataclasses.field(default_factory=dict)
    observed: Any = dataclasses.field(default_factory=dict)


@runtime_checkable
class Task(Protocol):
    """Pure functions of two trees: `params` gets gradients, `frozen` does not.

    A third, the statistics, is what is averaged over the updates rather than learned:
    the running averages of batch normalisation, a codebook that follows its latents.
    It is part of `frozen` wherever that is read, and `follow` renews it.
    """

    def check(self, size: int, sampling: SamplingConfig | None) -> None:
        """Raise UserError unless networks and sampler fit the images.

        Args:
            size: Height and width of the images, in pixels.
            sampling: How images will be drawn; None for tasks that draw none.
        """
        ...

    def loss(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        keys: Key[Array, " b"],
        train: bool,
    ) -> Outcome:
        """Return each example's loss, all of its draws from its own key.

        Args:
            params: What trains.
            frozen: What does not, and the statistics.
            batch: Examples.
            keys: One an example.
            train: False for validation, which drops no caption.
        """
        ...

    def follow(
        self, statistics: Params, observed: Params, key: Key[Array, ""]
    ) -> tuple[Params, dict[str, Float[Array, ""]]]:
        """Return the statistics after a batch, and what they say, by name.

        Args:
            statistics: Before it.
            observed: What the batch's `Outcome` has, averaged over microbatches.
            key: Key for random draws.
        """
        ...

    def sample(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        keys: Key[Array, " b"],
        sampling: SamplingConfig | None,
    ) -> dict[str, Float[Array, "b H W c"]]:
        """Return columns of images in [-1, 1] to show, by their titles.

        Args:
            params: What trains.
            frozen: What does not, and the statistics.
            batch: Examples, for their conditions and to compare with.
            keys: One an image.
            sampling: How images are drawn; None for tasks that draw none.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TaskInputs:
    """Everything a task is built from.

    Attributes:
        model: The section ``model`` of the config.
        data: The section ``data``.
        diffusion: The section ``diffusion``; None for tasks without one.
        key: Key for weights that are drawn.
        autoencoder: The trained autoencoder, for tasks that stand on one.
        source: The training split, for measures that a task takes of it.
    """

    model: Any
    data: DataConfig
    diffusion: Any
    key: Key[Array, ""]
    autoencoder: Any = None
    source: Any = None


@dataclasses.dataclass(frozen=True)
class BuiltTask:
    """A task, ready to train.

    Attributes:
        task: Its functions.
        params: The weights that train, float32.
        frozen: The weights that do not train.
        tokenizer: For the captions; None for tasks that read none.
        base: ``source`` and ``fingerprint`` of the frozen weights, to find them again.
        statistics: First value of what `Task.follow` updates.
        posterior: Function of frozen weights and images that returns the mean and the
            log-variance of latents. None unless latents are computed once and kept.
    """

    task: Task
    params: Params
    frozen: Params
    tokenizer: Any
    base: Mapping[str, str]
    statistics: Params = dataclasses.field(default_factory=dict)
    posterior: Callable[[Params, Array], tuple[Array, Array]] | None = None


@dataclasses.dataclass(frozen=True)
class SamplePage:
    """A page of samples on the host, for a task's own measures.

    Attributes:
        columns: The images that `Task.sample` returned, by column.
        batch: The examples.
        records: The records that the examples were made from.
    """

    columns: Mapping[str, Float[np.ndarray, "b H W c"]]
    batch: Mapping[str, np.ndarray]
    records: Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The content of a run's checkpoint, as NumPy arrays.

    Attributes:
        model: The section ``model`` of the config.
        data: The section ``data``.
        diffusion: The section ``diffusion``; None for tasks without one.
        params: The trained weights and the statistics.
        base: ``source`` and ``fingerprint`` of the weights that the run stood on.
    """

    model: Any
    data: DataConfig
    diffusion: Any
    params: Params
    base: Mapping[str, str]
