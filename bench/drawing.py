"""Read held-out examples of a demo, sample images from it, and time the sampling."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medjax import meshes
from medjax.arrays import Params
from medjax.data.pipeline import open_dataset
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.evaluation.grids import canvas, save_png
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.models.vq_vae import VQVAE
from medjax.runs.config import RunConfig
from medjax.sampling.generate import generate
from medjax.tasks.drawing import Request
from medjax.tasks.latent_scaling import decode, encode_mean

BATCH = 16
"""Images per batch of sampling. The first batch is not timed, because it compiles."""

_SHOWN = 16
_PHANTOMS_OF_ONE_HELD_OUT = 8


def held_out(config: RunConfig, count: int) -> np.ndarray:
    """Return images of the test split in [-1, 1] (b H W 3)."""
    return pixels(records(config, count))


def records(config: RunConfig, count: int, split: str = "test") -> list[Any]:
    """Return the first `count` examples of a split, of more phantoms if necessary."""
    # A larger number of phantoms does not change the first ones or their splits.
    data = config.data
    if data.phantoms is not None:
        many = max(data.phantoms.count, _PHANTOMS_OF_ONE_HELD_OUT * count)
        more = dataclasses.replace(data.phantoms, count=many)
        data = dataclasses.replace(data, phantoms=more)
    source = open_dataset(data, split)
    return [source[i] for i in range(count)]


def pixels(records: Sequence[Any]) -> np.ndarray:
    """Return the images of examples in [-1, 1] (b H W 3)."""
    pixels = np.stack([record["image"] for record in records])
    return pixels.astype(np.float32) / 127.5 - 1


def draw(
    model: Any,
    requests: Sequence[Request],
    sampling: SamplingConfig,
    config: RunConfig,
) -> tuple[np.ndarray, float]:
    """Return images, and the seconds per image after compilation."""
    mesh = meshes.make_mesh(meshes.MeshConfig(), jax.devices())
    size = (config.data.image_size,) * 2
    drawn: Iterator[np.ndarray] = generate(
        model, requests, sampling, size, mesh, batch_size=BATCH
    )
    images = [next(drawn) for _ in range(BATCH)]
    start = time.perf_counter()
    images += drawn
    took = time.perf_counter() - start
    return np.stack(images), took / (len(images) - BATCH)


def rebuilt(
    module: VQVAE | AutoencoderKL, weights: Params, images: np.ndarray
) -> np.ndarray:
    """Return images after an autoencoder's encoder and decoder."""

    @jax.jit
    def rebuild(weights: Params, some: Any) -> Any:
        return decode(module, weights, encode_mean(module, weights, some))

    parts = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    return np.concatenate([np.asarray(rebuild(weights, part)) for part in parts])


def show(images: np.ndarray, page: Path) -> None:
    """Write a page of the first images."""
    save_png(page, canvas(images[:_SHOWN], _SHOWN // 2))
