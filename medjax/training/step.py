"""One update of the parameters, as a pure function that compiles to one program.

    g = 1/N Σ_i ∇ L(params, frozen, x_i, k_i),   k_i = fold(fold(key, step), i)      (1)

The gradient of a batch is the mean over its N examples, computed in microbatches that
run one after the other where the whole batch does not fit. Each example's draws come
from its own key k_i, so they do not depend on microbatches, mesh or hosts.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Float, Int, Key

from medjax import meshes, trees
from medjax.arrays import Array, Batch, Params, PyTree
from medjax.errors import UserError
from medjax.tasks.interface import Task
from medjax.training.optimizer import update_ema


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that an update changes, and all that a checkpoint keeps.

    Not annotated with arrays, because as a pytree it also holds shapes or shardings.

    Attributes:
        step: Updates done or skipped, an int32 scalar.
        skipped: Those skipped because they were not finite, an int32 scalar.
        params: What trains: a nested dict of float32 arrays.
        statistics: What is averaged over the updates beside it; see `Task`.
        ema_params: The exponential moving average of both of these, or None.
        opt_state: The optimiser's.
    """

    step: PyTree
    skipped: PyTree
    params: PyTree
    statistics: PyTree
    ema_params: PyTree
    opt_state: PyTree

    @property
    def eval_params(self) -> Params:
        """What to validate and sample with: the average, where there is one.

        With the statistics, so that averaged weights meet those of their own past.
        """
        if self.ema_params is None:
            return trees.merge(self.params, self.statistics)
        return self.ema_params


TrainStep = Callable[
    [TrainState, Params, Batch, Array], tuple[TrainState, dict[str, Array]]
]

_Gradient = Callable[
    [Params, Params, Batch, Array], tuple[tuple[Array, PyTree], Params]
]


def init_state(
    params: Params,
    statistics: Params,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    ema: bool,
) -> TrainState:
    """Return the state before the first update, placed on `mesh`."""

    def init(params: Params, statistics: Params) -> TrainState:
        # A copy, because the step donates every array of the state.
        both = trees.merge(params, statistics)
        average = jax.tree.map(jnp.copy, both) if ema else None
        opt_state = optimizer.init(params)
        zero = jnp.int32(0)
        return TrainState(zero, zero, params, statistics, average, opt_state)

    given = (params, statistics)
    shardings = meshes.param_shardings(jax.eval_shape(init, *given), mesh)
    placed = (meshes.place_params(tree, mesh) for tree in given)
    return jax.jit(init, out_shardings=shardings)(*placed)


def example_keys(
    key: Key[Array, ""], step: Int[Array, ""] | int, count: int
) -> Key[Array, " n"]:
    """Return the key of each example of the global batch at `step` (eq. 1)."""
    at_step = jax.random.fold_in(key, step)
    return jax.vmap(lambda i: jax.random.fold_in(at_step, i))(jnp.arange(count))


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    accumulation_steps: int = 1,
    ema_decay: float | None = None,
    max_skipped: int = 0,
) -> TrainStep:
    """Return the jitted update ``(state, frozen, batch, key) -> (state, metrics)``.

    The state is donated. Metrics are scalars: ``loss``, the mean over the batch,
    ``grad_norm``, before clipping, ``skipped_updates`` so far, and the task's. An
    update whose loss or gradient is not finite changes nothing but the counts; once
    more than `max_skipped` were skipped, none does, so that the failure can be looked
    into.

    Args:
        task: Gives the loss.
        optimizer: Takes the mean gradient, and its norm as `grad_norm` if it uses that.
        mesh: Where arrays lie.
        accumulation_steps: Microbatches of one update.
        ema_decay: Of the average, where the state has one.
        max_skipped: Updates that may be skipped for not being finite.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def step(
        state: TrainState, frozen: Params, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        count = jax.tree.leaves(batch)[0].shape[0]
        keys = example_keys(key, state.step, count)
        fixed = trees.merge(frozen, state.statistics)
        gradient = _mean_gradient(task, count // accumulation_steps)
        (loss, about), gradients = gradient(state.params, fixed, batch, keys)
        metrics, observed = about
        # No example has this key: their numbers begin at 0.
        follow_key = jax.random.fold_in(jax.random.fold_in(key, state.step), count)
        statistics, said = task.follow(state.statistics, observed, follow_key)
        grad_norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        def update() -> tuple[PyTree, ...]:
            updates, opt_state = optimizer.update(
                gradients, state.opt_state, state.params, grad_norm=grad_norm
            )
            params = optax.apply_updates(state.params, updates)
            ema_params = state.ema_params
            if ema_params is not None and ema_decay is not None:
                new = trees.merge(params, statistics)
                ema_params = update_ema(ema_params, new, ema_decay, state.step)
            return params, statistics, ema_params, opt_state

        def keep() -> tuple[PyTree, ...]:
            return state.params, state.statistics, state.ema_params, state.opt_state

        applies = finite & (state.skipped <= max_skipped)
        params, statistics, ema_params, opt_state = _either(applies, update, keep)
        skipped = state.skipped + jnp.int32(~finite)
        own = {"loss": loss, "grad_norm": grad_norm, "skipped_updates": skipped}
        state = TrainState(
            state.step + 1, skipped, params, statistics, ema_params, opt_state
        )
        return state, own | metrics | said

    def sharded_step(
        state: TrainState, frozen: Params, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        state, metrics = step(state, frozen, batch, key)
        shardings = meshes.param_shardings(state, mesh)
        return jax.lax.with_sharding_constraint(state, shardings), metrics

    return jax.jit(meshes.on_mesh(mesh, sharded_step), donate_argnums=0)


def _mean_gradient(task: Task, microbatch_size: int) -> _Gradient:
    """Return ``(params, fixed, batch, keys) -> ((loss, (metrics, observed)), ∇)``.

    All are means over the batch, which is computed in microbatches (eq. 1).
    """

    def gradient(
        params: Params, frozen: Params, batch: Batch, keys: Array
    ) -> tuple[tuple[Float[Array, ""], PyTree], Params]:
        def mean_loss(params: Params) -> tuple[Float[Array, ""], PyTree]:
            outcome = task.loss(params, frozen, batch, keys, train=True)
            metrics = {name: x.mean() for name, x in outcome.metrics.items()}
            return outcome.losses.mean(), (metrics, outcome.observed)

        return jax.value_and_grad(mean_loss, has_aux=True)(params)

    def accumulated(
        params: Params, frozen: Params, batch: Batch, keys: Array
    ) -> tuple[tuple[Float[Array, ""], PyTree], Params]:
        if keys.shape[0] == microbatch_size:
            return gradient(params, frozen, batch, keys)
        # Microbatches take every n-th example, so each device keeps its own.
        return optax.microbatching.microbatch(
            gradient,
            argnums=(2, 3),
            microbatch_size=microbatch_size,
            accumulator=optax.microbatching.AccumulationType.MEAN,
        )(params, frozen, batch, keys)

    return accumulated


def _either(
    first: Array, one: Callable[[], PyTree], other: Callable[[], PyTree]
) -> PyTree:
    """Return what the one gives if `first`, else what the other gives.

    On the CPU by a branch: chosen leaf by leaf, the old moments would be copied, to be
    there still for the parameters when they are overwritten. A GPU would wait at a
    branch until the host has read which it is.
    """
    return jax.lax.platform_dependent(
        cpu=lambda: jax.lax.cond(first, one, other),
        default=lambda: jax.tree.map(
            functools.partial(jnp.where, first), one(), other()
        ),
    )


def check_batch_size(batch_size: int, accumulation_steps: int, mesh: Mesh) -> None:
    """Raise UserError unless microbatches and devices divide the global batch."""
    shards = meshes.batch_shards(mesh)
    if accumulation_steps < 1 or batch_size % (accumulation_steps * shards):
        raise UserError(
            f"config.data.batch_size={batch_size} is not divisible by "
            f"config.train.gradient_accumulation_steps={accumulation_steps} × {shards} "
            f"devices over (data, fsdp); use a multiple of "
            f"{max(accumulation_steps, 1) * shards}"
        )
