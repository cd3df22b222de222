"""DDIM: exact where the answer is known, and diffusers' trajectory elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.diffusion import samplers
from medjax.diffusion import schedule as S
from medjax.errors import UserError
from tests.diffusion.test_schedule import SD15, TYPES


def test_one_known_image_is_recovered_from_any_noise():
    schedule = S.make_schedule(SD15, "sample")
    image = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
    noise = jax.random.normal(jax.random.key(1), image.shape)
    got = samplers.ddim(lambda z, t: image, schedule, noise, 10)
    # SD's schedule ends one step short of the clean image.
    alpha_bar = schedule.alphas_cumprod[0]
    assert jnp.abs(got - jnp.sqrt(alpha_bar) * image).max() < 0.15
    exact = S.make_schedule({**SD15, "set_alpha_to_one": True}, "sample")
    got = samplers.ddim(lambda z, t: image, exact, noise, 10)
    np.testing.assert_allclose(got, image, atol=1e-5)


def test_steps_beyond_the_schedule_are_refused():
    schedule = S.make_schedule({**SD15, "steps_offset": 1})
    assert samplers.leading_timesteps(schedule, 500)[0] == 999
    with pytest.raises(UserError, match="begin at timestep 1000 of 1000"):
        samplers.leading_timesteps(schedule, 1000)


def test_a_schedule_that_asks_for_other_spacing_is_refused():
    schedule = S.make_schedule({**SD15, "timestep_spacing": "trailing"})
    with pytest.raises(UserError, match="timestep_spacing is 'trailing'"):
        samplers.leading_timesteps(schedule, 10)


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_that_there_are_not_are_refused(steps):
    with pytest.raises(UserError, match="expected 1 to 1000"):
        samplers.leading_timesteps(S.make_schedule(SD15), steps)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_trajectory_is_that_of_diffusers(kind, steps):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    config = {**SD15, "prediction_type": kind, "clip_sample": False}
    theirs = diffusers.DDIMScheduler(**config)
    theirs.set_timesteps(steps)
    noise = np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32)
    latents = torch.from_numpy(noise)
    for t in theirs.timesteps:
        output = torch.tanh(latents) * (1 + t / 1000)
        latents = theirs.step(output, t, latents).prev_sample
    ours = samplers.ddim(
        lambda z, t: jnp.tanh(z) * (1 + t / 1000).reshape(-1, 1, 1, 1),
        S.make_schedule(config),
        jnp.asarray(noise),
        steps,
    )
    error = np.linalg.norm(ours - latents.numpy()) / np.linalg.norm(latents.numpy())
    assert error < 1e-4
