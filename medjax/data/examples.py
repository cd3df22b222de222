"""Turn a record into the arrays of one example: resize, edges, padding, tokens."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from medjax.data.config import ClassDataConfig, ControlDataConfig, DataConfig
from medjax.data.edges import canny
from medjax.data.tokens import tokenize
from medjax.data.transforms import fit, loss_mask, pad, repeat_gray, same_aspect
from medjax.errors import UserError

Example = dict[str, np.ndarray]
"""Arrays by their name in `medjax.arrays.Batch`."""

_BYTES = np.arange(256, dtype=np.float32)
# The float value of each byte. To look it up takes less time than to compute it.
_FLOATS = {"images": _BYTES / 127.5 - 1.0, "conditioning_image": _BYTES / 255.0}


def make_example(
    record: dict[str, Any], tokenizer: Any, config: DataConfig, key: tuple[int, int]
) -> tuple[Example, str]:
    """Turn one record into arrays.

    Args:
        record: A record of a source; see `pipeline.Source`. Instead of its images it
            may have what `resized` makes of them.
        tokenizer: A `transformers` CLIP tokenizer. None means no captions.
        config: How to prepare the example.
        key: (seed, example number). They determine the random numbers.

    Returns:
        The arrays, and the end of the caption that did not fit ("" if all did). Arrays:
        images (H W 3, [-1, 1]); conditioning_image (H W 3, [0, 1]) for a
        `ControlDataConfig`; labels () for a `ClassDataConfig` with classes; text_ids
        (77) with a tokenizer; loss_mask (H W 1) with letterbox. A record of cached
        latents gives latents_mean and latents_logvar (h w c) instead of images. One of
        a cached caption gives text_embeddings (77 d, float16) instead of text_ids.

    Raises:
        UserError: If a stored conditioning_image has another aspect than its image, or
            a record has no class, or several.
    """
    batch, lost = make_batch([record], tokenizer, config, [key])
    return {name: array[0, ...] for name, array in batch.items()}, lost


def make_batch(
    records: Iterable[dict[str, Any]],
    tokenizer: Any,
    config: DataConfig,
    keys: Sequence[tuple[int, int]],
) -> tuple[Example, str]:
    """Turn records into the stacked arrays of `make_example`, each with its key.

    Returns:
        The arrays, and the first end of a caption that did not fit ("" if all did).

    Raises:
        UserError: As `make_example`.
    """
    batch: Example = {}
    first_lost = ""
    for row, (record, key) in enumerate(zip(records, keys, strict=True)):
        example, lost = _as_stored(record, tokenizer, config, key)
        first_lost = first_lost or lost
        for name, array in example.items():
            if not row:
                dtype = np.float32 if name in _FLOATS else array.dtype
                batch[name] = np.empty((len(keys), *array.shape), dtype)
            _write(batch[name], row, array, _FLOATS.get(name))
    return batch, first_lost


def _as_stored(
    record: dict[str, Any], tokenizer: Any, config: DataConfig, key: tuple[int, int]
) -> tuple[Example, str]:
    """Return what `make_example` does, with images and controls from 0 to 255."""
    size = config.image_size
    example: Example = {}
    lost = ""
    if "latents_mean" in record:
        for name in ("latents_mean", "latents_logvar"):
            example[name] = record[name].astype(np.float32)
    if "image" in record or "content" in record:
        made = record if "content" in record else resized(record, config)
        content = made["content"]
        if not example:
            example["images"] = pad(content, size)
        if isinstance(config, ControlDataConfig):
            example["conditioning_image"] = pad(_control(made, config, key), size)
        if config.resize == "letterbox":
            height, width = content.shape[:2]
            example["loss_mask"] = loss_mask(height, width, size)
    if isinstance(config, ClassDataConfig) and config.classes:
        example["labels"] = np.asarray(_class(record, config.classes), np.int32)
    if "text_embeddings" in record:
        example["text_embeddings"] = record["text_embeddings"]
    elif tokenizer is not None:
        example["text_ids"], lost = tokenize(tokenizer, record["text"])
    return example, lost


def _write(
    batch: np.ndarray, row: int, array: np.ndarray, floats: np.ndarray | None
) -> None:
    """Write an array, or the float value of each of its bytes, to a row of a batch.

    There is no array in between, because new memory takes longer than the computation.
    """
    if floats is None:
        batch[row] = array
        return
    # Imported here, because the training step does not need it.
    import cv2

    cv2.LUT(array, floats, dst=batch[row])


def _class(record: dict[str, Any], classes: tuple[str, ...]) -> int:
    found = [label for label in record["labels"] if label in classes]
    if len(found) != 1:
        raise UserError(
            f"record {record['id']}: its labels are {', '.join(record['labels'])}; "
            f"expected exactly one of config.data.classes={classes}"
        )
    return classes.index(found[0])


def edges(
    image: UInt8[np.ndarray, "h w 3"], config: ControlDataConfig, key: tuple[int, int]
) -> UInt8[np.ndarray, "h w"]:
    """Return an image's edges, 0 or 255, at random thresholds for this example.

    Args:
        image: RGB, 0 to 255.
        config: Ranges of the thresholds, blur and implementation.
        key: (seed, example number). They determine the thresholds.
    """
    # The 1 makes these numbers independent of the orders of the epochs.
    random = np.random.default_rng((key[0], 1, key[1]))
    low = random.uniform(*config.canny_low)
    high = random.uniform(*config.canny_high)
    return _canny(image, low, high, config)


def _canny(
    image: UInt8[np.ndarray, "h w 3"],
    low: float,
    high: float,
    config: ControlDataConfig,
) -> UInt8[np.ndarray, "h w"]:
    return canny(image, low, high, config.canny_sigma, config.canny_backend)


def resized(record: dict[str, Any], config: DataConfig) -> dict[str, Any]:
    """Return what every epoch makes of a record's images, before padding.

    Args:
        record: A record of a source; see `pipeline.Source`.
        config: How to prepare the example.

    Returns:
        content: the resized image (uint8, h w 3). For a `ControlDataConfig` also
        control: the resized conditioning_image (uint8, h w 3); or, if none is stored
        and the thresholds are fixed, edges (uint8, h w).

    Raises:
        UserError: If a stored conditioning_image has another aspect than its image.
    """
    made = {"content": fit(record["image"], config.image_size, config.resize)}
    if not isinstance(config, ControlDataConfig):
        return made
    stored = record.get("conditioning_image")
    if stored is None:
        if config.fixed_thresholds is not None:
            made["edges"] = _canny(made["content"], *config.fixed_thresholds, config)
        return made
    if not same_aspect(record["image"].shape, stored.shape):
        raise UserError(
            f"record {record['id']}: conditioning_image has shape {stored.shape[:2]}, "
            f"image has shape {record['image'].shape[:2]}. Expected the same aspect "
            "ratio"
        )
    return made | {"control": fit(stored, config.image_size, config.resize)}


def _control(
    made: dict[str, Any], config: ControlDataConfig, key: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the stored control, or the edges of the resized, unpadded image."""
    if "control" in made:
        return made["control"]
    found = made["edges"] if "edges" in made else edges(made["content"], config, key)
    return repeat_gray(found)
