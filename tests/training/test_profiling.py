"""A profile is written whichever of its steps a run does."""

import jax.numpy as jnp
import pytest

from medjax.runs.sections import TrainConfig
from medjax.training.profiling import Profile


@pytest.mark.parametrize(
    ("seen", "written"),
    [
        (range(1, 9), True),
        (range(4, 9), True),  # Resumed between them.
        (range(1, 4), True),  # Ends between them.
        (range(6, 9), False),
        (range(1, 3), False),
    ],
)
def test_runs_that_see_some_of_the_updates(tmp_path, seen, written):
    plan = TrainConfig(profile_at=3, profile_steps=3)
    with Profile(plan, tmp_path / "profile") as profile:
        for step in seen:
            profile.before(step)
            profile.after(step, jnp.ones(3) + step)
    assert bool(list((tmp_path / "profile").glob("**/*.pb"))) == written


def test_none_is_asked_for(tmp_path):
    with Profile(TrainConfig(), tmp_path / "profile") as profile:
        for step in range(3):
            profile.before(step)
            profile.after(step, jnp.ones(3))
    assert not (tmp_path / "profile").exists()
