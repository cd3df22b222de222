"""What a checkpoint costs is measured on a real state, and set against a run."""

import json

import jax
import numpy as np
import pytest

from bench import checkpoints
from bench.networks import Settings
from bench.report import Spread
from medjax import trees
from medjax.errors import UserError


@pytest.fixture(scope="module")
def state():
    return checkpoints.make_state(Settings("tiny"))


def test_the_state_is_weights_average_and_moments_that_do_not_compress(state):
    leaves = [x for x in jax.tree.leaves(state) if x.dtype == np.float32]
    assert sum(x.size for x in leaves) == 4 * trees.count(state.params)
    assert all(np.unique(x).size > 1 for x in leaves if x.size > 1)


@pytest.mark.ci
def test_saving_is_measured_until_all_is_on_disk(state, tmp_path):
    stall, total = checkpoints.measure(state, tmp_path, repeats=2)
    assert len(stall.values) == len(total.values) == 2
    assert all(0 < a <= b for a, b in zip(stall.values, total.values, strict=True))
    # The newest is complete, the others are removed.
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


def test_the_share_is_of_the_whole_interval():
    row = checkpoints.cost(
        Spread((2.0,)), Spread((100.0,)), 4.0, every=98, step_seconds=1.0
    )
    assert row["share of the run"] == "2%"
    assert row["at most"] == "50.5%"


def test_the_step_is_known_from_its_own_benchmark(tmp_path):
    with pytest.raises(UserError, match=r"bench\.step --network=sd15"):
        checkpoints.known_step_seconds(tmp_path, "sd15", "cpu")
    rows = [
        {"competitor": who, "seconds per step": {"median": seconds}}
        for who, seconds in (("medjax", 6.0), ("torch", 1.0), ("medjax", 5.0))
    ]
    (tmp_path / "step-cpu.json").write_text(json.dumps({"tables": {"a": rows}}))
    assert checkpoints.known_step_seconds(tmp_path, "sd15", "cpu") == 5.0
