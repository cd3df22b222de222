"""What to do about a loss or a gradient that is NaN or infinite: tell, or stop."""

import logging
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Int, Key

from medjax import meshes
from medjax.arrays import Array, Batch, Params
from medjax.errors import UserError
from medjax.tasks.interface import Task

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
    """Return the numbers, in the batch, of examples with no finite loss and gradient.

    Each is computed by itself, so this takes b updates' time and one compilation.

    Args:
        task: Gives the loss.
        params: The parameters before the update that failed.
        frozen: The frozen ones, and the statistics.
        batch: That update's.
        keys: The examples' keys in it.
        mesh: Where arrays lie.
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


class NonfiniteWatch:
    """Tells of updates that were skipped, and stops the run when there are too many.

    It looks at an update's numbers while the next one computes, so that the device
    never waits for it. The step itself keeps such updates from doing harm.
    """

    def __init__(
        self,
        max_skipped: int,
        skipped: int,
        culprits: Callable[[int, Batch], Sequence[str]],
    ) -> None:
        """Begin to watch.

        Args:
            max_skipped: Updates that may be skipped over the whole run.
            skipped: Those that were, before.
            culprits: Gives the ids of the examples to blame, from step and batch.

        Raises:
            UserError: If more were skipped before, for then no update would apply.
        """
        if skipped > max_skipped:
            raise UserError(
                f"config.train.max_skipped_updates={max_skipped}, but this run has "
                f"skipped {skipped} updates before; give at least {skipped}"
            )
        self._max_skipped = max_skipped
        self._skipped = skipped
        self._culprits = culprits
        self._unseen: list[tuple[int, Batch, Mapping[str, Array]]] = []

    def look(
        self, step: int, batch: Batch, metrics: Mapping[str, Array], now: bool
    ) -> None:
        """Look at the update before this one; at this one too where `now`.

        Raises:
            UserError: If too many updates were skipped; it names step and examples.
        """
        self._unseen.append((step, batch, metrics))
        while len(self._unseen) > (not now):
            self._look(*self._unseen.pop(0))

    def _look(self, step: int, batch: Batch, metrics: Mapping[str, Array]) -> None:
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
        found = self._culprits(step, batch)
        total = jax.tree.leaves(batch)[0].shape[0]
        named = ", ".join(f"'{name}'" for name in found[:_MOST_NAMED])
        more = ", …" if len(found) > _MOST_NAMED else ""
        if len(found) == total:
            advice = "the run diverges: lower config.optim.learning_rate"
        else:
            advice = (
                "look at these images, or allow some such updates to be skipped: "
                f"--config.train.max_skipped_updates={skipped + 9}"
            )
        raise UserError(
            f"{what}: not finite for {len(found)} of {total} examples ({named}{more}); "
            f"{advice}"
        )
