"""Schedules: identities between predictions, and diffusers' numbers."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.diffusion import schedule as S
from medjax.diffusion.objective import (
    DiffusionConfig,
    ScheduledDiffusionConfig,
    check_objective,
    errors,
    min_snr_weights,
)
from medjax.errors import UserError

TYPES = ("epsilon", "v_prediction", "sample")
SD15 = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


def draw(seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    latents, noise = (jax.random.normal(k, (4, 3, 5, 2)) for k in keys)
    return latents, noise, jnp.array([0, 10, 500, 999])


@pytest.mark.parametrize("kind", TYPES)
def test_target_denoises_to_what_was_noised(kind):
    schedule = S.make_schedule(SD15, kind)
    latents, noise, t = draw()
    noisy = S.add_noise(schedule, latents, noise, t)
    target = S.target(schedule, latents, noise, t)
    pred_latents, pred_noise = S.denoise(schedule, target, noisy, t)
    np.testing.assert_allclose(pred_latents, latents, atol=2e-4)
    # At t = 0 the noise is a small difference of large numbers.
    np.testing.assert_allclose(pred_noise[1:], noise[1:], atol=2e-4)


@pytest.mark.parametrize("first", TYPES)
@pytest.mark.parametrize("second", TYPES)
def test_conversion_there_and_back_is_the_identity(first, second):
    a, b = S.make_schedule(SD15, first), S.make_schedule(SD15, second)
    noisy, output, _ = draw(1)
    t = jnp.array([30, 100, 500, 900])
    latents, noise = S.denoise(a, output, noisy, t)
    there = S.target(b, latents, noise, t)
    latents, noise = S.denoise(b, there, noisy, t)
    np.testing.assert_allclose(S.target(a, latents, noise, t), output, atol=2e-4)


@pytest.mark.parametrize(
    "beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"]
)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_alphas_are_those_of_diffusers(beta_schedule, zero_snr):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("torch")
    config = {
        **SD15,
        "beta_schedule": beta_schedule,
        "rescale_betas_zero_snr": zero_snr,
    }
    theirs = diffusers.DDIMScheduler(**config).alphas_cumprod.numpy()
    ours = S.make_schedule(config).alphas_cumprod
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-7)
    if zero_snr:
        assert ours[-1] == 0


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'v_prediction'"):
        S.make_schedule({"prediction_type": "v_predicton"})
    with pytest.raises(UserError, match="did you mean 'scaled_linear'"):
        S.make_schedule({"beta_schedule": "scaled_linea"})


@pytest.mark.parametrize("kind", TYPES)
def test_min_snr_weighs_an_error_in_the_latents_alike_whatever_is_predicted(kind):
    # An error e in z_0 is √SNR e in ε and √(SNR + 1) e in v.
    schedule = S.make_schedule(SD15, kind)
    t = jnp.arange(0, 1000, 37)
    weights = min_snr_weights(schedule, t, 5.0)
    ratio = S.snr(schedule, t)
    of_latents = {"epsilon": ratio, "v_prediction": ratio + 1, "sample": 1.0}[kind]
    np.testing.assert_allclose(weights * of_latents, jnp.minimum(ratio, 5.0), rtol=1e-5)


ZERO_SNR = {**SD15, "rescale_betas_zero_snr": True}


def test_min_snr_is_finite_at_zero_snr():
    schedule = S.make_schedule(ZERO_SNR)
    assert jnp.isfinite(min_snr_weights(schedule, jnp.array([999]), 5.0)).all()


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_min_snr_trains_v_where_sampling_starts_from_nothing(gamma):
    schedule = S.make_schedule(ZERO_SNR, "v_prediction")
    t = jnp.arange(1000)
    weights, ratio = min_snr_weights(schedule, t, gamma), S.snr(schedule, t)
    assert ratio[-1] == 0
    assert weights[-1] == 1
    # Everywhere else it is the published weight.
    want = jnp.minimum(ratio, gamma) / (ratio + 1)
    np.testing.assert_array_equal(weights[:-1], want[:-1])


@pytest.mark.parametrize(
    ("predicts", "gamma", "message"),
    [
        ("epsilon", None, "prediction_type=epsilon cannot be trained"),
        ("epsilon", 5.0, "prediction_type=epsilon cannot be trained"),
        ("sample", 5.0, "min_snr_gamma=5 means weight 0 where sampling starts"),
        ("sample", None, None),
        ("v_prediction", None, None),
        ("v_prediction", 5.0, None),
    ],
)
def test_what_trains_nothing_at_zero_snr_is_refused(predicts, gamma, message):
    objective = {"prediction_type": predicts, "min_snr_gamma": gamma}
    schedule = S.make_schedule(ZERO_SNR, predicts)
    with pytest.raises(UserError, match=message) if message else nullcontext():
        check_objective(schedule, DiffusionConfig(**objective))
    check_objective(S.make_schedule(SD15, predicts), DiffusionConfig(**objective))


def test_a_config_of_epsilon_and_zero_snr_is_refused():
    with pytest.raises(UserError, match="prediction_type=epsilon cannot be trained"):
        ScheduledDiffusionConfig(rescale_betas_zero_snr=True)
    # A run from before may have been trained so, and is still read.
    whole = {"rescale_betas_zero_snr": True, "prediction_type": "sample"}
    ScheduledDiffusionConfig(min_snr_gamma=5.0, **whole)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("mse", (0.25, 4.0)), ("l1", (0.5, 2.0)), ("smooth_l1", (0.125, 1.5))],
)
def test_each_error_is_that_computed_by_hand(kind, expected):
    target = jnp.array([0.5, -2.0]).reshape(2, 1, 1, 1)
    both = errors(jnp.zeros((2, 1, 1, 1)), target, kind)
    np.testing.assert_allclose(both, expected, rtol=1e-6)


def test_masked_error_ignores_what_is_masked():
    output = jnp.zeros((1, 2, 2, 3)).at[0, 0, 0].set(100.0)
    target = jnp.ones((1, 2, 2, 3))
    mask = jnp.ones((1, 2, 2, 1)).at[0, 0, 0].set(0.0)
    np.testing.assert_allclose(errors(output, target, mask=mask), [1.0], rtol=1e-6)
    assert errors(output, target)[0] > 1000
