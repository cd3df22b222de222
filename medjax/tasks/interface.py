"""What the training loop asks of a task."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Float, Key

from medjax.arrays import Array, Batch, Params
from medjax.diffusion.sampling_config import SamplingConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a task says of a batch.

    Not annotated with arrays, for as a pytree it holds their gradients' places too.

    Attributes:
        losses: (b,) each example's loss.
        metrics: (b,) each, by name: what else to log, as parts of the loss.
        observed: What `Task.follow` follows: means over the batch, a nested dict.
    """

    losses: Any
    metrics: Any = dataclasses.field(default_factory=dict)
    observed: Any = dataclasses.field(default_factory=dict)


@runtime_checkable
class Task(Protocol):
    """Pure functions of two trees: `params` gets gradients, `frozen` does not.

    A third, the statistics, is what is averaged over the updates rather than learned:
    the running averages of batch normalisation, a codebook that follows its latents.
    It is part of `frozen` wherever that is read, and `follow` renews it.
    """

    def check(self, size: int, sampling: SamplingConfig | None) -> None:
        """Raise UserError unless the networks and the sampler can do what is asked.

        Args:
            size: Height and width of the images, in pixels.
            sampling: How images will be drawn; None for tasks that draw none.
        """
        ...

    def loss(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        keys: Key[Array, " b"],
        train: bool,
    ) -> Outcome:
        """Return each example's loss, all of its draws from its own key.

        Args:
            params: What trains.
            frozen: What does not, and the statistics.
            batch: Examples.
            keys: One an example.
            train: False for validation, which drops no caption.
        """
        ...

    def follow(
        self, statistics: Params, observed: Params, key: Key[Array, ""]
    ) -> tuple[Params, dict[str, Float[Array, ""]]]:
        """Return the statistics after a batch, and what they say, by name.

        Args:
            statistics: Before it.
            observed: What the batch's `Outcome` has, averaged over microbatches.
            key: For what is drawn.
        """
        ...

    def sample(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        keys: Key[Array, " b"],
        sampling: SamplingConfig | None,
    ) -> dict[str, Float[Array, "b H W c"]]:
        """Return columns of images in [-1, 1] to show, by their titles.

        Args:
            params: What trains.
            frozen: What does not, and the statistics.
            batch: Examples, for their conditions and to compare with.
            keys: One an image.
            sampling: How images are drawn; None for tasks that draw none.
        """
        ...
