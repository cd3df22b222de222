"""One update: equal for all microbatches and meshes, and nothing frozen moves."""

import jax
import numpy as np
import optax
import pytest

from medjax import meshes, trees
from medjax.errors import UserError
from medjax.training.step import (
    check_batch_size,
    example_keys,
    init_state,
    make_train_step,
)
from tests.tasks import small

KEY = jax.random.key(7)


def run(mesh_sizes=(1, 1, 1), accumulation=1, steps=2, ema_decay=None):
    """Train a few steps by SGD whose momentum is the sum of all gradients."""
    task, weights = small.make()
    params, frozen = small.split(weights)
    count = int(np.prod(mesh_sizes))
    config = meshes.MeshConfig(*mesh_sizes)
    mesh = meshes.make_mesh(config, jax.devices()[:count])
    optimizer = optax.sgd(0.1, momentum=1.0)
    state = init_state(params, optimizer, mesh, ema_decay is not None)
    frozen = jax.device_put(frozen, meshes.param_shardings(frozen, mesh))
    step = make_train_step(
        task, optimizer, mesh, accumulation_steps=accumulation, ema_decay=ema_decay
    )
    history = []
    for i in range(steps):
        batch = meshes.place_batch(small.batch(8, seed=i), mesh)
        state, metrics = step(state, frozen, batch, KEY)
        history.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(history), state, frozen


@pytest.fixture(scope="module")
def reference():
    return run()


def assert_same(got, reference):
    history, state, _ = got
    np.testing.assert_allclose(history, reference[0], rtol=1e-5)
    # The gradients themselves: parameters would add the rounding of being stored.
    ours, theirs = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(s.opt_state[0])])
        for s in (state, reference[1])
    )
    assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


@pytest.mark.parametrize("accumulation", [2, 4, 8])
def test_accumulation_equals_the_whole_batch(reference, accumulation):
    assert_same(run(accumulation=accumulation), reference)


@pytest.mark.parametrize(
    ("mesh", "accumulation"),
    [((8, 1, 1), 1), ((2, 4, 1), 1), ((2, 2, 2), 1), ((1, 2, 4), 2)],
)
def test_any_mesh_equals_one_device(reference, mesh, accumulation):
    assert_same(run(mesh, accumulation), reference)


def test_parameters_are_really_split():
    state = run((1, 4, 2), steps=1)[1]
    leaf = state.params["controlnet"]["mid_block"]["resnets_0"]["conv1"]["kernel"]
    assert leaf.addressable_shards[0].data.size == leaf.size // 8


def test_nothing_frozen_moves_and_everything_else_does(reference):
    _, state, frozen = reference
    params, before = small.split(small.make()[1])
    for path, leaf in trees.flatten(before).items():
        np.testing.assert_array_equal(trees.flatten(frozen)[path], leaf)
    for path, leaf in trees.flatten(params).items():
        assert (np.asarray(trees.flatten(state.params)[path]) != leaf).any(), path
    assert int(state.step) == 2


def test_the_average_lags_behind():
    _, state, _ = run(steps=1, ema_decay=0.9)
    start = trees.flatten(small.split(small.make()[1])[0])
    path = "controlnet/conv_in/kernel"
    begin, end = start[path], np.asarray(trees.flatten(state.params)[path])
    average = np.asarray(trees.flatten(state.eval_params)[path])
    # The first decay of the warm-up is 1/10.
    np.testing.assert_allclose(average, begin + 0.9 * (end - begin), atol=1e-7)
    assert np.abs(average - end).max() > 1e-6


def test_no_two_examples_or_steps_share_a_key():
    keys = [example_keys(KEY, step, 16) for step in range(4)]
    data = np.concatenate([jax.random.key_data(k) for k in keys])
    assert len(np.unique(data, axis=0)) == 64


def test_batches_that_do_not_divide_are_refused():
    mesh = meshes.make_mesh(meshes.MeshConfig(2, 2, 1), jax.devices()[:4])
    check_batch_size(16, 2, mesh)
    with pytest.raises(UserError, match="multiple of 8"):
        check_batch_size(12, 2, mesh)
    with pytest.raises(UserError, match="multiple of 4"):
        check_batch_size(12, 0, mesh)
