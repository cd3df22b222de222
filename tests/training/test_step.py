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

pytestmark = pytest.mark.devices(8)

KEY = jax.random.key(7)


RATE = 0.1


def run(mesh_sizes=(1, 1, 1), accumulation=1):
    """Train two steps by SGD whose momentum is the sum of all gradients."""
    task, weights = small.make()
    params, frozen = small.split(weights)
    count = int(np.prod(mesh_sizes))
    config = meshes.MeshConfig(*mesh_sizes)
    mesh = meshes.make_mesh(config, jax.devices()[:count])
    optimizer = optax.sgd(RATE, momentum=1.0)
    state = init_state(params, {}, optimizer, mesh, True)
    frozen = jax.device_put(frozen, meshes.param_shardings(frozen, mesh))
    step = make_train_step(
        task, optimizer, mesh, accumulation_steps=accumulation, ema_decay=0.9
    )
    history = []
    for i in range(2):
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


@pytest.mark.parametrize(
    "accumulation", [pytest.param(2, marks=pytest.mark.release), 8]
)
def test_accumulation_equals_the_whole_batch(reference, accumulation):
    assert_same(run(accumulation=accumulation), reference)


@pytest.mark.parametrize(
    ("mesh", "accumulation"),
    [
        pytest.param((8, 1, 1), 1, marks=pytest.mark.release),
        pytest.param((2, 2, 2), 1, marks=pytest.mark.ci),
        pytest.param((1, 4, 2), 2, marks=pytest.mark.release),
    ],
)
def test_any_mesh_equals_one_device_and_really_splits(reference, mesh, accumulation):
    got = run(mesh, accumulation)
    assert_same(got, reference)
    leaf = got[1].params["controlnet"]["mid_block"]["resnets_0"]["conv1"]["kernel"]
    parts = mesh[1] * mesh[2]
    assert leaf.addressable_shards[0].data.size == leaf.size // parts


def test_nothing_frozen_moves_and_everything_else_does(reference):
    _, state, frozen = reference
    params, before = small.split(small.make()[1])
    for path, leaf in trees.flatten(before).items():
        np.testing.assert_array_equal(trees.flatten(frozen)[path], leaf)
    for path, leaf in trees.flatten(params).items():
        assert (np.asarray(trees.flatten(state.params)[path]) != leaf).any(), path
    assert int(state.step) == 2


def test_the_average_lags_behind(reference):
    state = reference[1]
    path = "controlnet/conv_in/kernel"
    start = trees.flatten(small.split(small.make()[1])[0])[path]
    end, average, gradients = (
        np.asarray(trees.flatten(tree)[path])
        for tree in (state.params, state.eval_params, state.opt_state[0].trace)
    )
    middle = end + RATE * gradients
    # The decays of the warm-up are 1/10 and 2/11.
    expected = start * 0.1 + middle * 0.9
    expected = expected * 2 / 11 + end * 9 / 11
    np.testing.assert_allclose(average, expected, atol=1e-7)
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
