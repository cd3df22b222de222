"""The array aliases and the batch that every part of the program speaks of."""

from typing import Any, TypedDict

import jax
from jaxtyping import Float, Int

Array = jax.Array
PyTree = Any
Params = dict[str, Any]
"""A nested dict of arrays, as Flax Linen makes it; leaves are named by their path."""


class Batch(TypedDict, total=False):
    """One global batch. Which keys are there depends on the data and the task.

    Attributes:
        images: Pixels in [-1, 1].
        conditioning_image: The control (edges, say) in [0, 1], at the images' size.
        text_ids: Token ids of the captions.
        null_text_ids: Of what guidance leads away from; the empty caption's if absent.
        noise: What samples begin with; drawn if absent.
        labels: Class indices.
        loss_mask: 1 where the image is real, 0 where it was padded.
        example_weights: 1, or 0 for an example that only fills up a batch.
        latents_mean: Mean of the cached autoencoder posterior.
        latents_logvar: Its log-variance.
    """

    images: Float[Array, "b H W c"]
    conditioning_image: Float[Array, "b H W c"]
    text_ids: Int[Array, "b l"]
    null_text_ids: Int[Array, "b l"]
    noise: Float[Array, "b h w c"]
    labels: Int[Array, " b"]
    loss_mask: Float[Array, "b H W 1"]
    example_weights: Float[Array, " b"]
    latents_mean: Float[Array, "b h w c"]
    latents_logvar: Float[Array, "b h w c"]
