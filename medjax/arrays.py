"""Array aliases and the type of a batch, used in the whole program."""

from typing import Any, TypedDict

import jax
from jaxtyping import Float, Int

Array = jax.Array
PyTree = Any
Params = dict[str, Any]
"""A nested dict of arrays, as Flax Linen makes it. The path of a leaf is its name."""


class Batch(TypedDict, total=False):
    """One global batch. Its keys depend on the data and the task.

    Attributes:
        images: Pixels in [-1, 1].
        conditioning_image: Control image, such as edges, in [0, 1], at the size of
            `images`.
        text_ids: Token ids of the captions.
        null_text_ids: Token ids of the text that guidance leads away from. If missing,
            those of the empty caption.
        noise: Noise at which sampling starts. Random if missing.
        labels: Class indices.
        loss_mask: 1 where the image is real, 0 where it is padding.
        example_weights: 1 for an example, 0 for one that only fills up a batch.
        latents_mean: Mean of the cached autoencoder posterior.
        latents_logvar: Log-variance of the cached autoencoder posterior.
        text_embeddings: Cached embeddings of the captions, instead of `text_ids`.
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
    text_embeddings: Float[Array, "b l d"]
