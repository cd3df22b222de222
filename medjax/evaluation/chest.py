"""Measure the findings in images of chest phantoms and compare them with captions.

The findings are heart width, effusions and pneumothoraces, measured from pixels alone.
They show whether a model of phantoms follows its prompts. An image that does not show a
chest gets values, too. So agreement is reported with its chance level, as edge
adherence is.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from skimage.transform import resize_local_mean

from medjax.data.captions import labels_of
from medjax.data.config import DataConfig
from medjax.data.phantoms import CARDIOMEGALY_RATIO
from medjax.errors import UserError
from medjax.evaluation.chest_reader import IMAGE_SIZE, fit_reader

_SMALLEST_EFFUSION_CM, _SMALLEST_PNEUMOTHORAX_CM = 5.5, 2.0
_STATES = ("none", "left", "right", "both")


@dataclasses.dataclass(frozen=True)
class ChestMeasure:
    """Measured findings of b images.

    Attributes:
        heart_width_ratio: Cardiothoracic ratio.
        is_ap: Whether the view is AP, not PA. The view decides the limit of the ratio.
        effusion_left_cm: Height of the fluid above the costophrenic sulcus on the
            patient's left, in cm; about 0 without fluid.
        effusion_right_cm: Height of the fluid on the patient's right, likewise.
        pneumothorax_left_cm: Largest width of the air outside the lung on the patient's
            left, in cm; about 0 without such air.
        pneumothorax_right_cm: Largest width of the air on the patient's right,
            likewise.
    """

    heart_width_ratio: Float[np.ndarray, " b"]
    is_ap: Bool[np.ndarray, " b"]
    effusion_left_cm: Float[np.ndarray, " b"]
    effusion_right_cm: Float[np.ndarray, " b"]
    pneumothorax_left_cm: Float[np.ndarray, " b"]
    pneumothorax_right_cm: Float[np.ndarray, " b"]

    @property
    def cardiomegaly(self) -> Bool[np.ndarray, " b"]:
        """Whether the heart is enlarged, by the limit of its view."""
        ap, pa = CARDIOMEGALY_RATIO["AP"], CARDIOMEGALY_RATIO["PA"]
        return self.heart_width_ratio > np.where(self.is_ap, ap, pa)

    @property
    def effusion(self) -> Int[np.ndarray, " b"]:
        """Sides with fluid: 0 for none, 1 for left, 2 for right, 3 for both.

        A side counts if its height is over half the smallest height in phantoms.
        """
        limit = _SMALLEST_EFFUSION_CM / 2
        return _sides(self.effusion_left_cm, self.effusion_right_cm, limit)

    @property
    def pneumothorax(self) -> Int[np.ndarray, " b"]:
        """Sides with air outside the lung: 0 for none, 1 left, 2 right, 3 both.

        A side counts if its width is over half the smallest width in phantoms.
        """
        limit = _SMALLEST_PNEUMOTHORAX_CM / 2
        return _sides(self.pneumothorax_left_cm, self.pneumothorax_right_cm, limit)


def _sides(
    left: Float[np.ndarray, " b"], right: Float[np.ndarray, " b"], limit: float
) -> Int[np.ndarray, " b"]:
    return (left > limit) + 2 * (right > limit)


def check_computed_chests(data: DataConfig) -> None:
    """Check that a data set consists of chest phantoms, whose findings can be measured.

    Raises:
        UserError: If it does not.
    """
    if data.phantoms is None or data.phantoms.kind != "chest":
        raise UserError(
            "config.eval.chest_findings=True requires chest phantoms, but the data "
            "contain others; add --config.eval.chest_findings=False"
        )


def measure_chest(images: Float[np.ndarray, "b H H c"]) -> ChestMeasure:
    """Measure heart, effusions and pneumothoraces of rendered or generated chests.

    The first call in a process fits the reader, which takes about ten seconds.

    Args:
        images: Square images in [-1, 1]. Their channels are averaged.

    Raises:
        UserError: If a pixel is not a finite number.
    """
    if not np.isfinite(images).all():
        raise UserError(
            "cannot measure images: some pixels are not finite; expected values in "
            "[-1, 1]"
        )
    gray = np.clip(images.mean(-1, dtype=float), -1, 1)
    if gray.shape[1] != IMAGE_SIZE:
        gray = resize_local_mean(gray, (len(gray), IMAGE_SIZE, IMAGE_SIZE))
    ratio, view, *widths = fit_reader().read(gray).T
    return ChestMeasure(ratio, view > 0, *widths)


def findings(
    images: Float[np.ndarray, "b H H c"], texts: Sequence[str]
) -> dict[str, float]:
    """Return all measures: those of `agreement` and those of `presence`."""
    return agreement(images, texts) | presence(images, texts)


def matches(
    images: Float[np.ndarray, "b H H c"], texts: Sequence[str]
) -> dict[str, Bool[np.ndarray, "b b"]]:
    """Return whether each image (row) agrees with each caption (column).

    Args:
        images: Images sampled from the captions; see `measure_chest`.
        texts: Captions as `medjax.data.captions.caption` writes them. If a caption does
            not name the side of a finding, either side agrees.

    Returns:
        One array for each of ``heart``, ``effusion``, ``pneumothorax`` (none, left,
        right or both sides) and ``caption`` (heart and effusion).

    Raises:
        UserError: If a caption cannot be read, if the numbers of captions and images
            differ, or as `measure_chest`.
    """
    if len(images) != len(texts):
        raise UserError(
            f"{len(images)} images, {len(texts)} captions: expected equal numbers"
        )
    measured = measure_chest(images)
    heart = measured.cardiomegaly[:, None] == _named(texts, "Cardiomegaly")[None, :]
    fluid = _allowed(texts, "Effusion").T[measured.effusion]
    air = _allowed(texts, "Pneumothorax").T[measured.pneumothorax]
    return {
        "heart": heart,
        "effusion": fluid,
        "pneumothorax": air,
        "caption": heart & fluid,
    }


def agreement(
    images: Float[np.ndarray, "b H H c"], texts: Sequence[str]
) -> dict[str, float]:
    """Return how often images agree with their captions; see `matches`.

    Returns:
        ``heart_agreement`` and likewise for the other keys: the share of images that
        agree. For each also ``…_agreement_chance``: the mean share over the captions of
        the *other* images, NaN for a single image.
    """
    scores = {}
    for name, agrees in matches(images, texts).items():
        others = agrees[~np.eye(len(agrees), dtype=bool)]
        scores[f"{name}_agreement"] = float(np.diagonal(agrees).mean())
        scores[f"{name}_agreement_chance"] = _mean(others)
    return scores


def presence(
    images: Float[np.ndarray, "b H H c"], texts: Sequence[str]
) -> dict[str, float]:
    """Return how often images show a finding on any side, requested or not.

    Returns:
        ``effusion_presence``: share of images with an effusion, of those whose caption
        names one. ``effusion_presence_unasked``: the same share of the other images.
        Likewise for ``pneumothorax_presence``. NaN if a group has no images.
    """
    measured = measure_chest(images)
    shares = {}
    for name, states in (
        ("Effusion", measured.effusion),
        ("Pneumothorax", measured.pneumothorax),
    ):
        asked, there = _named(texts, name), states > 0
        shares[f"{name.lower()}_presence"] = _mean(there[asked])
        shares[f"{name.lower()}_presence_unasked"] = _mean(there[~asked])
    return shares


def _mean(flags: Bool[np.ndarray, " n"]) -> float:
    return float(flags.mean()) if flags.size else float("nan")


def _named(texts: Sequence[str], finding: str) -> Bool[np.ndarray, " b"]:
    return np.array([finding in labels_of(text)[0] for text in texts])


def _allowed(texts: Sequence[str], finding: str) -> Bool[np.ndarray, "b 4"]:
    """Return the states of a finding (none, left, right, both) that captions allow."""
    rows = []
    for text in texts:
        labels, sides = labels_of(text)
        states: Sequence[str] = ("none",)
        if finding in labels:
            states = (sides[finding],) if finding in sides else _STATES[1:]
        rows.append([state in states for state in _STATES])
    return np.array(rows)
