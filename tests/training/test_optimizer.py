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
    schedule_change,
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
    rates = np.asarray(
        jax.jit(jax.vmap(make_schedule(config, steps)))(np.arange(steps))
    )
    assert (rates > 0).all()
    assert rates.max() <= 0.1 + 1e-8
    peak = int(rates.argmax())
    assert (np.diff(rates[: peak + 1]) >= 0).all()
    assert (np.diff(rates[peak:]) <= 1e-8).all()


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


def rates_of(config, plans):
    """Return the learning rate of each step of a run whose plan changes.

    Args:
        config: Config of the optimiser.
        plans: Planned steps, and the steps done when the next plan replaced it.
    """
    rates, first = [], 0
    for number, (steps, end) in enumerate(plans):
        schedule = make_schedule(config, steps, plans[:number])
        rates.append(jax.jit(jax.vmap(schedule))(np.arange(first, end)))
        first = end
    return np.concatenate(rates)


PLANS = [
    ((3, 3), (8, 8)),
    ((10, 4), (20, 20)),
    ((10, 10), (15, 15), (30, 30)),
    ((10, 2), (40, 20), (60, 60)),
    ((20, 8), (12, 12)),
]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("plans", PLANS)
@pytest.mark.parametrize("warmup", [0.0, 0.3])
def test_no_rate_jumps_when_a_run_is_extended(schedule, plans, warmup):
    config = OptimConfig(learning_rate=1.0, schedule=schedule, warmup_fraction=warmup)
    rates = rates_of(config, plans)
    rising = int(warmup * plans[0][0])
    # The warm-up is that of the first plan, and never starts again.
    np.testing.assert_allclose(
        rates[:rising], (np.arange(rising) + 1) / max(rising, 1), rtol=1e-6
    )
    falls = np.diff(rates[max(rising - 1, 0) :])
    assert (falls <= 1e-6).all()
    # No fall is steeper than that of a whole cosine within one plan.
    begins = [rising, *(max(end - 1, rising) for _, end in plans)]
    shortest = min(
        steps - start for (steps, _), start in zip(plans, begins, strict=False)
    )
    assert falls.min() >= -np.pi / 2 / shortest - 1e-6
    assert (rates > 0).all()
    last = plans[-1][0]
    ended = float(make_schedule(config, last, plans[:-1])(last))
    assert ended == pytest.approx(float(schedule == "constant"), abs=1e-6)


def test_the_optimizer_of_an_extended_run_goes_by_its_rates(networks):
    own = NetworkOptimConfig(learning_rate=0.5, schedule="linear")
    fields = {"schedule": "cosine", "weight_decay": 0.0, "eps": 0.0}
    config = OptimConfig(learning_rate=0.1, text_encoder=own, **fields)
    first = make_optimizer(config, 3, networks)
    second = make_optimizer(config, 8, networks, [(3, 3)])
    grads = jax.tree.map(jnp.ones_like, networks)
    state, rates = first.init(networks), learning_rates(config, 8, [(3, 3)])
    for count in range(5):
        update = (first if count < 3 else second).update
        norm = optax.tree.norm(grads)
        # Adam's update for a constant gradient is the learning rate.
        updates, state = update(grads, state, networks, grad_norm=norm)
    for name, key in (("unet", ""), ("text_encoder", "_text_encoder")):
        moved = -updates[name]["kernel"]
        np.testing.assert_allclose(moved, rates[f"learning_rate{key}"](4), rtol=1e-4)


def test_a_plan_that_is_resumed_unchanged_changes_nothing():
    config = OptimConfig(learning_rate=1.0, schedule="cosine", warmup_fraction=0.2)
    whole = rates_of(config, [(20, 20)])
    np.testing.assert_array_equal(rates_of(config, [(20, 20)]), whole)
    assert schedule_change(config, 20, (), 7) == []
    # A second resumption after the extension: the change was reported before.
    assert schedule_change(config, 20, ((10, 4),), 7) == []


def test_an_extension_states_the_old_rate_and_the_new_one():
    own = NetworkOptimConfig(learning_rate=0.5, schedule="constant")
    config = OptimConfig(learning_rate=0.01, schedule="cosine", text_encoder=own)
    # The text encoder's rate is constant, so nothing is said of it.
    (first,) = schedule_change(config, 8, ((3, 3),), 3)
    assert first.startswith(
        "train.steps is 8, was 3: learning_rate at step 4 is 0.00179, was 0 in the old "
        "plan; at step 3 it was 0.0025"
    )
    told = learning_rates(config, 8, ((3, 3),))
    assert float(told["learning_rate"](3)) == pytest.approx(0.00179, rel=1e-2)


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
    """Return how far each network's kernel moved with the same gradients."""
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
        # 1 + (1 + cos 45°)/2 + 1/2 + (1 + cos 135°)/2 of 4.
        ({"schedule": "cosine"}, 2.5 / 4),
        # 1/4 + 2/4 + 3/4 + 1 of 4.
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
    with pytest.raises(UserError, match="optim.text_encoder: .* trains only unet"):
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


def test_adafactors_first_step_is_that_of_the_paper(params):
    config = OptimConfig(
        optimizer="adafactor", learning_rate=0.1, weight_decay=0.5, clip_norm=None
    )
    grads = jax.tree.map(lambda x: x - 0.3, params)
    new, _ = updated(config, params, grads)
    # At first v = g², so each weight moves by the sign of its gradient. Only the matrix
    # decays.
    kernel, gradient = params["dense"]["kernel"], grads["dense"]["kernel"]
    expected = kernel - 0.1 * (jnp.sign(gradient) + 0.5 * kernel)
    np.testing.assert_allclose(new["dense"]["kernel"], expected, rtol=1e-5)
    np.testing.assert_allclose(new["dense"]["bias"], 1 - 0.1, rtol=1e-5)


def test_memory_of_the_optimizers():
    params = {"unet": {"kernel": jnp.ones((3, 3, 256, 128)), "bias": jnp.ones(128)}}
    weights = 4 * (9 * 256 * 128 + 128)

    def size(**fields):
        state = make_optimizer(OptimConfig(**fields), 1, params).init(params)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(state))

    assert size() == pytest.approx(2 * weights, rel=0.001)
    assert size(first_moment_dtype="bfloat16") == pytest.approx(
        1.5 * weights, rel=0.001
    )
    assert size(optimizer="adafactor") < 0.02 * weights


def test_adafactor_finds_a_minimum():
    config = OptimConfig(optimizer="adafactor", learning_rate=0.05, weight_decay=0.0)
    goal = jax.random.normal(jax.random.key(1), (4, 200, 130))
    params = {"net": {"kernel": jnp.zeros_like(goal)}}
    optimizer = make_optimizer(config, 300, params)

    @jax.jit
    def step(_, carried):
        params, state = carried
        grads = {"net": {"kernel": params["net"]["kernel"] - goal}}
        norm = optax.tree.norm(grads)
        updates, state = optimizer.update(grads, state, params, grad_norm=norm)
        return optax.apply_updates(params, updates), state

    params, _ = jax.lax.fori_loop(0, 300, step, (params, optimizer.init(params)))
    assert jnp.abs(params["net"]["kernel"] - goal).mean() < 0.1
