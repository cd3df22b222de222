"""Diffusion without a text: its latents, its norms, its classes, its samples."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import trees
from medjax.data.phantoms import PhantomSource
from medjax.diffusion import samplers
from medjax.diffusion.objective import ScheduledDiffusionConfig
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.errors import UserError
from medjax.tasks import image_diffusion, latent_scaling
from medjax.tasks.image_diffusion import ImageDiffusion
from medjax.tasks.unconditional import UnconditionalConfig
from medjax.training.step import example_keys
from tests.tasks import scratch

encode = jax.jit(latent_scaling.encode, static_argnums=0)
decode = jax.jit(latent_scaling.decode, static_argnums=0)


@functools.cache
def compiled(task, train):
    return jax.jit(lambda p, f, b, k: task.loss(p, f, b, k, train))


def loss(assembly, batch, keys, train=False):
    frozen = trees.merge(assembly.frozen, assembly.statistics)
    return compiled(assembly.task, train)(assembly.params, frozen, batch, keys)


@pytest.mark.ci
def test_an_examples_loss_depends_on_it_and_its_key_alone():
    assembly = scratch.unconditional(classes=("a", "b"))
    batch, keys = scratch.batch(labels=True), example_keys(scratch.KEY, 3, 4)
    whole = loss(assembly, batch, keys).losses
    # The first stays where it was; others take the place of the rest.
    others = scratch.batch(labels=True, seed=5)
    mixed = {n: rows.at[1:].set(others[n][1:]) for n, rows in batch.items()}
    mixed_keys = keys.at[1:].set(example_keys(scratch.KEY, 4, 4)[1:])
    found = loss(assembly, mixed, mixed_keys).losses
    np.testing.assert_allclose(found[0], whole[0], rtol=1e-5)
    assert (found[1:] != whole[1:]).all()


@pytest.mark.ci
def test_latents_have_unit_variance_on_the_training_set():
    book = scratch.vq_vae()
    # Far from unit variance, and from zero mean.
    params = jax.tree.map(lambda x: x, book.params)
    params["network"]["encoder"]["quant_conv"]["bias"] += 5.0
    trained = scratch.trained(dataclasses.replace(book, params=params))
    assembly = scratch.unconditional(autoencoder=trained)
    source = PhantomSource("train", 16, 40)
    records = np.stack([source[i]["image"] for i in range(len(source))])
    images = jnp.asarray(records / 127.5 - 1, jnp.float32)
    nets = trees.merge(assembly.frozen, assembly.statistics)
    keys = jax.random.split(scratch.KEY, 40)
    latents = jax.jit(assembly.task.encode)(nets, images, keys)
    axes = (0, 1, 2)
    np.testing.assert_allclose(latents.var(axes), 1.0, atol=0.01)
    np.testing.assert_allclose(latents.mean(axes), 0.0, atol=0.01)
    # The original did not scale them.
    unscaled = encode(
        trained.module, trained.weights, latent_scaling.with_channels(images, 1), keys
    )
    assert (jnp.abs(unscaled.mean(axes)) > 0.1).all()


@pytest.mark.ci
def test_the_loss_is_of_scaled_latents(monkeypatch):
    assembly = scratch.latent_diffusion()
    seen, add = [], image_diffusion.add_drawn_noise
    monkeypatch.setattr(
        image_diffusion,
        "add_drawn_noise",
        lambda schedule, objective, latents, *keys: (
            seen.append(latents) or add(schedule, objective, latents, *keys)
        ),
    )
    source = PhantomSource("train", 16, 40)
    records = np.stack([source[i]["image"] for i in range(len(source))])
    images = jnp.asarray(records / 127.5 - 1, jnp.float32)
    frozen = trees.merge(assembly.frozen, assembly.statistics)
    keys = jax.random.split(scratch.KEY, 40)

    @jax.jit
    def latents(params, frozen, images):
        assembly.task.loss(params, frozen, {"images": images}, keys, False)
        return seen.pop()

    found = latents(assembly.params, frozen, images)
    np.testing.assert_allclose(found.var((0, 1, 2)), 1.0, atol=0.01)
    np.testing.assert_allclose(found.mean((0, 1, 2)), 0.0, atol=0.01)


def test_an_autoencoder_that_collapsed_is_told():
    book = scratch.vq_vae()
    params = jax.tree.map(lambda x: x, book.params)
    conv = params["network"]["encoder"]["quant_conv"]
    conv["kernel"] = conv["kernel"].copy()
    conv["kernel"][..., 1] = 0.0
    collapsed = scratch.trained(dataclasses.replace(book, params=params))
    with pytest.raises(UserError, match="do not vary in channel 1"):
        scratch.unconditional(autoencoder=collapsed)


def test_what_is_encoded_is_decoded_to_the_same():
    trained = scratch.trained(scratch.vq_vae())
    assembly = scratch.latent_diffusion()
    nets = trees.merge(assembly.frozen, assembly.statistics)
    images = scratch.batch()["images"]
    keys = jax.random.split(scratch.KEY, 4)
    latents = jax.jit(assembly.task.encode)(nets, images, keys)
    gray = latent_scaling.with_channels(images, 1)
    own = encode(trained.module, trained.weights, gray, keys)
    np.testing.assert_allclose(
        jax.jit(assembly.task.decode)(nets, latents),
        decode(trained.module, trained.weights, own),
        atol=1e-4,
    )


@pytest.mark.ci
def test_validation_reads_running_averages_and_training_renews_them():
    assembly = scratch.unconditional(scratch.CONV)
    batch, keys = scratch.batch(), example_keys(scratch.KEY, 0, 4)
    trained = loss(assembly, batch, keys, train=True)
    assert set(trained.observed) == {"batch_stats"}
    assert loss(assembly, batch, keys).observed == {}
    new, said = assembly.task.follow(assembly.statistics, trained.observed, scratch.KEY)
    assert said == {}
    old = trees.flatten(assembly.statistics)
    assert all((x != old[p]).any() for p, x in trees.flatten(new).items())
    # The original left them in training mode, where a batch's others count.
    alone = {name: rows[:1] for name, rows in batch.items()}
    np.testing.assert_allclose(
        loss(assembly, alone, keys[:1]).losses,
        loss(assembly, batch, keys).losses[:1],
        rtol=1e-4,
    )


def test_classes_are_dropped_in_training_only():
    assembly = scratch.unconditional(classes=("a", "b"), label_dropout=1.0)
    params = jax.tree.map(lambda x: x, assembly.params)
    table = params["unet"]["class_embedding"]["embedding"]
    params["unet"]["class_embedding"]["embedding"] = 50 * table
    assembly = dataclasses.replace(assembly, params=params)
    batch, keys = scratch.batch(labels=True), example_keys(scratch.KEY, 0, 4)
    other = batch | {"labels": 1 - batch["labels"]}

    def losses(given, train):
        return loss(assembly, given, keys, train).losses

    np.testing.assert_array_equal(losses(batch, True), losses(other, True))
    assert (losses(batch, False) != losses(other, False)).any()


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("pixels", marks=pytest.mark.ci),
        pytest.param("latents", marks=pytest.mark.ci),
        "batch norm",
    ],
)
def test_samples_are_a_pure_function_of_their_key(kind):
    if kind == "latents":
        assembly = scratch.latent_diffusion()
    else:
        model = scratch.CONV if kind == "batch norm" else scratch.UNET
        assembly = scratch.unconditional(model)
    # Running averages that no batch has: drawing goes by these.
    statistics = jax.tree.map(lambda x: 1.3 * x + 0.2, assembly.statistics)
    nets = trees.merge(assembly.params, trees.merge(assembly.frozen, statistics))
    keys = jax.random.split(scratch.KEY, 3)
    sampling = SamplingConfig(sampler="ddpm", steps=4, guidance_scale=1.0)

    @functools.partial(jax.jit, static_argnames="frames")
    def drawn(nets, keys, frames):
        return assembly.task.draw(nets, keys, (16, 16), None, sampling, frames)

    def draw(keys, frames=1):
        return drawn(nets, keys, frames)

    images = draw(keys)
    assert images.shape == (1, 3, 16, 16, 1)
    assert jnp.abs(images).max() <= 1
    np.testing.assert_allclose(draw(keys[::-1])[:, ::-1], images, atol=1e-4)
    # Others in its place change nothing for the first.
    others = keys.at[1:].set(jax.random.split(jax.random.key(9), 2))
    np.testing.assert_allclose(draw(others)[:, :1], images[:, :1], atol=1e-4)
    frames = draw(keys, 3)
    assert frames.shape == (3, 3, 16, 16, 1)
    np.testing.assert_allclose(frames[-1], images[0], atol=1e-5)
    assert jnp.abs(frames[0] - frames[1]).max() > 0.01


@pytest.mark.ci
def test_guidance_leads_away_from_no_class(monkeypatch):
    assembly = scratch.unconditional(classes=("a", "b"))
    nets = trees.merge(assembly.params, assembly.statistics)
    keys, labels = jax.random.split(scratch.KEY, 2), jnp.array([0, 1])

    def draw(scale):
        sampling = SamplingConfig(steps=2, guidance_scale=scale)
        return jax.jit(
            lambda nets: assembly.task.draw(nets, keys, (16, 16), labels, sampling)
        )(nets)

    assert jnp.abs(draw(1.0) - draw(5.0)).max() > 1e-4
    # A network that says a number a class, last of none.
    said = jnp.array([0.1, 0.3, -0.2])

    def denoise(self, nets, z, timesteps, labels, train=False):
        return jnp.ones_like(z) * said[labels][:, None, None, None], nets

    monkeypatch.setattr(type(assembly.task), "_denoise", denoise)
    guided = draw(3.0)
    said = said[2] + 3 * (said - said[2])
    np.testing.assert_allclose(guided, draw(1.0), atol=1e-6)
    assert len(np.unique(guided)) > 2


def test_pixels_are_clipped_at_each_step_and_latents_never(monkeypatch):
    seen = []
    trace = samplers.trace
    monkeypatch.setattr(
        samplers, "trace", lambda plan, *rest: seen.append(plan) or trace(plan, *rest)
    )
    sampling = SamplingConfig(steps=2)
    for assembly in (scratch.unconditional(), scratch.latent_diffusion()):
        nets = trees.merge(
            assembly.params, trees.merge(assembly.frozen, assembly.statistics)
        )
        keys = jax.random.split(scratch.KEY, 1)
        draw = functools.partial(assembly.task.draw, labels=None, sampling=sampling)
        jax.eval_shape(functools.partial(draw, size=(16, 16)), nets, keys)
    # The original clamped its latents to ±1, and began with noise of another size.
    assert [plan.clip for plan in seen] == [1.0, None]
    assert [plan.noise_scale for plan in seen] == [1.0, 1.0]


def test_a_network_that_knows_normal_data_draws_normal_data(monkeypatch):
    """Noise of another size, a clamp, or steps made twice would not."""
    assembly = scratch.latent_diffusion()
    cumulative = jnp.asarray(assembly.task.schedule.alphas_cumprod)

    def knows(self, nets, z, timesteps, labels, train=False):
        sigma = jnp.sqrt(1 - cumulative[timesteps.astype(int)])
        return sigma[:, None, None, None] * z, {}

    monkeypatch.setattr(ImageDiffusion, "_denoise", knows)
    monkeypatch.setattr(ImageDiffusion, "decode", lambda self, nets, z: z)
    keys = jax.random.split(scratch.KEY, 100)
    sampling = SamplingConfig(sampler="ddpm", steps=250, guidance_scale=1.0)
    draw = jax.jit(
        lambda keys: assembly.task.draw({}, keys, (16, 16), None, sampling, 3)
    )
    for stage in np.asarray(draw(keys)):
        assert stage.std() == pytest.approx(1, abs=0.03)
        assert (np.abs(stage) > 1).mean() == pytest.approx(0.317, abs=0.02)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"channels": 2}, "channels=2: expected 1 or 3"),
        (
            {"architecture": "conv_unet", "remat": "full"},
            "remat=full: does not apply to arch",
        ),
        ({"architecture": "conv_unet", "norm_num_groups": 8}, "norm_num_groups=8"),
        ({"residual": True}, "residual=True: applies only to"),
        ({"autoencoder_config": "x.py"}, "but autoencoder is None"),
    ],
)
def test_what_does_not_apply_is_refused(fields, said):
    with pytest.raises(UserError, match=said):
        UnconditionalConfig(**fields)


def test_sizes_that_cannot_be_halved_are_told():
    with pytest.raises(
        UserError, match="multiple of 2, such as 14 or 16, because the U-Net"
    ):
        scratch.unconditional().task.check(15, SamplingConfig())
    with pytest.raises(UserError, match="multiple of 4, .* 2× and the U-Net .* 2×"):
        scratch.latent_diffusion().task.check(14, SamplingConfig())


def test_guidance_needs_that_a_class_was_left_out():
    task = scratch.unconditional(classes=("AD", "NC"), label_dropout=0.0).task
    task.check(16, SamplingConfig(guidance_scale=1.0))
    with pytest.raises(UserError, match="guidance_scale=2: expected 1"):
        task.check(16, SamplingConfig(guidance_scale=2.0))


def test_an_autoencoder_of_other_channels_is_refused():
    trained = scratch.trained(scratch.vq_vae(channels=3))
    with pytest.raises(UserError, match="channels=1: the autoencoder was trained with"):
        scratch.unconditional(autoencoder=trained)


@pytest.mark.parametrize("steps", [5, 30, 50])
def test_drawing_begins_where_noising_ends(steps):
    task = scratch.unconditional().task
    assert task.plan(SamplingConfig(steps=steps)).timesteps[0] == 999


@pytest.mark.parametrize(
    "betas",
    [
        {"beta_start": 0.0},
        {"beta_end": 1.0},
        {"beta_start": 0.02, "beta_end": 0.01},
    ],
)
def test_noise_that_is_none_or_all_is_refused(betas):
    with pytest.raises(UserError, match="0 < beta_start <= beta_end < 1"):
        ScheduledDiffusionConfig(**betas)
