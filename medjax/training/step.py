"""One training step, as a pure function that compiles to one program.

    g = 1/N Σ_i ∇ L(params, frozen, x_i, k_i),   k_i = fold(fold(key, step), i)      (1)

The gradient of a batch is the mean over its N examples. If the whole batch does not fit
into memory, microbatches run one after the other. The random numbers of each example
come from its own key k_i. So they do not depend on microbatches, mesh or hosts.
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
    """Everything that a step changes, and everything that a checkpoint keeps.

    The fields are not annotated as arrays, because this pytree also holds shapes or
    shardings.

    Attributes:
        step: Steps done, with skipped updates or not, an int32 scalar.
        skipped: Updates skipped because they were not finite, an int32 scalar.
        params: Trained parameters, a nested dict of float32 arrays.
        statistics: Averages over the steps, which get no gradients; see `Task`.
        ema_params: Exponential moving average of `params` and `statistics`, or None.
        opt_state: State of the optimiser.
    """

    step: PyTree
    skipped: PyTree
    params: PyTree
    statistics: PyTree
    ema_params: PyTree
    opt_state: PyTree

    @property
    def eval_params(self) -> Params:
        """Weights to validate and sample with: the moving average, if it exists.

        The statistics are included. The average has its own, because averaged weights
        need the statistics of their own past.
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
    """Return the state before the first step, placed on `mesh`."""
    init = _first_state(optimizer, ema)
    given = (params, statistics)
    shardings = meshes.param_shardings(jax.eval_shape(init, *given), mesh)
    placed = (meshes.place_params(tree, mesh) for tree in given)
    return jax.jit(init, out_shardings=shardings)(*placed)


def state_shapes(
    params: Params,
    statistics: Params,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    ema: bool,
) -> TrainState:
    """Return shapes, types and shardings of the state, which is not computed."""
    shapes = jax.eval_shape(_first_state(optimizer, ema), params, statistics)
    return meshes.sharded_shapes(shapes, meshes.param_shardings(shapes, mesh))


def _first_state(
    optimizer: optax.GradientTransformation, ema: bool
) -> Callable[[Params, Params], TrainState]:
    def init(params: Params, statistics: Params) -> TrainState:
        # A copy, because the step donates every array of the state.
        both = trees.merge(params, statistics)
        average = jax.tree.map(jnp.copy, both) if ema else None
        opt_state = optimizer.init(params)
        zero = jnp.int32(0)
        return TrainState(zero, zero, params, statistics, average, opt_state)

    return init


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
    """Return the jitted step ``(state, frozen, batch, key) -> (state, metrics)``.

    The state is donated. Metrics are scalars: ``loss``, the mean over the batch,
    ``grad_norm``, before clipping, ``skipped_updates`` so far, and the task's. An
    update whose loss or gradient is not finite changes only the counts. After more than
    `max_skipped` skipped updates, no update is applied, so that the failure can be
    inspected.

    Args:
        task: Computes the loss.
        optimizer: Gets the mean gradient, and its norm as `grad_norm` if it uses that.
        mesh: Mesh on which the arrays are placed.
        accumulation_steps: Microbatches of one step.
        ema_decay: Decay of the moving average, if the state has one.
        max_skipped: Maximum number of updates to skip because they are not finite.
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
        # No example has this key, because the last example has number count - 1.
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

    All results are means over the batch, computed in microbatches (eq. 1).
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
        # A microbatch takes every n-th example, so each device keeps its examples.
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
    """Return `one()` if `first`, else `other()`.

    On the CPU this is a branch. A choice leaf by leaf would copy the old moments,
    because the parameters still need them after they are overwritten. Elsewhere the
    choice is leaf by leaf: at a branch, a GPU would wait until the host has read
    `first`.
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
            f"config.data.batch_size={batch_size}: not divisible by "
            f"config.train.gradient_accumulation_steps={accumulation_steps} × {shards} "
            f"devices over (data, fsdp). Expected a multiple of "
            f"{max(accumulation_steps, 1) * shards}"
        )
