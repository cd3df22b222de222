"""Turn a record into the arrays of one example: resize, edges, padding, tokens."""

from typing import Any

import numpy as np
from jaxtyping import UInt8

from medjax.data.config import ClassDataConfig, ControlDataConfig, DataConfig
from medjax.data.edges import canny
from medjax.data.tokens import tokenize
from medjax.data.transforms import fit, loss_mask, pad, same_aspect
from medjax.errors import UserError

Example = dict[str, np.ndarray]
"""Arrays by their name in `medjax.arrays.Batch`."""


def make_example(
    record: dict[str, Any], tokenizer: Any, config: DataConfig, key: tuple[int, int]
) -> tuple[Example, str]:
    """Turn one record into arrays.

    Args:
        record: A record of a source; see `pipeline.Source`.
        tokenizer: A `transformers` CLIP tokenizer. None means no captions.
        config: How to prepare the example.
        key: (seed, example number). They determine the random numbers.

    Returns:
        The arrays, and the end of the caption that did not fit ("" if all did). Arrays:
        images (H W 3, [-1, 1]); conditioning_image (H W 3, [0, 1]) for a
        `ControlDataConfig`; labels () for a `ClassDataConfig` with classes; text_ids
        (77) with a tokenizer; loss_mask (H W 1) with letterbox. A record of cached
        latents gives latents_mean and latents_logvar (h w c) instead of images. One of
        a cached caption gives text_embeddings (77 d, float16) too.

    Raises:
        UserError: If a stored conditioning_image has another aspect than its image, or
            a record has no class, or several.
    """
    size = config.image_size
    example: Example = {}
    lost = ""
    if "latents_mean" in record:
        for name in ("latents_mean", "latents_logvar"):
            example[name] = record[name].astype(np.float32)
    if "image" in record:
        content = fit(record["image"], size, config.resize)
        if not example:
            example["images"] = pad(content, size).astype(np.float32) / 127.5 - 1.0
        if isinstance(config, ControlDataConfig):
            condition = pad(_condition(record, content, config, key), size)
            example["conditioning_image"] = condition.astype(np.float32) / 255.0
        if config.resize == "letterbox":
            height, width = content.shape[:2]
            example["loss_mask"] = loss_mask(height, width, size)
    if isinstance(config, ClassDataConfig) and config.classes:
        example["labels"] = np.asarray(_class(record, config.classes), np.int32)
    if tokenizer is not None:
        example["text_ids"], lost = tokenize(tokenizer, record["text"])
    if "text_embeddings" in record:
        example["text_embeddings"] = record["text_embeddings"]
    return example, lost


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
    return canny(image, low, high, config.canny_sigma, config.canny_backend)


def _condition(
    record: dict[str, Any],
    content: UInt8[np.ndarray, "h w 3"],
    config: ControlDataConfig,
    key: tuple[int, int],
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the stored control, or the edges of the resized, unpadded image."""
    stored = record.get("conditioning_image")
    if stored is None:
        return np.repeat(edges(content, config, key)[:, :, None], 3, axis=2)
    if not same_aspect(record["image"].shape, stored.shape):
        raise UserError(
            f"record {record['id']}: conditioning_image has shape {stored.shape[:2]}, "
            f"image has shape {record['image'].shape[:2]}. Expected the same aspect "
            "ratio"
        )
    return fit(stored, config.image_size, config.resize)
