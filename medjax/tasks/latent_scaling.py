"""Encode images to latents of unit variance for diffusion, and decode them.

A noise schedule assumes unit variance. So latents are normalised: the mean is
subtracted and the result is divided by the standard deviation. Both are measured for
each channel on training images.

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
from medjax.blank import wants_blank
from medjax.data.config import DataConfig
from medjax.errors import UserError
from medjax.models.apply import apply
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.models.vq_vae import VQVAE, nearest_codes
from medjax.tasks.random_draws import normal

# Largest number of training images to measure, and the batch size for it.
_MEASURED, _AT_ONCE = 2048, 16


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedAutoencoder:
    """An autoencoder and its weights.

    Attributes:
        module: Network of the autoencoder.
        weights: Parameters ``network``; for a VQ-VAE also ``codebook`` (k d).
        fingerprint: Fingerprint of the weights.
    """

    module: VQVAE | AutoencoderKL
    weights: Params
    fingerprint: str

    @property
    def channels(self) -> int:
        """Number of channels of its images: 1 for grayscale, or 3."""
        vq_vae = isinstance(self.module, VQVAE)
        return self.module.channels if vq_vae else self.module.in_channels

    def identity(self, source: str) -> dict[str, str]:
        """Return source and fingerprints, to recognise it; see `trees.identity`."""
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
    """Return the latents of images in [-1, 1], not normalised.

    Latents of a VQ-VAE are not quantised. Latents of a KL autoencoder are random
    samples, with one key per image.
    """
    if isinstance(module, VQVAE):
        return encode_mean(module, weights, images)
    mean, logvar = apply(module, weights["network"], images, method="encode")
    return mean + jnp.exp(0.5 * logvar) * normal(keys, mean.shape[1:])


def encode_mean(
    module: VQVAE | AutoencoderKL, weights: Params, images: Float[Array, "b H W c"]
) -> Float[Array, "b h w d"]:
    """Return the latents of images, or their means for a KL autoencoder.

    Images are in [-1, 1]; see `encode`.
    """
    latents = apply(module, weights["network"], images, method="encode")
    return latents if isinstance(module, VQVAE) else latents[0]


def decode(
    module: VQVAE | AutoencoderKL, weights: Params, latents: Float[Array, "b h w d"]
) -> Float[Array, "b H W c"]:
    """Return the images, clipped to [-1, 1], of latents that are not normalised.

    Latents of a VQ-VAE are first replaced by the nearest entries of its codebook.
    """
    if isinstance(module, VQVAE):
        codebook = weights["codebook"]
        latents = codebook[nearest_codes(latents, codebook)]
    images = apply(module, weights["network"], latents, method="decode")
    return jnp.clip(images.astype(jnp.float32), -1, 1)


def with_channels(
    images: Float[Array, "b H W c"], channels: int
) -> Float[Array, "b H W d"]:
    """Return images with this number of channels, in gray if it differs.

    Three channels become one by their mean, and one becomes three by repetition.
    """
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
    """Measure the mean and the standard deviation of each channel of latents.

    Args:
        trained: The autoencoder.
        batches: Batches with ``images`` and ``example_weights``, all of one size.
        channels: Number of channels of the autoencoder's images.
        key: Key for the random latents of a KL autoencoder.

    Raises:
        UserError: If the latents of a channel do not vary.
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
    # Sums in float32 cannot distinguish a smaller variance from zero.
    if not (variance > 1e-10 + 1e-6 * mean**2).all():
        raise UserError(
            f"the autoencoder's latents do not vary in channel "
            f"{int(np.argmin(variance))}, so they cannot be scaled to unit variance. "
            "The autoencoder has collapsed: train it again, for more steps or with "
            "another learning rate"
        )
    deviation = np.sqrt(variance)
    return mean.astype(np.float32), deviation.astype(np.float32)


def latent_deviation(
    trained: TrainedAutoencoder, source: Any, data: DataConfig, key: Key[Array, ""]
) -> np.float32:
    """Return the standard deviation of training images' latents over all channels.

    Stable Diffusion's autoencoders have one factor for all channels, and no shift.
    Arguments are the same as for `measure_latents`.
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
    """Measure mean and standard deviation of each channel of training images' latents.

    Args:
        trained: The autoencoder.
        source: Training split. Up to 2048 of its images are measured.
        data: How images are prepared.
        channels: Number of channels of the autoencoder's images.
        key: Key for the random latents of a KL autoencoder.

    Raises:
        UserError: If the latents of a channel do not vary.
    """
    if wants_blank():
        depth = trained.module.latent_channels
        return np.zeros(depth, np.float32), np.ones(depth, np.float32)
    # Imported here, because the training step imports all tasks but needs no data.
    from medjax.data.pipeline import make_batches

    data = dataclasses.replace(data, batch_size=_AT_ONCE, workers=0)
    batches = make_batches(source, None, data, repeat=False)
    with contextlib.closing(batches):
        some = itertools.islice(batches, _MEASURED // _AT_ONCE)
        return latent_moments(trained, some, channels, key)
