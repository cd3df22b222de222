"""The validation loss: a mean over fixed examples with fixed noise and timesteps.

So losses of different steps can be compared. Validation may take long, so it checks
before each batch whether to stop.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from medjax import meshes
from medjax.arrays import Array, Params
from medjax.data.config import DataConfig
from medjax.data.examples import Example
from medjax.data.first_examples import FirstExamples
from medjax.data.pipeline import (
    Source,
    dataset_metadata,
    open_dataset,
    validation_batches,
)
from medjax.logs import ProgressBar
from medjax.tasks.eval_config import EvalConfig
from medjax.tasks.interface import Task
from medjax.training.evaluators import Evaluation
from medjax.training.programs import make_validation
from medjax.training.step import example_keys

logger = logging.getLogger(__name__)


def held_out(data: DataConfig) -> Source | None:
    """Return the validation split; None, with a warning, if the data have none."""
    if data.folds or "validation" in dataset_metadata(data).splits:
        return open_dataset(data, "validation")
    logger.warning(
        "the data have no validation split: no validation loss is computed, and pages "
        "of samples show training examples"
    )
    return None


@dataclasses.dataclass(frozen=True)
class NoValidation:
    """Replaces `ValidationLoss` if the data have no validation split.

    Attributes:
        every: Steps between two validations.
    """

    every: int
    work = ""

    def due(self, step: int) -> bool:
        """Tell whether validation would be due after `step`."""
        return step % self.every == 0

    def run(self, params: Params, frozen: Params) -> Evaluation:
        """Measure nothing."""
        del params, frozen
        return Evaluation({})


class ValidationLoss:
    """The mean loss over the first validation examples, and the task's metrics."""

    def __init__(
        self,
        task: Task,
        source: Source,
        tokenizer: Any,
        data: DataConfig,
        config: EvalConfig,
        mesh: Mesh,
        key: Array,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Make the keys of the examples, and jit the loss.

        Args:
            task: Computes the loss.
            source: The validation split.
            tokenizer: Tokenizer of the captions.
            data: How examples are made. Its `batch_size` is used for validation.
            config: Number of examples, and steps between two validations.
            mesh: Mesh on which the arrays are placed.
            key: Key of noise and timesteps.
            asked_to_stop: Called before each batch. All hosts must get the same answer.
        """
        self._task, self._tokenizer, self._mesh = task, tokenizer, mesh
        self._data, self._key, self._asked_to_stop = data, key, asked_to_stop
        self._every = config.every
        self._first = FirstExamples(source, config.examples)
        self._sums = make_validation(task, mesh)
        # A key for each example, whatever the batch size; for whole batches.
        batches = -(-len(self._first) // data.batch_size)
        self._keys = example_keys(key, 0, batches * data.batch_size)

    @property
    def work(self) -> str:
        """Description of the work for the log."""
        return f"validating on {len(self._first)} examples"

    def due(self, step: int) -> bool:
        """Tell whether the schedule validates after `step`."""
        return step % self._every == 0

    def run(self, params: Params, frozen: Params) -> Evaluation | None:
        """Return ``val/loss`` and the task's metrics; None if asked to stop."""
        size = self._data.batch_size
        total: Any = None
        batches = first_batches(self._first, self._tokenizer, self._data, self._mesh)
        with evaluation_bar("validating", len(self._first)) as bar:
            for i, batch in enumerate(batches):
                if self._asked_to_stop():
                    return None
                keys = self._keys[i * size : (i + 1) * size]
                placed = meshes.place_batch(batch, self._mesh)
                new = self._sums(params, frozen, placed, keys)
                # Wait, so that at most two batches are queued. If all were queued, a
                # request to stop would have no effect.
                jax.block_until_ready(total)
                total = new if total is None else jax.tree.map(jnp.add, total, new)
                bar.update(min(size, len(self._first) - i * size))
        means, observed = jax.tree.map(lambda x: x / len(self._first), total)
        _, said = self._task.follow({}, observed, self._key)
        return Evaluation({f"val/{n}": float(x) for n, x in {**means, **said}.items()})


def first_batches(
    source: Source, tokenizer: Any, data: DataConfig, mesh: Mesh
) -> Iterator[Example]:
    """Return this host's rows of a split's batches, in order; the last is filled up."""
    return validation_batches(
        source,
        tokenizer,
        # In threads, because the worker processes of training are already busy.
        dataclasses.replace(data, workers=0),
        rows=meshes.host_rows(data.batch_size, mesh),
    )


def evaluation_bar(work: str, examples: int) -> ProgressBar:
    """Return a progress bar, which only the first host draws."""
    terminal = None if jax.process_index() == 0 else False
    return ProgressBar(work, examples, "examples", terminal=terminal)
