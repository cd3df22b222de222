"""How good is it now? The validation loss, and a page of samples with their measures.

Both use fixed examples, noise and timesteps, so that numbers and pictures of different
steps can be compared. Both may take long, so they ask between two batches whether to
stop.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Shaped, UInt8

from medjax import meshes
from medjax.arrays import Array, Batch, Params, PyTree
from medjax.data.config import DataConfig
from medjax.data.examples import Example
from medjax.data.first_examples import FirstExamples
from medjax.data.pipeline import (
    Source,
    dataset_metadata,
    open_dataset,
    validation_batches,
)
from medjax.evaluation.grids import image_page
from medjax.tasks.eval_config import EvalConfig
from medjax.tasks.interface import SamplePage, Task
from medjax.training.step import example_keys

logger = logging.getLogger(__name__)

# Rows of a page of samples, at most.
_ON_PAGE = 32


def held_out(data: DataConfig) -> Source | None:
    """Return the validation split; None, with a warning, where the data have none."""
    if data.folds or "validation" in dataset_metadata(data).splits:
        return open_dataset(data, "validation")
    logger.warning(
        "the data have no validation split: nothing is held out, so there is no "
        "validation loss, and pages show training examples"
    )
    return None


def make_validate(
    task: Task,
    source: Source,
    tokenizer: Any,
    data: DataConfig,
    config: EvalConfig,
    mesh: Mesh,
    key: Array,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Callable[[Params, Params], dict[str, float] | None]:
    """Return ``(params, frozen) -> {"loss": …}``: means over the first examples.

    Besides the loss there is what else the task says. Where it was asked to stop it
    returns None.

    Args:
        task: Gives the loss.
        source: The validation split.
        tokenizer: For its captions.
        data: How examples are made; its `batch_size` is that of validation.
        config: How many examples.
        mesh: Where arrays lie.
        key: Fixes noise and timesteps.
        asked_to_stop: Called before each batch; on several hosts, all say the same.
    """
    first = FirstExamples(source, config.examples)

    def totals(
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

    totals = jax.jit(meshes.on_mesh(mesh, totals))
    size = data.batch_size
    # One an example, whatever the batches are; a whole number of batches.
    all_keys = example_keys(key, 0, -(-len(first) // size) * size)

    def validate(params: Params, frozen: Params) -> dict[str, float] | None:
        total: Any = None
        for i, batch in enumerate(_batches(first, tokenizer, data, mesh)):
            if asked_to_stop():
                return None
            keys = all_keys[i * size : (i + 1) * size]
            placed = meshes.place_batch(batch, mesh)
            new = totals(params, frozen, placed, keys)
            # Two under way are enough; with all of them nobody could be asked.
            jax.block_until_ready(total)
            total = new if total is None else jax.tree.map(jnp.add, total, new)
        means, observed = jax.tree.map(lambda x: x / len(first), total)
        _, said = task.follow({}, observed, key)
        return {name: float(x) for name, x in {**means, **said}.items()}

    return validate


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a round of sampling gave.

    Attributes:
        grid: The task's columns, one row an example.
        metrics: What the task measures of them.
    """

    grid: UInt8[np.ndarray, "H W 3"]
    metrics: dict[str, float]


def make_sample(
    task: Task,
    source: Source,
    tokenizer: Any,
    data: DataConfig,
    config: EvalConfig,
    mesh: Mesh,
    key: Array,
    measure: Callable[[SamplePage, Any, Any], dict[str, float]],
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Callable[[Params, Params], Samples | None]:
    """Return ``(params, frozen) -> Samples`` for the first validation examples.

    Arguments are those of `make_validate`, and the task's own measure. As many images
    are drawn at a time as `data.batch_size` says; the page shows the first 32. Where it
    was asked to stop it returns None.
    """
    first = FirstExamples(source, config.samples)
    shards = meshes.batch_shards(mesh)
    # No more at a time than training takes, filled up so that the devices divide them.
    size = min(data.batch_size, -(-len(first) // shards) * shards)
    data = dataclasses.replace(data, batch_size=size)
    batches = list(_batches(first, tokenizer, data, mesh))
    records = [first[i] for i in range(len(first))]
    all_keys = example_keys(key, 0, len(batches) * size)

    def generate(
        params: Params, frozen: Params, batch: Batch, keys: Array
    ) -> dict[str, Array]:
        return task.sample(params, frozen, batch, keys, config.sampling())

    generate = jax.jit(meshes.on_mesh(mesh, generate))

    def on_host(arrays: Mapping[str, Array]) -> dict[str, np.ndarray]:
        whole = jax.device_put(dict(arrays), meshes.replicated(mesh))
        return {
            name: np.asarray(one.addressable_data(0)) for name, one in whole.items()
        }

    def sample(params: Params, frozen: Params) -> Samples | None:
        drawn, given = [], []
        for number, batch in enumerate(batches):
            if asked_to_stop():
                return None
            placed: Any = meshes.place_batch(batch, mesh)
            keys = all_keys[number * size : (number + 1) * size]
            drawn.append(on_host(generate(params, frozen, placed, keys)))
            given.append(on_host(placed))
        columns, whole = _joined(drawn, len(first)), _joined(given, len(first))
        page = {name: images[:_ON_PAGE] for name, images in columns.items()}
        captions = [record["text"] for record in records[:_ON_PAGE]]
        grid = image_page(page, captions if any(captions) else None)
        return Samples(grid, measure(SamplePage(columns, whole, records), data, config))

    return sample


def _joined(
    parts: Sequence[Mapping[str, np.ndarray]], count: int
) -> dict[str, Shaped[np.ndarray, "n ..."]]:
    """Return the first `count` rows of batches, by name."""
    return {
        name: np.concatenate([part[name] for part in parts])[:count]
        for name in parts[0]
    }


def _batches(
    source: Source, tokenizer: Any, data: DataConfig, mesh: Mesh
) -> Iterator[Example]:
    return validation_batches(
        source,
        tokenizer,
        # In threads: the training workers' processes are busy enough.
        dataclasses.replace(data, workers=0),
        rows=meshes.host_rows(data.batch_size, mesh),
    )
