"""The optimiser does what its config says, for any number of steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medjax.errors import UserError
from medjax.runs.sections import NetworkOptimConfig, OptimConfig
from medjax.training.optimizer import (
    decay_mask,
    learning_rates,
    make_optimizer,
    make_schedule,
    update_ema,
)


@pytest.fixture
def params():
    kernel = jax.random.normal(jax.random.key(0), (3, 4))
    return {"dense": {"kernel": kernel, "bias": jnp.ones(4)}, "scale": jnp.ones(3)}


def updated(config, params, grads, steps=1):
    optimizer = make_optimizer(config, steps, params)
    state = optimizer.init(params)
    for _ in range(steps):
        norm = optax.tree.norm(grads)
        updates, state = optimizer.update(grads, state, params, grad_norm=norm)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_every_step_of_any_run_has_a_rate(schedule, warmup, steps):
    config = OptimConfig(learning_rate=0.1, schedule=schedule, warmup_fraction=warmup)
    rates = jax.vmap(make_schedule(config, steps))(jnp.arange(steps))
    assert bool(jnp.all(rates > 0))
    assert float(rates.max()) <= 0.1 + 1e-8
    peak = int(rates.argmax())
    assert bool(jnp.all(jnp.diff(rates[: peak + 1]) >= 0))
    assert bool(jnp.all(jnp.diff(rates[peak:]) <= 1e-8))


def test_schedules_take_their_shape():
    def rate(schedule, count):
        config = OptimConfig(learning_rate=1.0, schedule=schedule, warmup_fraction=0.2)
        return float(make_schedule(config, 100)(count))

    for schedule in ("constant", "cosine", "linear"):
        assert rate(schedule, 9) == pytest.approx(0.5)
        assert rate(schedule, 20) == pytest.approx(1.0)
    assert rate("constant", 99) == 1.0
    assert rate("cosine", 60) == pytest.approx(0.5)
    assert rate("linear", 80) == pytest.approx(0.25)
    assert rate("cosine", 100) == pytest.approx(0.0, abs=1e-7)


def test_a_run_of_no_steps_is_refused():
    with pytest.raises(UserError, match="0 steps"):
        make_schedule(OptimConfig(), 0)


def test_the_schedule_scales_the_update(params):
    grads = jax.tree.map(jnp.ones_like, params)
    config = OptimConfig(learning_rate=0.1, weight_decay=0.0, eps=0.0)
    whole, _ = updated(config, params, grads)
    # Adam's first update is the sign of the gradient times the learning rate.
    moved = jax.tree.map(lambda a, b: a - b, params, whole)
    for leaf in jax.tree.leaves(moved):
        np.testing.assert_allclose(leaf, 0.1, rtol=1e-5)


def test_weight_decay_shrinks_matrices_only(params):
    assert decay_mask(params) == {
        "dense": {"kernel": True, "bias": False},
        "scale": False,
    }
    grads = jax.tree.map(jnp.zeros_like, params)
    after, _ = updated(OptimConfig(learning_rate=0.1, weight_decay=0.5), params, grads)
    np.testing.assert_allclose(
        after["dense"]["kernel"], params["dense"]["kernel"] * 0.95, rtol=1e-6
    )
    np.testing.assert_array_equal(after["dense"]["bias"], params["dense"]["bias"])
    np.testing.assert_array_equal(after["scale"], params["scale"])


def test_the_clip_bounds_the_gradient_of_the_whole_tree(params):
    grads = jax.tree.map(lambda p: jnp.full_like(p, 10.0), params)
    for limit in (0.5, None):
        config = OptimConfig(b1=0.0, clip_norm=limit)
        _, state = updated(config, params, grads)
        # With b1 = 0 the first moment is the clipped gradient itself.
        (mu,) = [s.mu for s in jax.tree.leaves(state, is_leaf=_is_adam) if _is_adam(s)]
        expected = limit or float(optax.tree.norm(grads))
        assert float(optax.tree.norm(mu)) == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def networks(params):
    kernel = params["dense"]["kernel"]
    return {"unet": {"kernel": kernel}, "text_encoder": {"kernel": kernel + 1}}


def moved(config, networks, steps=4, grads=1.0):
    """Return how far each network's kernel moved under the same gradients."""
    gradients = jax.tree.map(lambda x: jnp.full_like(x, grads), networks)
    after, _ = updated(config, networks, gradients, steps)
    return {
        name: np.asarray(after[name]["kernel"] - networks[name]["kernel"])
        for name in networks
    }


@pytest.mark.parametrize(
    ("own", "ratio"),
    [
        ({"learning_rate": 0.02}, 0.2),
        # 1 + (1 + cos 45°)/2 + 1/2 + (1 + cos 135°)/2 of four.
        ({"schedule": "cosine"}, 2.5 / 4),
        # 1/4 + 2/4 + 3/4 + 1 of four.
        ({"warmup_fraction": 1.0}, 2.5 / 4),
    ],
)
def test_a_network_may_have_its_own_rate(networks, own, ratio):
    config = OptimConfig(
        learning_rate=0.1, weight_decay=0.0, text_encoder=NetworkOptimConfig(**own)
    )
    both = moved(config, networks)
    np.testing.assert_allclose(both["unet"], -0.4, rtol=1e-4)
    np.testing.assert_allclose(both["text_encoder"], -0.4 * ratio, rtol=1e-4)


def test_a_network_may_have_its_own_decay(networks):
    config = OptimConfig(
        learning_rate=0.1,
        weight_decay=0.5,
        text_encoder=NetworkOptimConfig(weight_decay=0.1),
    )
    both = moved(config, networks, steps=1, grads=0.0)
    for name, decay in (("unet", 0.5), ("text_encoder", 0.1)):
        expected = -0.1 * decay * networks[name]["kernel"]
        np.testing.assert_allclose(both[name], expected, rtol=1e-5, atol=1e-7)


def test_the_clip_is_of_all_networks_together(networks):
    config = OptimConfig(
        b1=0.0, clip_norm=0.5, text_encoder=NetworkOptimConfig(learning_rate=1.0)
    )
    grads = jax.tree.map(jnp.ones_like, networks)
    _, state = updated(config, networks, grads)
    moments = [s.mu for s in jax.tree.leaves(state, is_leaf=_is_adam) if _is_adam(s)]
    assert len(moments) == 2
    assert float(optax.tree.norm(moments)) == pytest.approx(0.5, rel=1e-5)
    assert float(optax.tree.norm(moments[0])) == pytest.approx(0.5 / 2**0.5, rel=1e-5)


def test_each_rate_of_its_own_is_told():
    own = NetworkOptimConfig(learning_rate=0.2)
    told = learning_rates(OptimConfig(learning_rate=0.1, text_encoder=own), 3)
    assert {name: pytest.approx(float(rate(0))) for name, rate in told.items()} == {
        "learning_rate": 0.1,
        "learning_rate_text_encoder": 0.2,
    }
    assert list(learning_rates(OptimConfig(), 3)) == ["learning_rate"]


def test_settings_of_a_network_that_does_not_train_are_refused(networks):
    config = OptimConfig(text_encoder=NetworkOptimConfig(weight_decay=0.1))
    with pytest.raises(UserError, match="optim.text_encoder is there, but of unet"):
        make_optimizer(config, 1, {"unet": networks["unet"]})


def _is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)


def test_the_state_is_float32_and_needs_only_shapes(params):
    abstract = jax.eval_shape(lambda: params)
    optimizer = make_optimizer(OptimConfig(), 10, abstract)
    state = jax.eval_shape(optimizer.init, abstract)
    floats = [
        s for s in jax.tree.leaves(state) if jnp.issubdtype(s.dtype, jnp.floating)
    ]
    assert floats
    assert all(leaf.dtype == jnp.float32 for leaf in floats)


@pytest.mark.parametrize(
    "bad",
    [
        {"learning_rate": -1.0},
        {"warmup_fraction": 1.5},
        {"b2": 1.0},
        {"clip_norm": 0.0},
        {"ema_decay": 1.0},
        {"text_encoder": NetworkOptimConfig(weight_decay=-1.0)},
    ],
)
def test_values_out_of_range_are_named(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        OptimConfig(**bad)


def test_ema_warms_up_then_averages(params):
    start = jax.tree.map(jnp.zeros_like, params)
    first = update_ema(start, params, 0.999, 0)
    np.testing.assert_allclose(first["scale"], 0.9, rtol=1e-6)
    late = update_ema(start, params, 0.9, 10_000)
    np.testing.assert_allclose(late["scale"], 0.1, rtol=1e-5)
    same = update_ema(params, params, 0.999, jnp.int32(5))
    np.testing.assert_array_equal(same["scale"], params["scale"])


def test_ema_follows_a_constant_within_its_memory(params):
    ema = jax.tree.map(jnp.zeros_like, params)
    for step in range(60):
        ema = update_ema(ema, params, 0.9, step)
    np.testing.assert_allclose(ema["scale"], params["scale"], atol=1e-2)
