"""Adapters train in place of their base, which stays as it is, on any mesh."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from medjax import meshes, trees
from medjax.models.lora import is_adapter
from medjax.tasks.adapters import AdapterConfig, merge_adapters
from medjax.training.step import init_state, make_train_step
from tests.tasks import small

pytestmark = pytest.mark.devices(8)

KEY = jax.random.key(7)
CONFIGS = {
    "unet": AdapterConfig(rank=2, alpha=4.0, dropout=0.3, modules_to_save=("conv_in",)),
    "text_encoder": AdapterConfig(rank=1, dropout=0.2),
}
SAVED = ("unet/conv_in/kernel", "unet/conv_in/bias")
DIFFUSION = {"min_snr_gamma": 5.0, "caption_dropout": 0.5}


def made(**changes):
    configs = {
        name: dataclasses.replace(config, **changes) for name, config in CONFIGS.items()
    }
    return small.make_adapted(configs, SAVED, **DIFFUSION)


def batch(**options):
    drawn = small.batch(**options)
    del drawn["conditioning_image"]
    return jax.tree.map(jax.numpy.asarray, drawn)


def run(mesh_sizes=(1, 1, 1), accumulation=1):
    """Train two steps by SGD whose momentum is the sum of all gradients."""
    task, params, frozen = made()
    count = int(np.prod(mesh_sizes))
    mesh = meshes.make_mesh(meshes.MeshConfig(*mesh_sizes), jax.devices()[:count])
    optimizer = optax.sgd(0.1, momentum=1.0)
    state = init_state(params, {}, optimizer, mesh, False)
    frozen = jax.device_put(frozen, meshes.param_shardings(frozen, mesh))
    step = make_train_step(task, optimizer, mesh, accumulation_steps=accumulation)
    losses = []
    for i in range(2):
        placed = meshes.place_batch(batch(seed=i), mesh)
        state, metrics = step(state, frozen, placed, KEY)
        losses.append(float(metrics["loss"]))
    return np.array(losses), state, frozen


@pytest.fixture(scope="module")
def reference():
    return run()


def losses(task, params, frozen, train=True):
    keys = jax.random.split(KEY, 8)

    @jax.jit
    def loss(params, frozen):
        return task.loss(params, frozen, batch(), keys, train).losses

    return np.asarray(loss(params, frozen))


@pytest.mark.parametrize(
    ("dtype", "train"),
    [
        ("float32", False),
        pytest.param("bfloat16", True, marks=pytest.mark.release),
        pytest.param("float32", True, marks=pytest.mark.release),
        pytest.param("bfloat16", False, marks=pytest.mark.release),
    ],
)
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


@pytest.mark.parametrize(
    ("mesh", "accumulation"),
    [
        pytest.param((1, 1, 1), 4, marks=pytest.mark.release),
        pytest.param((2, 2, 2), 2, marks=pytest.mark.release),
    ],
)
def test_masks_do_not_depend_on_mesh_or_accumulation(reference, mesh, accumulation):
    found, state, _ = run(mesh, accumulation)
    np.testing.assert_allclose(found, reference[0], rtol=1e-5)
    ours, theirs = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(s.opt_state[0])])
        for s in (state, reference[1])
    )
    assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


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


def test_each_networks_dropout_is_heard_in_training_alone(reference):
    _, state, frozen = reference
    task, _, _ = made()

    def found(train, **dropouts):
        adapters = {
            name: dataclasses.replace(CONFIGS[name], dropout=dropout)
            for name, dropout in dropouts.items()
        }
        changed = dataclasses.replace(task, adapters=adapters)
        return losses(changed, state.params, frozen, train)

    none = found(True, unet=0.0, text_encoder=0.0)
    unet = found(True, unet=0.3, text_encoder=0.0)
    text = found(True, unet=0.0, text_encoder=0.3)
    assert (none != unet).all()
    # Some examples have lost their caption, and hear nothing of its adapters there.
    assert (none != text).any() and (unet != text).any()
    np.testing.assert_array_equal(
        found(False, unet=0.3, text_encoder=0.3),
        losses(task, state.params, frozen, False),
    )
