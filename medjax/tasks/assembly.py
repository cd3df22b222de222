"""What a task is made from, and what is made."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Key

from medjax.arrays import Array, Params
from medjax.data.config import DataConfig
from medjax.tasks.interface import Task


@dataclasses.dataclass(frozen=True)
class Assembly:
    """A task, ready to train.

    Attributes:
        task: Its functions.
        params: What trains, float32.
        frozen: What does not.
        tokenizer: For the captions; None for tasks that read none.
        base: What the frozen weights are, to be found again: source, fingerprint.
        statistics: What `Task.follow` renews, at the beginning.
        posterior: From frozen weights and images to mean and log-variance of latents,
            where those of the training images shall be computed once, and kept.
    """

    task: Task
    params: Params
    frozen: Params
    tokenizer: Any
    base: Mapping[str, str]
    statistics: Params = dataclasses.field(default_factory=dict)
    posterior: Callable[[Params, Array], tuple[Array, Array]] | None = None


@dataclasses.dataclass(frozen=True)
class Given:
    """What a task is made from.

    Attributes:
        model: The section of the config.
        data: The same.
        diffusion: The same; None for tasks without one.
        key: For weights that are drawn.
        autoencoder: A trained one, for tasks that stand on it.
        source: The training split, to measure.
    """

    model: Any
    data: DataConfig
    diffusion: Any
    key: Key[Array, ""]
    autoencoder: Any = None
    source: Any = None


@dataclasses.dataclass(frozen=True)
class Shown:
    """A page of samples, on the host, for a task's own measures.

    Attributes:
        columns: What `Task.sample` returned.
        batch: The examples.
        records: What they were made from.
    """

    columns: Mapping[str, Float[np.ndarray, "b H W c"]]
    batch: Mapping[str, np.ndarray]
    records: Sequence[Mapping[str, Any]]


# The base of what begins from nothing.
NO_BASE = {"source": "", "fingerprint": "none"}
