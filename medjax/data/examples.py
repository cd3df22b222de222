"""From a record to the arrays of one example: resize, edges, padding, tokens."""

from typing import Any

import numpy as np
from jaxtyping import UInt8

from medjax.data.config import DataConfig
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
        record: What a source gives.
        tokenizer: A `transformers` CLIP tokenizer.
        config: What to do.
        key: (seed, example number): fixes the random draws.

    Returns:
        images (H W 3, [-1, 1]), conditioning_image (H W 3, [0, 1]), text_ids (77), with
        letterbox loss_mask (H W 1); and the end of the caption that did not fit.

    Raises:
        UserError: If a stored conditioning_image has another aspect than its image.
    """
    size = config.image_size
    content = fit(record["image"], size, config.resize)
    condition = _condition(record, content, config, key)
    text_ids, lost = tokenize(tokenizer, record["text"])
    example = {
        "images": pad(content, size).astype(np.float32) / 127.5 - 1.0,
        "conditioning_image": pad(condition, size).astype(np.float32) / 255.0,
        "text_ids": text_ids,
    }
    if config.resize == "letterbox":
        height, width = content.shape[:2]
        example["loss_mask"] = loss_mask(height, width, size)
    return example, lost


def edges(
    image: UInt8[np.ndarray, "h w 3"], config: DataConfig, key: tuple[int, int]
) -> UInt8[np.ndarray, "h w"]:
    """Return an image's edges, 0 or 255, at thresholds drawn for this example.

    Args:
        image: In gray values.
        config: The thresholds' ranges.
        key: (seed, example number): fixes the thresholds.
    """
    # The 1 keeps these draws apart from those of the epochs' orders.
    random = np.random.default_rng((key[0], 1, key[1]))
    low = random.uniform(*config.canny_low)
    high = random.uniform(*config.canny_high)
    return canny(image, low, high, config.canny_sigma, config.canny_backend)


def _condition(
    record: dict[str, Any],
    content: UInt8[np.ndarray, "h w 3"],
    config: DataConfig,
    key: tuple[int, int],
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the stored control, or else the edges of the resized, unpadded image."""
    stored = record.get("conditioning_image")
    if stored is None:
        return np.repeat(edges(content, config, key)[:, :, None], 3, axis=2)
    if not same_aspect(record["image"].shape, stored.shape):
        raise UserError(
            f"record {record['id']}: conditioning_image of shape {stored.shape[:2]}, "
            f"image of shape {record['image'].shape[:2]}: not the same aspect"
        )
    return fit(stored, config.image_size, config.resize)
