"""Adapters train in place of their base, which stays as it is."""

import dataclasses

import jax
import numpy as np
import pytest

from medjax import trees
from medjax.models.lora import is_adapter
from medjax.tasks.adapters import merge_adapters
from tests.saved_runs import drawn
from tests.tasks.adapted import CONFIGS, SAVED, batch, made, run_adapted

KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def reference():
    return run_adapted()


def losses(task, params, frozen, train=True):
    keys = jax.random.split(KEY, 8)

    @jax.jit
    def loss(params, frozen, batch):
        return task.loss(params, frozen, batch, keys, train).losses

    return np.asarray(loss(params, frozen, batch()))


@pytest.mark.release
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.usefixtures("optimized")
def test_at_first_the_base_is_what_it_was(train, dtype):
    task, params, frozen = made()
    dtype = jax.numpy.dtype(dtype)
    text_encoder = task.model.text_encoder
    config = dataclasses.replace(text_encoder.config, dtype=dtype)
    model = dataclasses.replace(
        task.model,
        unet=task.model.unet.clone(dtype=dtype),
        text_encoder=text_encoder.clone(config=config),
    )
    task = dataclasses.replace(task, model=model)
    base = trees.split(trees.merge(params, frozen), is_adapter)[1]
    plain = dataclasses.replace(task, adapters={})
    np.testing.assert_array_equal(
        losses(task, params, frozen, train), losses(plain, base, {}, train)
    )


@pytest.mark.ci
def test_only_adapters_and_named_layers_train(reference):
    _, state, frozen = reference
    _, params, before = made()
    flat = trees.flatten(params)
    assert {path for path in flat if not is_adapter(path)} == set(SAVED)
    for path, leaf in trees.flatten(before).items():
        np.testing.assert_array_equal(trees.flatten(frozen)[path], leaf)
    for path, leaf in trees.flatten(state.params).items():
        assert leaf.dtype == np.float32
        assert (np.asarray(leaf) != flat[path]).any(), path


@pytest.mark.ci
def test_merged_they_give_the_same_and_without_they_do_not(reference):
    _, state, frozen = reference
    task, _, _ = made()
    nets = jax.device_get(trees.merge(state.params, frozen))
    merged = {
        name: merge_adapters(net, CONFIGS[name]) if name in CONFIGS else net
        for name, net in nets.items()
    }
    plain = dataclasses.replace(task, adapters={})
    with_adapters = losses(task, state.params, frozen, train=False)
    np.testing.assert_allclose(
        with_adapters, losses(plain, merged, {}, train=False), rtol=1e-5
    )
    # The scale is in both.
    assert CONFIGS["unet"].scale == 2
    base = trees.split(nets, is_adapter)[1]
    without = losses(plain, base, {}, train=False)
    assert np.abs(without / with_adapters - 1).max() > 1e-3


@pytest.mark.release
def test_each_networks_dropout_is_heard_in_training_alone():
    task, params, frozen = made()
    # Not zero, as B is before training.
    params = drawn(params, seed=0)

    def found(train, **dropouts):
        adapters = {
            name: dataclasses.replace(CONFIGS[name], dropout=dropout)
            for name, dropout in dropouts.items()
        }
        changed = dataclasses.replace(task, adapters=adapters)
        return losses(changed, params, frozen, train)

    none = found(True, unet=0.0, text_encoder=0.0)
    unet = found(True, unet=0.3, text_encoder=0.0)
    text = found(True, unet=0.0, text_encoder=0.3)
    assert (none != unet).all()
    # Some examples have lost their caption, and hear nothing of its adapters there.
    assert (none != text).any() and (unet != text).any()
    np.testing.assert_array_equal(
        found(False, unet=0.3, text_encoder=0.3),
        losses(task, params, frozen, False),
    )
