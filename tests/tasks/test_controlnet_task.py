"""The ControlNet task: what an example's loss may and may not depend on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import trees
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.tasks.controlnet import ControlNetConfig, _trains
from medjax.training.step import example_keys
from tests.tasks import small

BATCH = 8


@pytest.fixture(scope="module")
def world():
    task, weights = small.make(caption_dropout=0.5)
    return task, *small.split(weights)


@functools.cache
def compiled(task, train):
    return jax.jit(lambda p, f, b, k: task.loss(p, f, b, k, train).losses)


def losses(task, params, frozen, batch, keys, train=False):
    return np.asarray(compiled(task, train)(params, frozen, batch, keys))


def keys_of(step):
    return example_keys(jax.random.key(0), step, BATCH)


@pytest.mark.ci
def test_an_examples_loss_depends_on_it_and_its_key_alone(world):
    task, params, frozen = world
    batch, others = small.batch(BATCH), small.batch(BATCH, seed=5)
    keys, other_keys = keys_of(3), keys_of(4)
    whole = losses(task, params, frozen, batch, keys)
    kept = np.arange(BATCH) % 3 == 0
    mixed = {
        name: np.where(kept.reshape(-1, *[1] * (rows.ndim - 1)), rows, others[name])
        for name, rows in batch.items()
    }
    mixed_keys = jnp.where(kept, keys, other_keys)
    found = losses(task, params, frozen, mixed, mixed_keys)
    np.testing.assert_allclose(found[kept], whole[kept], rtol=1e-5)
    assert (np.abs(found - whole)[~kept] > 1e-3).all()
    other = losses(task, params, frozen, batch, other_keys)
    assert (np.abs(other - whole) > 1e-3).all()


def test_all_inputs_matter(world):
    task, params, frozen = world
    batch, keys = small.batch(BATCH), keys_of(0)
    whole = losses(task, params, frozen, batch, keys)
    for name, rows in small.batch(BATCH, seed=9).items():
        changed = losses(task, params, frozen, {**batch, name: rows}, keys)
        assert (changed != whole).all(), name


@pytest.mark.ci
def test_captions_are_dropped_in_training_only(world):
    task, params, frozen = world
    batch, keys = small.batch(BATCH), keys_of(0)
    without = {**batch, "text_ids": np.zeros_like(batch["text_ids"])}
    given = losses(task, params, frozen, batch, keys)
    none = losses(task, params, frozen, without, keys)
    trained = losses(task, params, frozen, batch, keys, train=True)
    dropped = np.isclose(trained, none, rtol=1e-6)
    assert (dropped | np.isclose(trained, given, rtol=1e-6)).all()
    assert 2 <= dropped.sum() <= BATCH - 2


@pytest.mark.ci
def test_masked_pixels_reach_the_loss_only_through_the_networks(world):
    task, params, frozen = world
    batch, keys = small.batch(BATCH), keys_of(0)
    ones = np.ones((BATCH, 8, 8, 1), np.float32)
    whole = losses(task, params, frozen, batch, keys)
    masked = losses(task, params, frozen, {**batch, "loss_mask": ones}, keys)
    np.testing.assert_allclose(masked, whole, rtol=1e-5)
    half = ones.copy()
    half[:, :4] = 0
    masked = losses(task, params, frozen, {**batch, "loss_mask": half}, keys)
    assert (np.abs(masked - whole) > 1e-4).all()


@pytest.mark.ci
@pytest.mark.parametrize("option", [{"min_snr_gamma": 0.05}, {"noise_offset": 0.3}])
def test_options_change_the_loss(world, option):
    task, params, frozen = world
    batch, keys = small.batch(BATCH), keys_of(0)
    changed = small.make(**option)[0]
    plain = losses(task, params, frozen, batch, keys)
    assert (losses(changed, params, frozen, batch, keys) != plain).any()


@pytest.mark.ci
def test_only_the_networks_that_train_get_a_gradient(world):
    task, params, frozen = world
    batch, keys = small.batch(BATCH), keys_of(0)

    def loss(params, frozen, batch):
        return task.loss(params, frozen, batch, keys, True).losses.mean()

    gradient = jax.jit(jax.grad(loss))(params, frozen, batch)
    flat = trees.flatten(gradient)
    assert {path.split("/")[0] for path in flat} == {"controlnet"}
    assert [path for path, leaf in flat.items() if not (leaf != 0).any()] == []


@pytest.mark.ci
def test_samples_follow_their_own_key_and_condition(world):
    task, params, frozen = world
    batch, keys = small.batch(2), example_keys(jax.random.key(0), 0, 2)
    sampling = SamplingConfig(steps=3, guidance_scale=2.0)
    sample = jax.jit(lambda b, k: task.sample(params, frozen, b, k, sampling))
    images = sample(batch, keys)["generated"]
    assert images.shape == (2, 8, 8, 3)
    assert jnp.abs(images).max() <= 1
    swapped = sample({n: rows[::-1] for n, rows in batch.items()}, keys[::-1])
    swapped = swapped["generated"]
    np.testing.assert_allclose(swapped[::-1], images, atol=1e-4)
    other = sample({**batch, **{"conditioning_image": batch["images"]}}, keys)
    other = other["generated"]
    assert (jnp.abs(other - images).max(axis=(1, 2, 3)) > 1e-3).all()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, [False, False]),
        ({"sd_locked": False}, [False, True]),
        ({"train_unet": True}, [True, True]),
    ],
)
def test_locks(config, expected):
    model = ControlNetConfig(**config)
    paths = ["unet/down_blocks_0/resnets_0/conv1/bias", "unet/up_blocks_0/x/kernel"]
    assert [_trains(path, model) for path in paths] == expected
    assert _trains("controlnet/conv_in/kernel", model)
    assert not _trains("vae/decoder/conv_in/kernel", model)
    assert not _trains("text_encoder/text_model/x/kernel", model)
