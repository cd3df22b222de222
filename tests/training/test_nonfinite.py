"""Updates that are not finite are skipped, counted, and stop the run with a name."""

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medjax import meshes
from medjax.errors import UserError
from medjax.tasks.interface import Outcome
from medjax.training.nonfinite import NonfiniteWatch, nonfinite_examples
from medjax.training.step import (
    TrainState,
    example_keys,
    init_state,
    make_train_step,
)

pytestmark = pytest.mark.devices(2)

KEY = jax.random.key(0)
# The state that a search for culprits would need; not used here.
STATE = TrainState(0, 0, {}, {}, None, {})


@dataclasses.dataclass(frozen=True)
class Quadratic:
    """Loss (w x)²; or with `root`, √(w x), whose gradient at 0 is infinite."""

    root: bool = False

    def loss(self, params: Any, frozen: Any, batch: Any, keys: Any, train: bool) -> Any:
        product = params["kernel"] * batch["images"][:, 0, 0, 0]
        return Outcome(jnp.sqrt(product) if self.root else product**2)

    def follow(self, statistics: Any, observed: Any, key: Any) -> Any:
        return statistics, {}

    def check(self, size: int, sampling: Any) -> None:
        raise NotImplementedError

    def sample(self, *args: Any) -> Any:
        raise NotImplementedError


def images(*values):
    return {"images": np.asarray(values, np.float32).reshape(-1, 1, 1, 1)}


def start(max_skipped, accumulation=1, ema=False):
    mesh = meshes.make_mesh(meshes.MeshConfig(data=2), jax.devices()[:2])
    optimizer = optax.adam(0.1)
    state = init_state({"kernel": jnp.float32(1)}, {}, optimizer, mesh, ema)
    step = make_train_step(
        Quadratic(),
        optimizer,
        mesh,
        max_skipped=max_skipped,
        accumulation_steps=accumulation,
        ema_decay=0.9 if ema else None,
    )
    return state, lambda s, *x: step(s, {}, meshes.place_batch(images(*x), mesh), KEY)


def values(state):
    return [np.asarray(x) for x in jax.tree.leaves(state)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_skipped_update_changes_only_the_counts(bad, accumulation):
    state, step = start(1, accumulation, ema=True)
    state, _ = step(state, 1, 2, 3, 4)
    before = values(dataclasses.replace(state, step=0, skipped=0))
    state, metrics = step(state, 1, bad, 3, 4)
    assert int(metrics["skipped_updates"]) == int(state.skipped) == 1
    assert int(state.step) == 2
    after = values(dataclasses.replace(state, step=0, skipped=0))
    np.testing.assert_equal(after, before)
    # The next step trains again.
    state, metrics = step(state, 1, 2, 3, 4)
    assert int(metrics["skipped_updates"]) == 1
    assert float(state.params["kernel"]) != float(before[2])


def test_after_too_many_nothing_moves():
    state, step = start(0)
    state, _ = step(state, 1, np.nan)
    state, _ = step(state, 1, 2)
    assert float(state.params["kernel"]) == 1
    assert int(state.step) == 2


@pytest.mark.parametrize("root", [False, True])
def test_the_examples_to_blame_are_found(root):
    mesh = meshes.make_mesh(meshes.MeshConfig(data=2), jax.devices()[:2])
    # The root at 0 has an infinite gradient, but a finite loss.
    batch = meshes.place_batch(images(1, 0 if root else np.nan, 2, 3), mesh)
    keys = example_keys(KEY, 0, 4)
    params = {"kernel": jnp.float32(1)}
    found = nonfinite_examples(Quadratic(root), params, {}, batch, keys, mesh)
    assert found == [1]


def metrics(skipped, loss=1.0):
    numbers = {"skipped_updates": skipped, "loss": loss, "grad_norm": loss}
    return {name: jnp.asarray(number) for name, number in numbers.items()}


def test_the_run_stops_one_update_later_and_names_them():
    asked = []

    def culprits(state, step, batch):
        assert state is STATE
        asked.append(step)
        return ["scan-7"]

    watch = NonfiniteWatch(0, 0, culprits)
    watch.look(STATE, 1, images(1, 2), metrics(0), now=False)
    watch.look(STATE, 2, images(1, 2), metrics(1, np.nan), now=False)
    assert not asked
    with pytest.raises(UserError, match=r"step 2: loss nan.*1 of 2 .*'scan-7'"):
        watch.look(STATE, 3, images(1, 2), metrics(2), now=False)
    assert asked == [2]


def test_before_saving_it_looks_at_once():
    watch = NonfiniteWatch(0, 0, lambda state, step, batch: ["a", "b"])
    with pytest.raises(UserError, match="2 of 2 .*learning_rate"):
        watch.look(STATE, 1, images(1, 2), metrics(1, np.inf), now=True)


def test_a_run_that_could_train_nothing_does_not_begin():
    with pytest.raises(UserError, match=r"max_skipped_updates=0.* skipped 3 .*least 3"):
        NonfiniteWatch(0, 3, lambda state, step, batch: ["a"])


def test_what_may_be_skipped_is_told_and_counted(caplog):
    watch = NonfiniteWatch(3, 1, lambda state, step, batch: ["a"])
    with caplog.at_level(logging.WARNING, logger="medjax"):
        watch.look(STATE, 5, images(1, 2), metrics(2, np.nan), now=True)
        watch.look(STATE, 6, images(1, 2), metrics(2), now=True)
    assert caplog.text.count("update skipped (2 of at most 3)") == 1
    watch.look(STATE, 7, images(1, 2), metrics(3, np.nan), now=True)
    with pytest.raises(UserError, match="max_skipped_updates=13"):
        watch.look(STATE, 8, images(1, 2), metrics(4, np.nan), now=True)
