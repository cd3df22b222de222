"""Samplers: exact where the answer is known, and diffusers' trajectories elsewhere."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.diffusion import samplers
from medjax.diffusion import schedule as S
from medjax.diffusion.schedulers import SAMPLERS, own_sampler, scheduler_config
from medjax.errors import UserError
from tests.diffusion.test_schedule import SD15, TYPES

SPACINGS = ("leading", "linspace", "trailing")
DETERMINISTIC = ("ddim", "pndm", "euler", "dpmpp_2m", "dpmpp_2m_karras", "unipc")


def like_a_network(z, t, xp):
    """Return an output that depends on everything, and is smooth as a network's is."""
    return xp.tanh(z) * (0.8 + t / 2000) + 0.1 * xp.sin(3 * z + t / 100)


def ours(name, config, steps, noise, fresh=None, eta=0.0, begin=0):
    schedule = S.make_schedule(config)
    plan = samplers.make_plan(name, schedule, steps, eta, begin)
    fresh = None if fresh is None else jnp.asarray(fresh)

    def denoise_fn(z, t, step):
        return like_a_network(z, t.reshape(-1, 1, 1, 1), jnp)

    start = plan.noise_scale * jnp.asarray(noise)
    noise_fn = None if fresh is None else lambda step: fresh[step]
    return np.asarray(samplers.sample(plan, denoise_fn, start, noise_fn))


def theirs(name, config, steps, noise, fresh=None, eta=None):
    """Return what diffusers' scheduler of that name makes of the same noise."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    kind = getattr(diffusers, SAMPLERS[name].scheduler)
    karras = {"use_karras_sigmas": True} if name.endswith("karras") else {}
    known = set(kind().config) | {"_class_name"}
    scheduler = kind(**{k: x for k, x in (config | karras).items() if k in known})
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        # Karras's spacing may name a timestep twice, and diffusers then begins late.
        scheduler.set_begin_index(0)
    z = torch.from_numpy(noise) * scheduler.init_noise_sigma
    drawn = iter([] if fresh is None else fresh)

    def draw(*args, **kwargs):
        return torch.from_numpy(next(drawn))

    module = __import__(kind.__module__, fromlist=["randn_tensor"])
    with pytest.MonkeyPatch.context() as patch:
        if fresh is not None:
            # Those without fresh noise do not have it.
            patch.setattr(module, "randn_tensor", draw, raising=False)
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(z, t)
            output = like_a_network(scaled, t, torch)
            options = {} if eta is None else {"eta": eta}
            z = scheduler.step(output, t, z, **options).prev_sample
    return z.numpy()


def relative_error(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def cases():
    for name, kind, spacing, zero_snr in itertools.product(
        SAMPLERS, TYPES, SPACINGS, (False, True)
    ):
        supported = kind in SAMPLERS[name].predictions
        if zero_snr and (kind == "epsilon" or name == "pndm"):
            continue
        if supported:
            number = sum(
                values.index(value)
                for values, value in (
                    (list(SAMPLERS), name),
                    (TYPES, kind),
                    (SPACINGS, spacing),
                )
            )
            yield pytest.param(
                name, kind, spacing, zero_snr,
                id=f"{name}-{kind}-{spacing}{'-zero_snr' * zero_snr}",
                # A Latin square: each pair of values is in `make test`.
                marks=[pytest.mark.ci] if number % 3 else [],
            )  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "spacing", "zero_snr"), list(cases()))
def test_trajectory_is_that_of_diffusers(name, kind, spacing, zero_snr):
    config = SD15 | {
        "prediction_type": kind,
        "timestep_spacing": spacing,
        "rescale_betas_zero_snr": zero_snr,
        "clip_sample": False,
        "skip_prk_steps": True,
    }
    random = np.random.default_rng(0)
    # diffusers' Euler counts zero SNR as a σ of 4096, which costs its float32 digits:
    # in one to three steps it is 1e-4 from the exact answer.
    noise = random.standard_normal((2, 4, 4, 3), np.float32)
    fresh = random.standard_normal((20, *noise.shape), np.float32)
    want = theirs(name, config, 20, noise, fresh)
    assert np.isfinite(want).all()
    assert relative_error(ours(name, config, 20, noise, fresh), want) < 1e-4


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_pndm_with_runge_kutta_steps_is_that_of_diffusers(kind):
    config = SD15 | {"prediction_type": kind, "skip_prk_steps": False}
    noise = np.random.default_rng(0).standard_normal((1, 4, 4, 3), np.float32)
    for steps in (4, 10):
        got, want = (f("pndm", config, steps, noise) for f in (ours, theirs))
        assert relative_error(got, want) < 1e-4
    with pytest.raises(UserError, match="expected 4 or more"):
        samplers.make_plan("pndm", S.make_schedule(config), 3)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_fresh_noise_is_that_of_diffusers(eta):
    random = np.random.default_rng(0)
    noise = random.standard_normal((1, 4, 4, 3), np.float32)
    fresh = random.standard_normal((10, *noise.shape), np.float32)
    got = ours("ddim", SD15 | {"clip_sample": False}, 10, noise, fresh, eta)
    want = theirs("ddim", SD15 | {"clip_sample": False}, 10, noise, fresh, eta)
    assert relative_error(got, want) < 1e-4


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_latents_are_clipped_as_those_of_diffusers(name):
    config = SD15 | {"clip_sample": True, "clip_sample_range": 0.5}
    random = np.random.default_rng(0)
    noise = random.standard_normal((1, 4, 4, 3), np.float32)
    fresh = random.standard_normal((10, *noise.shape), np.float32)
    got, want = (f(name, config, 10, noise, fresh) for f in (ours, theirs))
    assert relative_error(got, want) < 1e-4
    assert relative_error(got, ours(name, SD15, 10, noise, fresh)) > 0.01


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("euler", {"use_karras_sigmas": True}),
        ("euler", {"final_sigmas_type": "sigma_min"}),
        ("dpmpp_2m", {"final_sigmas_type": "sigma_min"}),
        ("dpmpp_2m", {"final_sigmas_type": "sigma_min", "euler_at_final": True}),
        ("dpmpp_2m", {"lambda_min_clipped": -2.0}),
        (
            "dpmpp_2m_karras",
            {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
        ),
        ("unipc", {"use_karras_sigmas": True}),
        ("unipc", {"lower_order_final": False, "final_sigmas_type": "sigma_min"}),
        ("ddpm", {"variance_type": "fixed_large"}),
        ("ddpm", {"variance_type": "fixed_small_log"}),
        ("ddim", {"beta_schedule": "linear", "beta_end": 0.02}),
        ("euler_ancestral", {"beta_schedule": "squaredcos_cap_v2"}),
    ],
)
def test_options_mean_what_they_mean_in_diffusers(name, options):
    config = SD15 | {"clip_sample": False} | options
    random = np.random.default_rng(0)
    noise = random.standard_normal((1, 4, 4, 3), np.float32)
    for steps in (10, 30):
        fresh = random.standard_normal((steps, *noise.shape), np.float32)
        got, want = (f(name, config, steps, noise, fresh) for f in (ours, theirs))
        assert relative_error(got, want) < 1e-4
    assert relative_error(got, ours(name, SD15, 30, noise, fresh)) > 1e-3


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_one_known_image_is_recovered_from_any_noise(name):
    kind = "epsilon" if name == "pndm" else "sample"
    config = SD15 | {"set_alpha_to_one": True, "clip_sample": False}
    schedule = S.make_schedule(config, kind)
    image = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))

    def denoise_fn(z, t, step):
        if kind == "sample":
            return image
        alpha_bar = schedule.alphas_cumprod[t.astype(int)].reshape(-1, 1, 1, 1)
        return (z - jnp.sqrt(alpha_bar) * image) / jnp.sqrt(1 - alpha_bar)

    plan = samplers.make_plan(name, schedule, 10)
    noise = jax.random.normal(jax.random.key(1), image.shape)
    got = samplers.sample(plan, denoise_fn, plan.noise_scale * noise)
    np.testing.assert_allclose(got, image, atol=0.02 if name == "pndm" else 1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_noisy_image_can_be_the_start(name):
    schedule = S.make_schedule(SD15 | {"clip_sample": False})
    image = jax.random.normal(jax.random.key(0), (1, 4, 4, 1))
    plan = samplers.make_plan(name, schedule, 20, begin=15)
    alpha, sigma = plan.first
    start = alpha * image + sigma * jax.random.normal(jax.random.key(1), image.shape)

    def denoise_fn(z, t, step):
        alpha_bar = jnp.interp(t, jnp.arange(1000.0), schedule.alphas_cumprod)
        alpha_bar = alpha_bar.reshape(-1, 1, 1, 1)
        return (z - jnp.sqrt(alpha_bar) * image) / jnp.sqrt(1 - alpha_bar)

    assert 0.1 < sigma < 0.9
    got = samplers.sample(plan, denoise_fn, start, lambda step: jnp.zeros_like(image))
    np.testing.assert_allclose(got, image, atol=0.1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_configuration_that_is_written_samples_the_same(name):
    diffusers = pytest.importorskip("diffusers")
    schedule = S.make_schedule(SD15 | {"clip_sample": False, "_class_name": "x"})
    written = scheduler_config(name, schedule)
    assert own_sampler(S.make_schedule(written)) == name.removesuffix("_karras")
    known = set(getattr(diffusers, written["_class_name"])().config)
    assert set(written) - known == {"_class_name"}
    plans = [
        samplers.make_plan(one, S.make_schedule(config), 10)
        for one, config in ((name, SD15 | {"clip_sample": False}), (name, written))
    ]
    np.testing.assert_array_equal(plans[0].updates, plans[1].updates)
    np.testing.assert_array_equal(plans[0].timesteps, plans[1].timesteps)


@pytest.mark.parametrize(
    ("name", "config", "steps", "message"),
    [
        ("unpic", {}, 10, "unknown sampler 'unpic'.*did you mean 'unipc'"),
        ("ddim", {}, 0, "expected 1 to 1000"),
        ("ddim", {}, 1001, "expected 1 to 1000"),
        (
            "ddim",
            {"steps_offset": 1},
            1000,
            "begin at timestep 1000, but .* below 1000",
        ),
        ("unipc", {}, 1000, "unipc cannot use 1000 steps.*Use fewer steps"),
        ("ddim", {"timestep_spacing": "lead"}, 10, "timestep_spacing='lead'"),
        (
            "pndm",
            {"prediction_type": "sample"},
            10,
            "pndm does not support prediction_type=sample",
        ),
        ("dpmpp_2m", {"thresholding": True}, 10, "thresholding=True; expected False"),
        ("dpmpp_2m", {"variance_type": "learned"}, 10, "variance_type='learned'"),
        ("unipc", {"solver_order": 3}, 10, "solver_order=3; expected 2"),
        (
            "ddim",
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            10,
            "zero SNR",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(name, config, steps, message):
    schedule = S.make_schedule(SD15 | {"steps_offset": 0} | config)
    with pytest.raises(UserError, match=message):
        samplers.make_plan(name, schedule, steps)


def test_a_scheduler_that_we_lack_is_named():
    with pytest.raises(UserError, match="own scheduler is HeunDiscreteScheduler"):
        own_sampler(S.make_schedule({"_class_name": "HeunDiscreteScheduler"}))


@pytest.mark.parametrize(("name", "evaluations"), [("ddim", 3), ("pndm", 4)])
def test_every_stage_shows_something_however_short_the_plan(name, evaluations):
    schedule = S.make_schedule({**SD15, "skip_prk_steps": True})
    plan = samplers.make_plan(name, schedule, steps=10, begin=7)
    start = jnp.ones((1, 2))

    def denoise_fn(z, t, step):
        return 0.1 * jnp.tanh(z) + t[:, None] / 1e4

    result = samplers.sample(plan, denoise_fn, start)
    for frames in (2, 8):
        stages = samplers.trace(plan, denoise_fn, start, None, frames)
        assert len(stages) == min(frames, evaluations + 1)
        np.testing.assert_array_equal(stages[0], start)
        np.testing.assert_allclose(stages[-1], result, rtol=1e-6)
        # A stage that nothing wrote to would be zero, which decodes to a blank.
        assert (jnp.abs(stages).max(axis=(1, 2)) > 0).all()
