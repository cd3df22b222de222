"""A step: equal in microbatches, and nothing frozen moves; see also test_meshes.py."""

import jax
import numpy as np
import pytest

from medjax import trees
from medjax.training.step import example_keys
from tests.tasks import small
from tests.training.two_steps import RATE, assert_same, run_controlnet

KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def reference():
    return run_controlnet()


@pytest.mark.ci
@pytest.mark.parametrize(
    "accumulation", [pytest.param(2, marks=pytest.mark.release), 8]
)
def test_accumulation_equals_the_whole_batch(reference, accumulation):
    assert_same(run_controlnet(accumulation=accumulation), reference)


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
    # During the warm-up, the decays are 1/10 and 2/11.
    expected = start * 0.1 + middle * 0.9
    expected = expected * 2 / 11 + end * 9 / 11
    np.testing.assert_allclose(average, expected, atol=1e-7)
    assert np.abs(average - end).max() > 1e-6


def test_no_two_examples_or_steps_share_a_key():
    keys = [example_keys(KEY, step, 16) for step in range(4)]
    data = np.concatenate([jax.random.key_data(k) for k in keys])
    assert len(np.unique(data, axis=0)) == 64
