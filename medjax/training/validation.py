"""How good is it now? The validation loss, and a grid of samples with their adherence.

Both use fixed examples, noise and timesteps, so that numbers and pictures of different
steps can be compared.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from medjax import meshes
from medjax.arrays import Array, Batch, Params
from medjax.data.config import DataConfig
from medjax.data.examples import Example, edges
from medjax.data.pipeline import Source, validation_batches
from medjax.errors import UserError
from medjax.evaluation.adherence import Canny, edge_adherence
from medjax.evaluation.grids import sample_grid
from medjax.tasks.base import Task
from medjax.training.config import EvalConfig
from medjax.training.step import example_keys


@dataclasses.dataclass(frozen=True)
class FirstExamples:
    """The first `count` records of a source."""

    source: Source
    count: int

    def __post_init__(self) -> None:
        """Refuse an empty split.

        Raises:
            UserError: If the source has no record.
        """
        if len(self.source) == 0:
            raise UserError("the validation split is empty; prepare more data")

    def __len__(self) -> int:
        return min(self.count, len(self.source))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[index]


def make_validate(
    task: Task,
    source: Source,
    tokenizer: Any,
    data: DataConfig,
    config: EvalConfig,
    mesh: Mesh,
    key: Array,
) -> Callable[[Params, Params], float]:
    """Return ``(params, frozen) -> loss``: the mean over the first examples.

    Args:
        task: Gives the loss.
        source: The validation split.
        tokenizer: For its captions.
        data: How examples are made; its `batch_size` is that of validation.
        config: How many examples.
        mesh: Where arrays lie.
        key: Fixes noise and timesteps.
    """
    first = FirstExamples(source, config.examples)

    def total_loss(
        params: Params, frozen: Params, batch: Batch, keys: Array
    ) -> Float[Array, ""]:
        losses = task.loss(params, frozen, batch, keys, train=False)
        return (losses * batch["example_weights"]).sum()

    total_loss = jax.jit(meshes.on_mesh(mesh, total_loss))
    size = data.batch_size
    # One an example, whatever the batches are; a whole number of batches.
    all_keys = example_keys(key, 0, -(-len(first) // size) * size)

    def validate(params: Params, frozen: Params) -> float:
        total = jnp.float32(0)
        for i, batch in enumerate(_batches(first, tokenizer, data, mesh)):
            keys = all_keys[i * size : (i + 1) * size]
            placed = meshes.place_batch(batch, mesh)
            total = total + total_loss(params, frozen, placed, keys)
        return float(total) / len(first)

    return validate


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a round of sampling gave.

    Attributes:
        grid: Condition, generated and target, one row an example.
        metrics: Edge adherence and its chance level, where conditions are edges.
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
) -> Callable[[Params, Params], Samples]:
    """Return ``(params, frozen) -> Samples`` for the first validation examples.

    Arguments are those of `make_validate`.
    """
    first = FirstExamples(source, config.samples)
    shards = meshes.batch_shards(mesh)
    # One batch of all of them, filled up so that the devices divide it.
    rows = -(-len(first) // shards) * shards
    whole = dataclasses.replace(data, batch_size=rows)
    batch = next(_batches(first, tokenizer, whole, mesh))
    records = [first[i] for i in range(len(first))]
    keys = example_keys(key, 0, rows)

    def generate(params: Params, frozen: Params, batch: Batch) -> Array:
        return task.sample(params, frozen, batch, keys, config.sampling())

    generate = jax.jit(meshes.on_mesh(mesh, generate))

    def on_host(array: Array) -> Float[np.ndarray, "b ..."]:
        whole = jax.device_put(array, meshes.replicated(mesh))
        return np.asarray(whole.addressable_data(0))[: len(first)]

    def sample(params: Params, frozen: Params) -> Samples:
        placed = meshes.place_batch(batch, mesh)
        images = on_host(generate(params, frozen, placed))
        condition = on_host(placed["conditioning_image"])
        grid = sample_grid(
            condition,
            images,
            on_host(placed["images"]),
            [record["text"] for record in records],
        )
        if any(record.get("conditioning_image") is not None for record in records):
            return Samples(grid, {})
        mask = None
        if "loss_mask" in placed:
            mask = on_host(placed["loss_mask"])[..., 0] > 0
        return Samples(
            grid,
            edge_adherence(
                images,
                condition,
                [_edges_of(data, number) for number in range(len(first))],
                config.edge_tolerance_px,
                mask,
            ),
        )

    return sample


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


def _edges_of(data: DataConfig, number: int) -> Canny:
    """Return the Canny that an example's condition was made with."""
    return lambda image: edges(image, data, (data.seed, number))
