"""The optimiser: AdamW behind a global-norm clip, its learning rate, and the EMA.

With gradient g_t at update t = 0, 1, …, learning rate η_t and norm limit c,

    g ← g · min(1, c / ‖g‖)                              (1)  ‖·‖ over all parameters
    θ ← θ − η_t · (m̂ / (√v̂ + ε) + λ θ)                   (2)  λ only on matrices
    e ← e + (1 − d_t)(θ − e),  d_t = min(d, (1+t)/(10+t))  (3)

One network may have a learning rate η_t and a decay λ of its own; c is of all.

Source: (2) Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR 2019.
(3) is the warm-up of the decay of TensorFlow's ExponentialMovingAverage.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Int

from medjax.arrays import Array, Params, PyTree
from medjax.errors import UserError
from medjax.runs.sections import OptimConfig

# Of the peak: a rate below it trains little.
_LITTLE = 0.01
Plans = Sequence[tuple[int, int]]
"""Numbers of steps, and the updates done when each was replaced by the next."""


def make_schedule(
    config: OptimConfig, steps: int, earlier: Plans = ()
) -> optax.Schedule:
    """Return the learning rate as a function of the number of updates done before.

    The first update of a warm-up already has a rate above zero and the last update of a
    decay too, so that every number of steps trains, one step included.

    Where the run was planned for other numbers of steps before, its warm-up stays that
    of the first plan. The decay continues from the rate of the last update, and reaches
    zero at the new end: no rate jumps.

    Args:
        config: The peak, the warm-up and the decay.
        steps: Updates of the whole run, at least 1.
        earlier: See `runs.earlier_plans`.

    Raises:
        UserError: If `steps` is below 1.
    """
    if steps < 1:
        raise UserError(f"a run of {steps} steps trains nothing, expected at least 1")
    warmup = int(config.warmup_fraction * (earlier[0][0] if earlier else steps))
    start, begun = _decay_begins(warmup, earlier)

    def schedule(count: Int[Array, ""] | int) -> Float[Array, ""]:
        count = jnp.asarray(count, jnp.float32)
        rise = jnp.minimum((count + 1) / max(warmup, 1), 1.0)
        progress = jnp.clip((count - start) / max(steps - start, 1), 0.0, 1.0)
        if begun:
            progress = begun + (1 - begun) * progress
        if config.schedule == "cosine":
            fall = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        elif config.schedule == "linear":
            fall = 1 - progress
        else:
            fall = jnp.ones(())
        return config.learning_rate * rise * fall

    return schedule


def _decay_begins(warmup: int, earlier: Plans) -> tuple[int, float]:
    """Return the update that the present plan's decay begins at, and how far it is."""
    start, begun = warmup, 0.0
    for steps, done in earlier:
        last = max(done - 1, warmup)
        passed = min(max(last - start, 0) / max(steps - start, 1), 1.0)
        start, begun = last, begun + (1 - begun) * passed
    return start, begun


def learning_rates(
    config: OptimConfig, steps: int, earlier: Plans = ()
) -> dict[str, optax.Schedule]:
    """Return ``learning_rate``, and ``learning_rate_NETWORK`` where that is otherwise.

    Arguments and errors are those of `make_schedule`.
    """
    own = {f"learning_rate_{name}": config.of(name) for name in config.networks}
    configs = {"learning_rate": config, **own}
    return {name: make_schedule(one, steps, earlier) for name, one in configs.items()}


def schedule_change(
    config: OptimConfig, steps: int, earlier: Plans, done: int
) -> list[str]:
    """Return what a new number of steps does to each learning rate, a line each.

    Args:
        config: The peaks, the warm-ups and the decays.
        steps: Updates of the whole run.
        earlier: See `runs.earlier_plans`.
        done: Updates done so far. Nothing changes unless the last plan ended here.
    """
    if not earlier or earlier[-1][1] != done or steps <= done:
        return []
    planned = earlier[-1][0]
    old = learning_rates(config, planned, earlier[:-1])
    new = learning_rates(config, steps, earlier)
    lines = []
    for name, rate in new.items():
        last, was, now = (
            float(f(count))
            for f, count in ((rate, done - 1), (old[name], done), (rate, done))
        )
        line = (
            f"train.steps is {steps}, was {planned}: {name} at step {done + 1} is "
            f"{now:.3g}, was {was:.3g} by the old plan; at step {done} it was "
            f"{last:.3g}. The warm-up stays as it was"
        )
        if now < _LITTLE * config.of(name.removeprefix("learning_rate_")).learning_rate:
            line += ". The decay is almost over, so these steps change little"
        lines.append(line)
    return lines


def decay_mask(params: PyTree) -> PyTree:
    """Return True for the arrays that weight decay may shrink.

    Biases and the scales of normalisations have one dimension; pulling them to zero
    regularises nothing.
    """
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def make_optimizer(
    config: OptimConfig, steps: int, params: Params, earlier: Plans = ()
) -> optax.GradientTransformationExtraArgs:
    """Return clip by global norm, then AdamW, with float32 state.

    Its update takes the gradient's norm as `grad_norm`, which is there already.

    Args:
        config: Rates, moments, decay, clip.
        steps: Updates of the whole run.
        params: The trained parameters, by network; shapes are enough.
        earlier: See `runs.earlier_plans`.

    Raises:
        UserError: If something is otherwise for a network that does not train.
    """
    adamw = _adamw(config, steps, earlier)
    if config.networks:
        for name in config.networks:
            if name not in params:
                raise UserError(
                    f"config.optim.{name} is there, but of {', '.join(params)}, which "
                    f"train, none is a {name}; expected None for all of its keys"
                )
        kinds = {name: _adamw(config.of(name), steps, earlier) for name in params}
        labels = jax.tree_util.tree_map_with_path(lambda path, _: path[0].key, params)
        adamw = optax.partition(kinds, labels)
    if config.clip_norm is None:
        return adamw
    return optax.chain(_clip(config.clip_norm), adamw)


def _clip(limit: float) -> optax.GradientTransformationExtraArgs:
    """Return (1), by one factor that XLA multiplies in wherever the gradient is read.

    optax's own divides each element by the norm, which XLA holds for too dear to do
    twice: it keeps the clipped gradient, of the size of all that trains.
    """

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, *, grad_norm: Array
    ) -> tuple[PyTree, PyTree]:
        del params
        factor = jnp.minimum(1, limit / grad_norm)
        return jax.tree.map(lambda g: g * factor, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def _adamw(
    config: OptimConfig, steps: int, earlier: Plans
) -> optax.GradientTransformationExtraArgs:
    return optax.adamw(
        make_schedule(config, steps, earlier),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
        mu_dtype=jnp.float32,
    )


def update_ema(
    ema_params: Params, params: Params, decay: float, step: Int[Array, ""] | int
) -> Params:
    """Return the moving average (3) after one more update.

    Args:
        ema_params: The average so far, float32.
        params: The parameters after this update.
        decay: d, in [0, 1).
        step: t, the number of updates averaged before this one.
    """
    count = jnp.asarray(step, jnp.float32)
    weight = 1 - jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(lambda e, p: e + weight * (p - e), ema_params, params)
