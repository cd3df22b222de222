"""Checkpoints come back bit for bit, on any mesh, and only onto their own base."""

import dataclasses
import errno
import functools
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from medjax.errors import UserError
from medjax.meshes import MeshConfig, make_mesh
from medjax.runs.checkpoints import Checkpoints
from medjax.runs.checksums import damage
from medjax.runs.read_checkpoint import read_metrics

pytestmark = pytest.mark.devices(8)

BASE = {"source": "some/base", "fingerprint": "aaaa"}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "ema_params", "opt_state"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class State:
    step: Any
    params: Any
    ema_params: Any
    opt_state: Any

    def __post_init__(self):
        # As strict as a state whose annotations are checked: nothing but arrays.
        assert isinstance(self.step, jax.Array)


def make_state(seed: int = 0, ema: bool = False) -> State:
    kernel = jax.random.normal(jax.random.key(seed), (8, 8))
    params = {"a": {"kernel": kernel}, "bias": jnp.full(8, 0.1, jnp.bfloat16)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    step = jnp.asarray(seed, jnp.int32)
    return State(step, params, params if ema else None, optimizer.init(params))


def opened(folder, base=BASE, config=None, **options) -> Checkpoints:
    inputs = {"base": base}
    return Checkpoints(folder, config or {"optim": {"b1": 0.9}}, inputs, **options)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("ema", [False, True])
def test_the_state_comes_back_bit_for_bit(tmp_path, ema):
    with opened(tmp_path) as checkpoints:
        assert checkpoints.latest_step is None
        assert checkpoints.save(3, make_state(3, ema))
    with opened(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 3
        restored = checkpoints.restore(make_state(0, ema))
    assert isinstance(restored, State)
    assert_same(restored, make_state(3, ema))


def test_a_step_is_saved_once(tmp_path):
    with opened(tmp_path) as checkpoints:
        assert checkpoints.save(1, make_state(1))
        assert not checkpoints.save(1, make_state(2))
        assert_same(checkpoints.restore(make_state(0)), make_state(1))


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 3)])
def test_the_last_and_the_best_are_kept(tmp_path, mode, best):
    losses = {1: 0.5, 2: 0.1, 3: 0.9, 4: float("nan"), 5: 0.4, 6: 0.3}
    with opened(tmp_path, keep_last=2, keep_best=1, mode=mode) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, make_state(step), {"val/loss": loss})
            checkpoints.wait()
        assert checkpoints.best_step == best
    kept = {int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()}
    assert kept == {best, 5, 6}
    with opened(tmp_path, mode=mode) as checkpoints:
        assert checkpoints.best_step == best
        assert_same(checkpoints.restore(make_state(0), best), make_state(best))


def test_checkpoints_without_the_metric_are_never_the_best(tmp_path):
    with opened(tmp_path, keep_last=2, keep_best=1) as checkpoints:
        checkpoints.save(1, make_state(1), {"val/loss": 0.5})
        for step in (2, 3, 4):
            checkpoints.save(step, make_state(step))
        checkpoints.wait()
        assert checkpoints.best_step == 1
    kept = {int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()}
    assert kept == {1, 3, 4}


def test_what_is_measured_after_saving_counts_as_if_before(tmp_path):
    with opened(tmp_path, keep_last=1, keep_best=1) as checkpoints:
        checkpoints.save(1, make_state(1))
        assert not checkpoints.has_metrics(1)
        assert checkpoints.best_step is None
    assert read_metrics(tmp_path / "1") == {}
    with opened(tmp_path, keep_last=1, keep_best=1) as checkpoints:
        assert not checkpoints.has_metrics(1)
        checkpoints.add_metrics(1, {"val/loss": 0.5})
        assert checkpoints.has_metrics(1)
        checkpoints.save(2, make_state(2), {"val/loss": 0.7})
        checkpoints.save(3, make_state(3), {})
        assert checkpoints.best_step == 1
    assert read_metrics(tmp_path / "1") == {"val/loss": 0.5}
    assert damage(tmp_path / "1") is None
    with opened(tmp_path, keep_last=1, keep_best=1) as checkpoints:
        assert checkpoints.has_metrics(3)
        assert checkpoints.best_step == 1
        assert_same(checkpoints.restore(make_state(0), 1), make_state(1))
    assert {path.name for path in tmp_path.iterdir()} == {"1", "3"}
    (tmp_path / "1" / "metrics" / "metrics").write_text("{")
    assert damage(tmp_path / "1") == "metrics/metrics does not match its checksum"


def test_no_metric_at_all_has_no_best(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1))
        assert checkpoints.best_step is None


def test_another_base_is_refused_by_name(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1))
    other = {"source": "other/base", "fingerprint": "bbbb"}
    told = pytest.raises(UserError, match=r"other/base.*bbbb.*some/base.*aaaa")
    with opened(tmp_path, base=other) as checkpoints, told:
        checkpoints.restore(make_state(0))


def test_another_config_is_refused(tmp_path):
    with opened(tmp_path, config={"optim": {"b1": 0.9, "pair": (1, 2)}}) as checkpoints:
        checkpoints.save(1, make_state(1))
    changed = {"optim": {"b1": 0.8, "pair": (1, 2)}}
    with opened(tmp_path, config=changed) as checkpoints:
        with pytest.raises(UserError, match=r"optim.b1 is 0.8, was 0.9\. Res"):
            checkpoints.restore(make_state(0))
        assert checkpoints.about()["config"]["optim"]["pair"] == [1, 2]


def test_earlier_numbers_of_steps_are_kept(tmp_path):
    plans = []
    for done, steps in ((1, 3), (3, 3), (5, 8), (6, 20), (7, 20)):
        with opened(tmp_path, config={"train": {"steps": steps}}) as checkpoints:
            plans.append(checkpoints.earlier_plans)
            checkpoints.save(done, make_state(0))
    extended = ((3, 3), (8, 5))
    assert plans == [(), (), extended[:1], extended, extended]


def test_arrays_that_do_not_fit_are_named(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1))
        with pytest.raises(UserError, match="ema_params/a/kernel is missing in the"):
            checkpoints.restore(make_state(0, ema=True))
        state = make_state(0)
        narrow = {**state.params, "a": {"kernel": jnp.ones((8, 4))}}
        with pytest.raises(
            UserError, match=r"kernel is \(8, 8\) in .* and \(8, 4\) in"
        ):
            checkpoints.restore(dataclasses.replace(state, params=narrow))


def test_a_missing_checkpoint_is_named(tmp_path):
    with opened(tmp_path) as checkpoints:
        with pytest.raises(UserError, match="no checkpoint in"):
            checkpoints.restore(make_state(0))
        checkpoints.save(1, make_state(1))
        with pytest.raises(UserError, match=r"of step 7 in .*\. Existing steps: \[1\]"):
            checkpoints.restore(make_state(0), 7)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.EIO, "Input/output error"),
            "checkpoint 1 .*: Input/output error",
        ),
        (ValueError("RESOURCE: No space left on device"), "No space left on"),
        (FileNotFoundError(errno.ENOENT, "No such file"), None),
        (TimeoutError("the other host does not come"), None),
    ],
)
def test_only_the_disk_is_told_in_a_line(tmp_path, monkeypatch, error, message):
    def fail(manager):
        raise error

    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1))
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(ocp.CheckpointManager, "wait_until_finished", fail)
            with pytest.raises(UserError if message else type(error), match=message):
                checkpoints.wait()


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="keep_last=0"):
        opened(tmp_path, keep_last=0)


def laid_out(state, mesh, *spec):
    def place(leaf):
        axes = PartitionSpec(*spec) if leaf.ndim == 2 else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, axes))

    return jax.tree.map(place, state)


def test_another_mesh_gets_the_same_state(tmp_path):
    data = make_mesh(MeshConfig(data=8))
    grid = make_mesh(MeshConfig(data=2, fsdp=4))
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, laid_out(make_state(1), data, "data"))
        like = laid_out(make_state(0), grid, "fsdp", "data")
        restored = checkpoints.restore(like)
    assert_same(restored, make_state(1))
    for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
        assert x.sharding == y.sharding


def test_shapes_and_shardings_are_enough(tmp_path):
    mesh = make_mesh(MeshConfig())
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    state = {"a": jnp.arange(16.0), "layers": [jnp.ones(8), {"b": jnp.zeros(8)}]}
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
    )
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        restored = checkpoints.restore(like)
    assert_same(restored, state)
    assert restored["a"].sharding == sharding


KILLED = """
import os, sys, threading
import jax.numpy as jnp
from medjax.runs.checkpoints import Checkpoints
base = {"source": "s", "fingerprint": "f"}
checkpoints = Checkpoints(sys.argv[1], {}, {"base": base})
checkpoints.save(1, {"a": jnp.ones(4)})
checkpoints.wait()
checkpoints.save(2, {"a": jnp.ones((2048, 2048))})
os._exit(1)
"""


@pytest.mark.ci
def test_a_save_cut_short_leaves_the_one_before(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    base = {"source": "s", "fingerprint": "f"}
    with Checkpoints(tmp_path, {}, {"base": base}) as checkpoints:
        # The second may have made it; if not, nothing of it may be seen.
        assert checkpoints.latest_step in (1, 2)
        like = {"a": jnp.zeros(4)}
        np.testing.assert_array_equal(checkpoints.restore(like, 1)["a"], jnp.ones(4))
        assert not list(tmp_path.glob("*orbax-checkpoint-tmp*"))
