"""The programs of a run, ready to compile, with shapes in place of arrays.

The run is built by the same functions as `training.set_up` calls. But its weights are
blank: none is read, downloaded or drawn.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from medjax import meshes, trees
from medjax.arrays import Params, PyTree
from medjax.blank import blank, blank_weights
from medjax.compiling.topologies import Topology
from medjax.config_files import load_config
from medjax.data.config import ControlDataConfig
from medjax.data.examples import make_example
from medjax.data.pipeline import Source, open_dataset
from medjax.models.attention_forms import check_attention
from medjax.runs.config import RunConfig, parse
from medjax.runs.open_run import load_done, trained_autoencoder
from medjax.tasks import TASKS
from medjax.tasks.interface import BuiltTask, Checkpoint, TaskInputs
from medjax.tasks.latent_scaling import TrainedAutoencoder
from medjax.training.programs import (
    make_sampler,
    make_step,
    make_validation,
    microbatch,
    samples_at_once,
)
from medjax.training.step import TrainState, check_batch_size, state_shapes

STEP, VALIDATION, SAMPLER = "step", "validation", "sampler"
PROGRAMS = (STEP, VALIDATION, SAMPLER)
"""What a run compiles."""


@dataclasses.dataclass(frozen=True)
class RunProgram:
    """A jitted function and the shapes of its arguments.

    Attributes:
        name: One of `PROGRAMS`.
        function: What ``jax.jit`` returned.
        arguments: Trees of shapes with shardings.
        images: How many images one call takes or draws.
    """

    name: str
    function: Any
    arguments: tuple[PyTree, ...]
    images: int


@dataclasses.dataclass(frozen=True)
class RunPrograms:
    """All programs of a run.

    Attributes:
        programs: By name.
        parts: Trees of shapes with shardings in memory during training, by their part:
            trained and frozen weights, optimizer, average, batch.
    """

    programs: Mapping[str, RunProgram]
    parts: Mapping[str, PyTree]


def run_programs(config: RunConfig, devices: tuple[jax.Device, ...]) -> RunPrograms:
    """Return a run's programs for some devices.

    Args:
        config: Config of the run.
        devices: Those of a topology.

    Raises:
        UserError: If the run could not start with this config and these devices.
    """
    mesh = meshes.make_mesh(config.mesh, devices)
    check_attention(config.model, mesh)
    plan, size = config.train, config.data.batch_size
    check_batch_size(size, plan.gradient_accumulation_steps, mesh)
    source = open_dataset(config.data, "train")
    key = jax.random.key(plan.seed)
    with blank_weights():
        built = _built(config, source, key)
        optimizer, step = make_step(config, built, mesh)
    built.task.check(config.data.image_size, config.eval.sampling())
    ema = config.optim.ema_decay is not None
    state = state_shapes(built.params, built.statistics, optimizer, mesh, ema)
    frozen = meshes.sharded_shapes(
        built.frozen, meshes.param_shardings(built.frozen, mesh)
    )
    example = _example(config, built, source)
    cached = _cached_example(config, built, source, frozen)
    small = microbatch(config).batch_size
    drawn = samples_at_once(config.eval.samples, small, mesh)
    weights = state.eval_params
    batch = _batch(cached or example, size, mesh)

    def evaluation(count: int) -> tuple[PyTree, ...]:
        weighted = {**example, "example_weights": np.zeros((), np.float32)}
        return weights, frozen, _batch(weighted, count, mesh), _keys(key, count, mesh)

    given = (state, frozen, batch, _keys(key, None, mesh))
    sampler = make_sampler(built.task, config.eval.sampling(), mesh)
    validation = make_validation(built.task, mesh)
    listed = (
        RunProgram(STEP, step, given, size),
        RunProgram(VALIDATION, validation, evaluation(small), small),
        RunProgram(SAMPLER, sampler, evaluation(drawn), drawn),
    )
    return RunPrograms({one.name: one for one in listed}, _parts(state, frozen, batch))


def run_program(config: RunConfig, name: str, topology: Topology) -> RunProgram:
    """Return one program of a run; see `run_programs`.

    Args:
        config: Config of the run.
        name: One of `PROGRAMS`.
        topology: Devices to compile for.
    """
    return run_programs(config, topology.devices).programs[name]


def _built(config: RunConfig, source: Source, key: jax.Array) -> BuiltTask:
    given = TaskInputs(
        config.model, config.data, config.diffusion, key, _autoencoder(config), source
    )
    return TASKS[config.task].build(given)


def _autoencoder(config: RunConfig) -> TrainedAutoencoder | None:
    """Return the autoencoder that a run uses: trained, or blank if it trains first.

    Raises:
        UserError: If it is not found.
    """
    stage = TASKS[config.task].first_stage(config.model)
    if stage is None:
        return None
    if stage.folder:
        return trained_autoencoder(load_done(stage.folder))
    file = stage.config_file or ""
    first = parse(load_config("config.model.autoencoder_config", file))
    row = TASKS[first.task]
    given = TaskInputs(first.model, config.data, None, jax.random.key(0))
    built = row.build(given)
    weights = trees.merge(trees.merge(built.params, built.frozen), built.statistics)
    trained = row.reopen(
        Checkpoint(first.model, first.data, None, weights, built.base), None, None
    )
    assert isinstance(trained, TrainedAutoencoder)
    return trained


def _example(
    config: RunConfig, built: BuiltTask, source: Source
) -> Mapping[str, np.ndarray]:
    """Return one example as the input pipeline makes it."""
    key = (config.data.seed, 0)
    return make_example(source[0], built.tokenizer, config.data, key)[0]


def _cached_example(
    config: RunConfig, built: BuiltTask, source: Source, frozen: Params
) -> Mapping[str, np.ndarray] | None:
    """Return one example of cached latents; None if the run caches none."""
    if built.posterior is None:
        return None
    side = config.data.image_size
    image = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    moments = jax.eval_shape(built.posterior, frozen, image)
    names = ("latents_mean", "latents_logvar")
    record = {
        name: blank(one.shape[1:], np.float32)
        for name, one in zip(names, moments, strict=True)
    }
    first = source[0]
    record["text"] = first["text"]
    if isinstance(config.data, ControlDataConfig):
        record["image"] = first["image"]
    example = make_example(record, built.tokenizer, config.data, (0, 0))[0]
    if built.embed_text is not None:
        text_ids = example.pop("text_ids")
        ids = jax.ShapeDtypeStruct((1, *text_ids.shape), text_ids.dtype)
        shape = jax.eval_shape(built.embed_text, frozen, ids).shape[1:]
        example["text_embeddings"] = blank(shape, np.float16)
    return example


def _batch(example: Mapping[str, np.ndarray], count: int, mesh: Mesh) -> PyTree:
    sharding = meshes.batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((count, *one.shape), one.dtype, sharding=sharding)
        for name, one in example.items()
    }


def _keys(key: jax.Array, count: int | None, mesh: Mesh) -> jax.ShapeDtypeStruct:
    shape = () if count is None else (count,)
    sharding = meshes.replicated(mesh)
    return jax.ShapeDtypeStruct(shape, key.dtype, sharding=sharding)


def _parts(state: TrainState, frozen: Params, batch: PyTree) -> dict[str, PyTree]:
    return {
        "trained weights": (state.params, state.statistics),
        "frozen weights": frozen,
        "optimizer": state.opt_state,
        "average": state.ema_params,
        "batch": batch,
    }


def bytes_per_chip(tree: PyTree) -> int:
    """Return what a tree of shapes with shardings takes on one chip, unpadded."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64))
        * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )
