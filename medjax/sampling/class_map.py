"""Compare generated and real images of each class, by a UMAP page and measures.

Images are compared by the input of the diffusion model: the autoencoder's latents, or
pixels, averaged to at most 32 × 32.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from medjax import meshes
from medjax.data.config import ClassDataConfig
from medjax.data.first_examples import FirstExamples
from medjax.data.pipeline import dataset_metadata, open_dataset, validation_batches
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.errors import UserError
from medjax.evaluation.embedding import check_embeddable, save_umap_page
from medjax.evaluation.separation import (
    check_separable,
    classifier_accuracy,
    silhouettes,
)
from medjax.sampling.generate import generate
from medjax.sampling.source import Source
from medjax.tasks.drawing import Request
from medjax.tasks.image_diffusion import TrainedImageDiffusion

logger = logging.getLogger(__name__)

# Maximum number of real images on the map; number of images per encoded batch.
_REAL, _AT_ONCE = 1000, 8
_SIDE = 32


def map_classes(
    source: Source,
    sampling: SamplingConfig,
    png: Path,
    *,
    num: int,
    seed: int = 0,
    batch_size: int = 1,
    dtype: str = "float32",
) -> dict[str, float]:
    """Sample images of each class and write a UMAP of them over real images.

    Args:
        source: A run of task unconditional, with classes.
        sampling: Sampler settings.
        png: File of the map.
        num: Number of images of each class.
        seed: Seed of all noise and of the map.
        batch_size: Images per batch, rounded up to a multiple of the devices.
        dtype: Dtype of the computation.

    Returns:
        The measures, by name; see `medjax.evaluation.separation`.

    Raises:
        UserError: If the run has no classes, or if its data are missing.
    """
    model, data = source.model, source.data
    if not isinstance(model, TrainedImageDiffusion) or not source.classes:
        raise UserError("--mode=umap requires a run that was trained with classes")
    assert isinstance(data, ClassDataConfig)
    real, labels, groups = _real(model, data)
    asked = np.repeat(np.arange(len(source.classes)), num)
    check_embeddable(len(real))
    check_separable(labels, asked, groups)
    requests = [Request(i, label=int(label)) for i, label in enumerate(asked)]
    mesh = meshes.make_mesh(meshes.MeshConfig(), jax.local_devices())
    shards = meshes.batch_shards(mesh)
    images = generate(
        model,
        requests,
        sampling,
        source.size,
        mesh,
        seed=seed,
        batch_size=-(-batch_size // shards) * shards,
        dtype=dtype,
    )
    drawn = _features(model, np.stack(list(images)))
    given = (real, labels, drawn, asked)
    measures = silhouettes(*given) | classifier_accuracy(*given, groups, seed)
    save_umap_page(*given, source.classes, png, seed, measures)
    for name, value in measures.items():
        logger.info("%s: %.3f", name.replace("_", " "), value)
    return measures


def _real(
    model: TrainedImageDiffusion, data: ClassDataConfig
) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, " n"], Sequence[str]]:
    """Return the features, classes and groups of training images."""
    some = FirstExamples(open_dataset(data, "train"), _REAL)
    plain = dataclasses.replace(data, batch_size=_AT_ONCE, workers=0)
    images, labels = [], []
    for batch in validation_batches(some, None, plain):
        kept = batch["example_weights"] > 0
        images.append(batch["images"][kept])
        labels.append(batch["labels"][kept])
    group = dataset_metadata(data).settings.get("group_name")
    groups = [str(some[i]["parameters"].get(group, i)) for i in range(len(some))]
    features = _features(model, np.concatenate(images))
    return features, np.concatenate(labels), groups


def _features(
    model: TrainedImageDiffusion, images: Float[np.ndarray, "b H W c"]
) -> Float[np.ndarray, "b d"]:
    """Return the averaged input of the diffusion model for each image."""
    encode = jax.jit(model.task.encode)
    nets = {name: net for name, net in model.nets.items() if name != "unet"}
    parts = []
    for start in range(0, len(images), _AT_ONCE):
        part: Any = images[start : start + _AT_ONCE]
        # All batches use the same noise, because a KL autoencoder samples its latents.
        keys = jax.random.split(jax.random.key(0), len(part))
        parts.append(np.asarray(encode(nets, jax.numpy.asarray(part), keys)))
    latents = np.concatenate(parts)
    b, h, w, c = latents.shape
    f = max(1, h // _SIDE)
    pooled = latents[:, : h // f * f, : w // f * f].reshape(b, h // f, f, w // f, f, c)
    return pooled.mean(axis=(2, 4)).reshape(b, -1)
