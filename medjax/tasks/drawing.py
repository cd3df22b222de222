"""Models that draw images: what they are asked for, and what they answer."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from medjax.arrays import Array, Batch, Params
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.diffusion.schedule import Schedule
from medjax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One image to draw.

    Attributes:
        number: Index of the image. Seed and index determine its noise.
        prompt: Its caption.
        negative_prompt: Caption that guidance leads away from.
        conditioning_image: The control, in [0, 1]; with a ControlNet.
        image: The image to begin from, in [-1, 1]; with a strength below 1.
        noise: The noise to begin from; None draws it.
        label: Number of its class, for a model with classes instead of captions.
    """

    number: int
    prompt: str = ""
    negative_prompt: str = ""
    conditioning_image: Float32[np.ndarray, "H W 3"] | None = None
    image: Float32[np.ndarray, "H W 3"] | None = None
    noise: Float32[np.ndarray, "h w z"] | None = None
    label: int | None = None


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How a batch of images is drawn.

    Attributes:
        nets: Weights by network.
        draw: From `nets`, a batch and keys to stages of images (n b H W c) in [-1, 1].
        make_batch: From requests to a batch.
    """

    nets: Params
    draw: Callable[[Params, Batch, Array], Array]
    make_batch: Callable[[Sequence[Request]], dict[str, np.ndarray]]


@runtime_checkable
class DrawingModel(Protocol):
    """A trained model without captions that draws images."""

    @property
    def schedule(self) -> Schedule:
        """Its noise schedule."""
        ...

    def drawing(
        self,
        sampling: SamplingConfig,
        size: tuple[int, int],
        dtype: np.dtype,
        frames: int,
    ) -> Drawing:
        """Return how it draws.

        Args:
            sampling: Sampler, steps and guidance.
            size: Height and width in pixels.
            dtype: Dtype of the networks; noise and sampler are float32.
            frames: Stages of each image; the last is the result.

        Raises:
            UserError: If the sampler, the network and the size do not fit.
        """
        ...


def check_size(size: tuple[int, int], side: int) -> None:
    """Check that images of this height and width can be drawn.

    Args:
        size: Height and width in pixels.
        side: Divisor of both.

    Raises:
        UserError: If one is no multiple; it names the nearest sizes that are.
    """
    for pixels in size:
        below = pixels // side * side
        if pixels != below or not below:
            near = " or ".join(str(x) for x in (below, below + side) if x)
            raise UserError(
                f"size is {size[0]}x{size[1]}, expected multiples of {side}, as {near}"
            )
