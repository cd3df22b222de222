"""What the training loop asks of a task."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Key

from medjax.arrays import Array, Batch, Params
from medjax.tasks.latent_diffusion import SamplingConfig


@runtime_checkable
class Task(Protocol):
    """Pure functions of two trees: `params` gets gradients, `frozen` does not."""

    def check_image_size(self, size: int) -> None:
        """Raise UserError unless images of size × size pixels fit the networks."""
        ...

    def loss(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        keys: Key[Array, " b"],
        train: bool,
    ) -> Float[Array, " b"]:
        """Return each example's loss, all of its draws from its own key.

        Args:
            params: What trains.
            frozen: What does not.
            batch: Examples.
            keys: One an example.
            train: False for validation, which drops no caption.
        """
        ...

    def sample(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        keys: Key[Array, " b"],
        sampling: SamplingConfig,
    ) -> Float[Array, "b H W c"]:
        """Return images in [-1, 1] for a batch's conditions, one key an image."""
        ...


@dataclasses.dataclass(frozen=True)
class Assembly:
    """A task, ready to train.

    Attributes:
        task: Its functions.
        params: What trains, float32.
        frozen: What does not.
        tokenizer: For the captions.
        base: What the frozen weights are, to be found again: source, fingerprint.
    """

    task: Task
    params: Params
    frozen: Params
    tokenizer: Any
    base: dict[str, str]
