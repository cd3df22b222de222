"""The optimiser behind a global-norm clip, its learning rate, and the EMA.

With gradient g_t at step t = 0, 1, …, learning rate η_t and norm limit c,

    g ← g · min(1, c / ‖g‖)                              (1)  ‖·‖ over all parameters
    θ ← θ − η_t · (m̂ / (√v̂ + ε) + λ θ)                   (2)  λ only on matrices
    e ← e + (1 − d_t)(θ − e),  d_t = min(d, (1+t)/(10+t))  (3)

(2) is AdamW. Adafactor keeps no m, and of v for an array of two large axes only the
means along each. It replaces m̂ / (√v̂ + ε) by

    u / max(1, RMS(u)),  u = g / √v,  v ← β_t v + (1 − β_t) g²,
    β_t = 1 − (t + 1)^−0.8                                 (4)

One network may have its own learning rate η_t and decay λ. All networks share c.

Source: (2) Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR 2019.
(4) Shazeer & Stern, "Adafactor", ICML 2018, with absolute step sizes.
(3) warms up the decay as TensorFlow's ExponentialMovingAverage does.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Int

from medjax.arrays import Array, Params, PyTree
from medjax.errors import UserError
from medjax.runs.sections import OptimConfig

# Fraction of the peak. Learning rates below it change little.
_LITTLE = 0.01
Plans = Sequence[tuple[int, int]]
"""Planned numbers of steps, each with the steps done when the next plan replaced it."""


def make_schedule(
    config: OptimConfig, steps: int, earlier: Plans = ()
) -> optax.Schedule:
    """Return the learning rate as a function of the number of steps done before.

    The rate is above zero in the first step of a warm-up and in the last step of a
    decay. So every number of steps trains, even a single one.

    If earlier plans had other numbers of steps, the warm-up stays that of the first
    plan. The decay continues from the rate of the last step and reaches zero at the new
    end. So the rate never jumps.

    Args:
        config: The peak, the warm-up and the decay.
        steps: Steps of the whole run, at least 1.
        earlier: Earlier plans; see `runs.earlier_plans`.

    Raises:
        UserError: If `steps` is below 1.
    """
    if steps < 1:
        raise UserError(f"a run of {steps} steps trains nothing. Expected at least 1")
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
    """Return where the current plan's decay begins, in steps, and its progress there.

    The progress is in [0, 1].
    """
    start, begun = warmup, 0.0
    for steps, done in earlier:
        last = max(done - 1, warmup)
        passed = min(max(last - start, 0) / max(steps - start, 1), 1.0)
        start, begun = last, begun + (1 - begun) * passed
    return start, begun


def learning_rates(
    config: OptimConfig, steps: int, earlier: Plans = ()
) -> dict[str, optax.Schedule]:
    """Return the schedules: ``learning_rate``, and any ``learning_rate_NETWORK``.

    A network has a schedule of its own if it has optimizer settings of its own.
    Arguments and errors are those of `make_schedule`.
    """
    own = {f"learning_rate_{name}": config.of(name) for name in config.networks}
    configs = {"learning_rate": config, **own}
    return {name: make_schedule(one, steps, earlier) for name, one in configs.items()}


def schedule_change(
    config: OptimConfig, steps: int, earlier: Plans, done: int
) -> list[str]:
    """Return how a new number of steps changes each learning rate, a line for each.

    Args:
        config: The peaks, the warm-ups and the decays.
        steps: Steps of the whole run.
        earlier: Earlier plans; see `runs.earlier_plans`.
        done: Steps done so far. Returns no lines unless the last plan ended here, and
            no line for a rate that does not change.
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
        if last == was == now:
            continue
        line = (
            f"train.steps is {steps}, was {planned}: {name} at step {done + 1} is "
            f"{now:.3g}, was {was:.3g} in the old plan; at step {done} it was "
            f"{last:.3g}. The warm-up is unchanged"
        )
        if now < _LITTLE * config.of(name.removeprefix("learning_rate_")).learning_rate:
            line += ". The decay is almost over, so these steps change little"
        lines.append(line)
    return lines


def decay_mask(params: PyTree) -> PyTree:
    """Return a tree with True for the arrays that weight decay may shrink.

    Biases and the scales of normalisations have one dimension. Weight decay on them
    regularises nothing.
    """
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def make_optimizer(
    config: OptimConfig, steps: int, params: Params, earlier: Plans = ()
) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer of a config, behind a clip by global norm.

    Its update takes the gradient's norm as `grad_norm`, because the training step has
    computed it already.

    Args:
        config: Rates, moments, decay, clip.
        steps: Steps of the whole run.
        params: The trained parameters, by network; shapes are enough.
        earlier: Earlier plans; see `runs.earlier_plans`.

    Raises:
        UserError: If a network has its own settings but does not train.
    """
    unclipped = _unclipped(config, steps, earlier)
    if config.networks:
        for name in config.networks:
            if name not in params:
                raise UserError(
                    f"config.optim.{name}: this run trains only {', '.join(params)}. "
                    f"Expected None for all keys of config.optim.{name}"
                )
        kinds = {name: _unclipped(config.of(name), steps, earlier) for name in params}
        labels = jax.tree_util.tree_map_with_path(lambda path, _: path[0].key, params)
        unclipped = optax.partition(kinds, labels)
    if config.clip_norm is None:
        return unclipped
    return optax.chain(_clip(config.clip_norm), unclipped)


def _clip(limit: float) -> optax.GradientTransformationExtraArgs:
    """Return the clip (1) as one factor, which XLA applies where it reads the gradient.

    optax's own clip divides each element by the norm. XLA considers that too expensive
    to do twice, so it stores the clipped gradient, as large as all trained parameters.
    """

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, *, grad_norm: Array
    ) -> tuple[PyTree, PyTree]:
        del params
        factor = jnp.minimum(1, limit / grad_norm)
        return jax.tree.map(lambda g: g * factor, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def _unclipped(
    config: OptimConfig, steps: int, earlier: Plans
) -> optax.GradientTransformationExtraArgs:
    """Return AdamW (2) or Adafactor (4)."""
    schedule = make_schedule(config, steps, earlier)
    if config.optimizer == "adafactor":
        # optax's `adafactor` does not multiply the decay by the learning rate.
        return optax.with_extra_args_support(
            optax.chain(
                optax.scale_by_factored_rms(),
                optax.clip_by_block_rms(1.0),
                optax.add_decayed_weights(config.weight_decay, decay_mask),
                optax.scale_by_learning_rate(schedule),
            )
        )
    return optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
        mu_dtype=jnp.dtype(config.first_moment_dtype),
    )


def update_ema(
    ema_params: Params, params: Params, decay: float, step: Int[Array, ""] | int
) -> Params:
    """Return the moving average (3) after one more update.

    Args:
        ema_params: The average so far, float32.
        params: The parameters after this update.
        decay: Decay d, in [0, 1).
        step: Number t of the updates before this one.
    """
    count = jnp.asarray(step, jnp.float32)
    weight = 1 - jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(lambda e, p: e + weight * (p - e), ema_params, params)
