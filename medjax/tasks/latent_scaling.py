"""Autoencoders as diffusion sees them: latents of unit variance, and back.

Latents are what an encoder gives, less their mean and over their deviation, channel by
channel, as measured on training images, so that a noise schedule means what it says.

Source: Rombach et al., 2022, appendix G (rescaled to unit variance).
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Key

from medjax import trees
from medjax.arrays import Array, Params
from medjax.data.config import DataConfig
from medjax.errors import UserError
from medjax.models.apply import apply
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.models.vq_vae import VQVAE, nearest_codes
from medjax.tasks.random_draws import normal

# Training images whose latents are measured, at most, and at a time.
_MEASURED, _AT_ONCE = 2048, 16


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedAutoencoder:
    """An autoencoder and its weights.

    Attributes:
        module: The network.
        weights: Its parameters, ``network``; of a VQ-VAE also ``codebook`` (k d).
        fingerprint: Of the weights.
    """

    module: VQVAE | AutoencoderKL
    weights: Params
    fingerprint: str

    @property
    def channels(self) -> int:
        """Of its images: 1 for gray ones, or 3."""
        vq_vae = isinstance(self.module, VQVAE)
        return self.module.channels if vq_vae else self.module.in_channels

    def identity(self, source: str) -> dict[str, str]:
        """Return how a run knows that it stands on this; see `trees.identity`."""
        return {
            "source": source,
            "fingerprint": self.fingerprint,
            "sparse_fingerprint": trees.sparse_fingerprint(self.weights),
        }


def encode(
    module: VQVAE | AutoencoderKL,
    weights: Params,
    images: Float[Array, "b H W c"],
    keys: Key[Array, " b"],
) -> Float[Array, "b h w d"]:
    """Return the latents of images in [-1, 1], not scaled.

    Those of a VQ-VAE are not quantised; those of a KL autoencoder are drawn, one key an
    image.
    """
    if isinstance(module, VQVAE):
        return encode_mean(module, weights, images)
    mean, logvar = apply(module, weights["network"], images, method="encode")
    return mean + jnp.exp(0.5 * logvar) * normal(keys, mean.shape[1:])


def encode_mean(
    module: VQVAE | AutoencoderKL, weights: Params, images: Float[Array, "b H W c"]
) -> Float[Array, "b h w d"]:
    """Return the latents of images, of a KL autoencoder their means; see `encode`."""
    latents = apply(module, weights["network"], images, method="encode")
    return latents if isinstance(module, VQVAE) else latents[0]


def decode(
    module: VQVAE | AutoencoderKL, weights: Params, latents: Float[Array, "b h w d"]
) -> Float[Array, "b H W c"]:
    """Return images, clipped to [-1, 1], of latents that are not scaled.

    Those of a VQ-VAE are replaced by the nearest entries of its codebook first.
    """
    if isinstance(module, VQVAE):
        codebook = weights["codebook"]
        latents = codebook[nearest_codes(latents, codebook)]
    images = apply(module, weights["network"], latents, method="decode")
    return jnp.clip(images.astype(jnp.float32), -1, 1)


def with_channels(
    images: Float[Array, "b H W c"], channels: int
) -> Float[Array, "b H W d"]:
    """Return images of so many channels: the mean of three, or one three times."""
    if images.shape[-1] == channels:
        return images
    gray = images.mean(axis=-1, keepdims=True)
    return jnp.broadcast_to(gray, (*images.shape[:-1], channels))


def latent_moments(
    trained: TrainedAutoencoder,
    batches: Iterable[Mapping[str, np.ndarray]],
    channels: int,
    key: Key[Array, ""],
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """Measure the mean and the deviation of each channel of latents.

    Args:
        trained: The autoencoder.
        batches: Of ``images`` and ``example_weights``; all of one size.
        channels: Of the autoencoder's images.
        key: For what a KL autoencoder draws.
    """

    @jax.jit
    def sums(images: Array, weights: Array, keys: Array) -> tuple[Array, Array]:
        images = with_channels(images, channels)
        latents = encode(trained.module, trained.weights, images, keys)
        weights = weights[:, None, None, None]
        return (
            (weights * latents).mean((1, 2)).sum(0),
            (weights * jnp.square(latents)).mean((1, 2)).sum(0),
        )

    depth = trained.module.latent_channels
    count, total, squares = 0.0, np.zeros(depth), np.zeros(depth)
    for number, batch in enumerate(batches):
        images, weights = batch["images"], batch["example_weights"]
        keys = jax.random.split(jax.random.fold_in(key, number), len(images))
        first, second = sums(images, weights, keys)
        count += float(weights.sum())
        total = total + np.asarray(first, np.float64)
        squares = squares + np.asarray(second, np.float64)
    mean = total / count
    variance = squares / count - mean**2
    # Sums of float32 tell no smaller one from none.
    if not (variance > 1e-10 + 1e-6 * mean**2).all():
        raise UserError(
            f"the autoencoder's latents do not vary in channel "
            f"{int(np.argmin(variance))}, so they cannot be scaled to unit variance: "
            "it has collapsed; train it anew, for longer or with another learning rate"
        )
    deviation = np.sqrt(variance)
    return mean.astype(np.float32), deviation.astype(np.float32)


def latent_deviation(
    trained: TrainedAutoencoder, source: Any, data: DataConfig, key: Key[Array, ""]
) -> np.float32:
    """Return the deviation of all latents of training images, whatever their channel.

    Stable Diffusion's autoencoders have one factor for all, and no shift. Arguments are
    those of `measure_latents`.
    """
    mean, deviation = measure_latents(trained, source, data, trained.channels, key)
    return np.float32(np.sqrt(np.mean(deviation**2) + np.var(mean)))


def measure_latents(
    trained: TrainedAutoencoder,
    source: Any,
    data: DataConfig,
    channels: int,
    key: Key[Array, ""],
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """Measure the mean and the deviation of each channel of training images' latents.

    Args:
        trained: The autoencoder.
        source: The training split, of which up to 2048 images count.
        data: How images are made.
        channels: Of the autoencoder's images.
        key: For what a KL autoencoder draws.
    """
    # Imported here: the training step, which knows all tasks, needs no data.
    from medjax.data.pipeline import make_batches

    data = dataclasses.replace(data, batch_size=_AT_ONCE, workers=0)
    batches = make_batches(source, None, data, repeat=False)
    with contextlib.closing(batches):
        some = itertools.islice(batches, _MEASURED // _AT_ONCE)
        return latent_moments(trained, some, channels, key)
