"""Interfaces of models that sample images: requests and the sampling functions."""

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
    """A request for one image.

    Attributes:
        number: Index of the image. Seed and index determine its noise.
        prompt: Caption of the image.
        negative_prompt: Caption that guidance leads away from.
        conditioning_image: Conditioning image in [0, 1], for a ControlNet, else None.
        image: Image in [-1, 1] to start from, for a strength below 1, else None.
        noise: Noise to start from. None means random noise.
        label: Number of the class, for a model with classes instead of captions. None
            means no class.
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
    """Functions and weights to sample a batch of images.

    Attributes:
        nets: Weights by network.
        draw: Function from `nets`, a batch and keys to n stages of the images
            (n b H W c), in [-1, 1].
        make_batch: Function from requests to a batch.
    """

    nets: Params
    draw: Callable[[Params, Batch, Array], Array]
    make_batch: Callable[[Sequence[Request]], dict[str, np.ndarray]]


@runtime_checkable
class DrawingModel(Protocol):
    """A trained model that samples images without captions."""

    @property
    def schedule(self) -> Schedule:
        """Noise schedule of the model."""
        ...

    def drawing(
        self,
        sampling: SamplingConfig,
        size: tuple[int, int],
        dtype: np.dtype,
        frames: int,
    ) -> Drawing:
        """Return the functions and weights to sample images.

        Args:
            sampling: Sampler, steps and guidance.
            size: Height and width in pixels.
            dtype: Data type of the networks; noise and sampler are float32.
            frames: Number of stages of each image; the last is the result.

        Raises:
            UserError: If the sampler, the network and the size do not fit together.
        """
        ...


def check_size(size: tuple[int, int], side: int) -> None:
    """Check that images of this height and width can be sampled.

    Args:
        size: Height and width in pixels.
        side: Number that must divide both.

    Raises:
        UserError: If it does not. The message names the nearest valid sizes.
    """
    for pixels in size:
        below = pixels // side * side
        if pixels != below or not below:
            near = " or ".join(str(x) for x in (below, below + side) if x)
            raise UserError(
                f"size={size[0]}x{size[1]}: expected multiples of {side}, such as "
                f"{near}"
            )
