"""Report a loss or gradient that is NaN or infinite, or stop the run."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Int, Key

from medjax import meshes, trees
from medjax.arrays import Array, Batch, Params
from medjax.data.config import DataConfig
from medjax.data.pipeline import Source, record_ids
from medjax.errors import UserError
from medjax.tasks.interface import Task
from medjax.training.step import TrainState, example_keys

logger = logging.getLogger(__name__)

_MOST_NAMED = 8


def nonfinite_examples(
    task: Task,
    params: Params,
    frozen: Params,
    batch: Batch,
    keys: Key[Array, " b"],
    mesh: Mesh,
) -> list[int]:
    """Return the indices in the batch of examples without finite loss and gradient.

    Each example is computed alone, so this takes the time of b steps and one
    compilation.

    Args:
        task: Computes the loss.
        params: The trained parameters before the update that failed.
        frozen: The frozen parameters, and the statistics.
        batch: The batch of that update.
        keys: Keys of its examples.
        mesh: Mesh on which the arrays are placed.
    """
    copies = meshes.batch_shards(mesh)

    def is_finite(
        params: Params, frozen: Params, batch: Batch, keys: Array, index: Int[Array, ""]
    ) -> Array:
        batch, keys = jax.tree.map(
            lambda x: jnp.broadcast_to(x[index], (copies, *x.shape[1:])), (batch, keys)
        )

        def loss(params: Params) -> Array:
            return task.loss(params, frozen, batch, keys, train=True).losses.mean()

        value, gradient = jax.value_and_grad(loss)(params)
        return jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(gradient))

    check = jax.jit(meshes.on_mesh(mesh, is_finite))
    return [
        index
        for index in range(keys.shape[0])
        if not check(params, frozen, batch, keys, jnp.int32(index))
    ]


@dataclasses.dataclass(frozen=True)
class Culprits:
    """Finds the examples that caused an update that was not finite.

    Attributes:
        task: The task, which computes the loss.
        frozen: The frozen parameters.
        examples: The training split.
        data: How its batches are made.
        key: Key of all randomness in training.
        mesh: Mesh on which the arrays are placed.
    """

    task: Task
    frozen: Params
    examples: Source
    data: DataConfig
    key: Key[Array, ""]
    mesh: Mesh

    def __call__(self, state: TrainState, step: int, batch: Batch) -> list[str]:
        """Return the ids of the examples without a finite loss and gradient.

        Args:
            state: The state before that update, which did not change it.
            step: Number of the step, from 1.
            batch: Examples of the step.
        """
        ids = record_ids(self.examples, self.data, step - 1)
        keys = example_keys(self.key, step - 1, len(ids))
        fixed = trees.merge(self.frozen, state.statistics)
        found = nonfinite_examples(
            self.task, state.params, fixed, batch, keys, self.mesh
        )
        return [ids[number] for number in found]


class NonfiniteWatch:
    """Warns about skipped updates; stops the run when there are too many.

    It reads the numbers of one step while the next one computes, so that the devices
    never wait. The compiled step itself skips an update that is not finite.
    """

    def __init__(
        self,
        max_skipped: int,
        skipped: int,
        culprits: Callable[[TrainState, int, Batch], Sequence[str]],
    ) -> None:
        """Begin to watch.

        Args:
            max_skipped: Maximum number of updates that the whole run may skip.
            skipped: Updates skipped before.
            culprits: Returns the ids of the examples that caused it; see `Culprits`.

        Raises:
            UserError: If more than `max_skipped` were skipped before, because no update
                would be applied then.
        """
        if skipped > max_skipped:
            raise UserError(
                f"config.train.max_skipped_updates={max_skipped}: this run has already "
                f"skipped {skipped} updates. Expected at least {skipped}"
            )
        self._max_skipped = max_skipped
        self._skipped = skipped
        self._culprits = culprits
        self._unseen: list[tuple[int, Batch, Mapping[str, Array]]] = []

    def look(
        self,
        state: TrainState,
        step: int,
        batch: Batch,
        metrics: Mapping[str, Array],
        now: bool,
    ) -> None:
        """Check the step before this one, and if `now` this one too.

        Args:
            state: State after this step. It is not kept, because the next step donates
                it.
            step: Number of the step, from 1.
            batch: Examples of the step.
            metrics: Metrics that the step returned.
            now: Whether to wait for this step.

        Raises:
            UserError: If too many updates were skipped. Names the step and the
                examples.
        """
        self._unseen.append((step, batch, metrics))
        while len(self._unseen) > (not now):
            self._look(state, *self._unseen.pop(0))

    def _look(
        self,
        state: TrainState,
        step: int,
        batch: Batch,
        metrics: Mapping[str, Array],
    ) -> None:
        skipped = int(metrics["skipped_updates"])
        if skipped == self._skipped:
            return
        self._skipped = skipped
        what = (
            f"step {step}: loss {float(metrics['loss']):.4g}, gradient norm "
            f"{float(metrics['grad_norm']):.4g}"
        )
        if skipped <= self._max_skipped:
            most = self._max_skipped
            logger.warning("%s: update skipped (%d of at most %d)", what, skipped, most)
            return
        found = self._culprits(state, step, batch)
        total = jax.tree.leaves(batch)[0].shape[0]
        named = ", ".join(f"'{name}'" for name in found[:_MOST_NAMED])
        more = ", …" if len(found) > _MOST_NAMED else ""
        if len(found) == total:
            advice = "the run diverges: lower config.optim.learning_rate"
        else:
            advice = (
                "check these images, or allow more skipped updates: "
                f"--config.train.max_skipped_updates={skipped + 9}"
            )
        raise UserError(
            f"{what}: not finite for {len(found)} of {total} examples ({named}{more}); "
            f"{advice}"
        )
