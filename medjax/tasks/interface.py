"""Interfaces of tasks: their functions, their inputs and their checkpoints."""

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
"""Entry for the base model of a task that starts from random weights."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outcome:
    """Losses of a batch, and what else a task computes from it.

    Fields have no array types, because JAX also puts other leaves into this pytree.

    Attributes:
        losses: Loss of each example, (b,).
        metrics: Other values of each example to log, (b,) each, by name, such as parts
            of the loss.
        observed: Means over the batch that `Task.follow` uses, a nested dict.
    """

    losses: Any
    metrics: Any = dataclasses.field(default_factory=dict)
    observed: Any = dataclasses.field(default_factory=dict)


@runtime_checkable
class Task(Protocol):
    """Pure functions of two trees: `params` gets gradients, `frozen` does not.

    A third tree, the statistics, is averaged over the steps instead of learned.
    Examples are the running averages of batch normalisation and a codebook that
    follows its latents. Functions read it as part of `frozen`; `follow` updates it.
    """

    def check(self, size: int, sampling: SamplingConfig | None) -> None:
        """Raise UserError if networks and sampler do not fit the images.

        Args:
            size: Height and width of the images, in pixels.
            sampling: How images are sampled. None for tasks that sample no images.
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
        """Return each example's loss. All its random numbers come from its own key.

        Args:
            params: The weights that train.
            frozen: The frozen weights and the statistics.
            batch: Examples.
            keys: One key per example.
            train: False for validation, which drops no caption.
        """
        ...

    def follow(
        self, statistics: Params, observed: Params, key: Key[Array, ""]
    ) -> tuple[Params, dict[str, Float[Array, ""]]]:
        """Return the statistics after a batch, and metrics by name.

        Args:
            statistics: The statistics before the batch.
            observed: `Outcome.observed` of the batch, averaged over microbatches.
            key: Key for random numbers.
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
        """Return columns of images in [-1, 1] for a page, by title.

        Args:
            params: The weights that train.
            frozen: The frozen weights and the statistics.
            batch: Examples, which give conditions and real images.
            keys: One key per image.
            sampling: How images are sampled. None for tasks that sample no images.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TaskInputs:
    """Everything that a task is built from.

    Attributes:
        model: Section ``model`` of the config.
        data: Section ``data`` of the config.
        diffusion: Section ``diffusion`` of the config; None for tasks without one.
        key: Key for random weights.
        autoencoder: Trained autoencoder, for tasks that use one, else None.
        source: Training split, for tasks that measure it before training, else None.
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
        task: Functions of the task.
        params: Weights that train, float32.
        frozen: Frozen weights.
        tokenizer: Tokenizer of the captions; None for tasks without captions.
        base: ``source`` and ``fingerprint`` of the base model, to find it again.
        statistics: First value of the statistics, which `Task.follow` updates.
        posterior: Function from frozen weights and images to the mean and the
            log-variance of latents. None unless latents are computed once and kept.
        embed_text: Function from frozen weights and token ids to the embeddings of
            captions. None unless these are computed once and kept.
    """

    task: Task
    params: Params
    frozen: Params
    tokenizer: Any
    base: Mapping[str, str]
    statistics: Params = dataclasses.field(default_factory=dict)
    posterior: Callable[[Params, Array], tuple[Array, Array]] | None = None
    embed_text: Callable[[Params, Array], Array] | None = None


GENERATED = "generated"
"""Title of the only column of a page that shows no image of a data set."""


@dataclasses.dataclass(frozen=True)
class SamplePage:
    """A page of samples in host memory, for the metrics of a task.

    Attributes:
        columns: Images in [-1, 1] that `Task.sample` returned, by title of the column.
        batch: Batch of the examples.
        records: Records from which the examples were made.
    """

    columns: Mapping[str, Float[np.ndarray, "b H W c"]]
    batch: Mapping[str, np.ndarray]
    records: Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The content of a run's checkpoint, as NumPy arrays.

    Attributes:
        model: Section ``model`` of the config.
        data: Section ``data`` of the config.
        diffusion: Section ``diffusion`` of the config; None for tasks without one.
        params: Trained weights and the statistics.
        base: ``source`` and ``fingerprint`` of the base model or autoencoder.
    """

    model: Any
    data: DataConfig
    diffusion: Any
    params: Params
    base: Mapping[str, str]
