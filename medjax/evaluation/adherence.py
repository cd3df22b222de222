"""Measure edge adherence: how well a generated image follows its edge condition.

Let G be the edge map of the generated image, and C the edge map of the condition. D_r
is the dilation by r pixels to each side, including diagonals. Then

    precision = |G ∧ D_r C| / |G|,   recall = |C ∧ D_r G| / |C|                    (1)
    F1 = 2 · precision · recall / (precision + recall)                            (2)

F1 is 1 if both maps are empty, and 0 if only one is empty.

F1 alone is hard to interpret: dense edges are within a few pixels of any other edges.
So F1 is reported with its chance level: the mean F1 of each image against the
conditions of all *other* images. Adherence is the difference from that level.

Source: the tolerance follows Martin, Fowlkes & Malik, "Learning to detect natural image
boundaries", PAMI 2004, section 3. Dilation replaces their assignment of pixels.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from medjax.evaluation.grids import to_uint8

Canny = Callable[[UInt8[np.ndarray, "H W 3"]], np.ndarray]
"""Maps an RGB image to its edge map, which is nonzero on an edge."""


def pairwise_edge_f1(
    generated: Bool[np.ndarray, "b H W"],
    condition: Bool[np.ndarray, "n H W"],
    tolerance_px: int = 1,
) -> Float[np.ndarray, "b n"]:
    """Return the F1 (2) of every edge map against every condition.

    Args:
        generated: Edge maps of the generated images.
        condition: Edge maps of the conditions, of any images.
        tolerance_px: r, the largest distance of matching edges, in pixels.
    """
    g, c = _rows(generated), _rows(condition)
    near_g, near_c = (
        _rows(dilate(edges, tolerance_px)) for edges in (generated, condition)
    )
    # A matrix product counts the common pixels of every pair. In float32 the counts are
    # exact for images of up to 2^24 pixels.
    return _f1(
        hits_generated=g @ near_c.T,
        hits_condition=near_g @ c.T,
        total_generated=g.sum(1)[:, None],
        total_condition=c.sum(1)[None, :],
    )


def edge_adherence(
    images: Float[np.ndarray, "b H W _"],
    conditioning_image: Float[np.ndarray, "b H W _"],
    canny: Canny | Sequence[Canny],
    tolerance_px: int = 1,
    mask: Bool[np.ndarray, "b H W"] | None = None,
) -> dict[str, float]:
    """Return how well images follow their edge conditions, and the chance level.

    Args:
        images: Generated images in [-1, 1], with 1 or 3 channels.
        conditioning_image: Edge conditions in [0, 1]. Pixels above 0.5 are edges.
        canny: Finds the edges of the images, as it did for the conditions. One function
            for all images, or one for each image.
        tolerance_px: r, in pixels.
        mask: False where an image was padded. Edges there do not count.

    Returns:
        ``edge_f1`` and ``edge_f1_chance``, which is NaN for a single image.
    """
    pixels = np.broadcast_to(to_uint8(images), (*images.shape[:3], 3))
    ways = [canny] * len(pixels) if callable(canny) else canny
    pairs = zip(ways, pixels, strict=True)
    generated = np.stack([np.asarray(way(image)) != 0 for way, image in pairs])
    condition = conditioning_image.max(-1) > 0.5
    if mask is not None:
        generated, condition = generated & mask, condition & mask
    scores = pairwise_edge_f1(generated, condition, tolerance_px)
    others = scores[~np.eye(len(scores), dtype=bool)]
    return {
        "edge_f1": float(np.diagonal(scores).mean()),
        "edge_f1_chance": float(others.mean()) if others.size else float("nan"),
    }


def dilate(
    edges: Bool[np.ndarray, "b H W"], radius_px: int
) -> Bool[np.ndarray, "b H W"]:
    """Return edges grown by `radius_px` pixels to each side, including diagonals."""
    grown = edges
    for axis in (1, 2):
        # Growth along one axis after the other gives a square.
        line = grown.copy()
        for shift in range(1, min(radius_px, edges.shape[axis] - 1) + 1):
            near, far = [slice(None)] * 3, [slice(None)] * 3
            near[axis], far[axis] = slice(None, -shift), slice(shift, None)
            line[tuple(near)] |= grown[tuple(far)]
            line[tuple(far)] |= grown[tuple(near)]
        grown = line
    return grown


def _rows(edges: Bool[np.ndarray, "b H W"]) -> Float[np.ndarray, "b p"]:
    return edges.reshape(len(edges), -1).astype(np.float32)


def _f1(
    hits_generated: np.ndarray,
    hits_condition: np.ndarray,
    total_generated: np.ndarray,
    total_condition: np.ndarray,
) -> np.ndarray:
    """Return (2) from the counts of (1), also for empty maps."""
    precision = hits_generated / np.maximum(total_generated, 1)
    recall = hits_condition / np.maximum(total_condition, 1)
    both = precision + recall
    f1 = 2 * precision * recall / np.where(both > 0, both, 1)
    return np.where((total_generated == 0) & (total_condition == 0), 1.0, f1)
