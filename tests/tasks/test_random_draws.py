"""What is drawn for examples: how often which timestep."""

import jax
import numpy as np
import pytest

from medjax.diffusion.objective import ObjectiveConfig
from medjax.diffusion.schedule import make_schedule
from medjax.errors import UserError
from medjax.tasks.random_draws import draw_timesteps

SCHEDULE = make_schedule({"num_train_timesteps": 20})


def shares(**config):
    """Return how often each timestep comes, of 40,000."""
    keys = jax.random.split(jax.random.key(3), 40_000)
    drawn = draw_timesteps(SCHEDULE, ObjectiveConfig(**config), keys)
    return np.bincount(drawn, minlength=20) / len(keys)


def test_timesteps_come_alike_often():
    np.testing.assert_allclose(shares(), 1 / 20, atol=0.005)


@pytest.mark.parametrize("multiplier", [3.0, 0.5])
def test_the_noisiest_timesteps_come_more_often(multiplier):
    drawn = shares(timestep_bias_multiplier=multiplier, timestep_bias_portion=0.35)
    whole = 13 + 7 * multiplier
    np.testing.assert_allclose(drawn[:13], 1 / whole, atol=0.006)
    np.testing.assert_allclose(drawn[13:], multiplier / whole, atol=0.006)


def test_any_portion_has_the_last_timestep():
    drawn = shares(timestep_bias_multiplier=9.0, timestep_bias_portion=0.001)
    assert drawn[-1] > 5 * drawn[-2]


@pytest.mark.parametrize(
    "option",
    [
        {"timestep_bias_multiplier": 0.0},
        {"timestep_bias_multiplier": float("inf")},
        {"timestep_bias_portion": 0.0},
        {"timestep_bias_portion": 1.0},
    ],
)
def test_a_bias_out_of_its_range_is_refused(option):
    with pytest.raises(UserError, match=f"^{next(iter(option))}="):
        ObjectiveConfig(**option)
