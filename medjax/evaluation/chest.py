"""What an image of a chest phantom shows: heart width, effusions, pneumothoraces.

It tells from pixels alone whether a generated chest is what its caption says, and so
whether a model of phantoms obeys its prompts. An image that is no chest gets some
answer, too; so agreement stands beside its chance level, as edge adherence does.
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
    """What b images show.

    Attributes:
        heart_width_ratio: Cardiothoracic ratio.
        is_ap: Whether the view is AP rather than PA, which decides the ratio's limit.
        effusion_left_cm: Height of the fluid over the costophrenic sulcus on the
            patient's left; about 0 where there is none.
        effusion_right_cm: The same on the right.
        pneumothorax_left_cm: Greatest width of the air outside the lung on the
            patient's left; about 0 where there is none.
        pneumothorax_right_cm: The same on the right.
    """

    heart_width_ratio: Float[np.ndarray, " b"]
    is_ap: Bool[np.ndarray, " b"]
    effusion_left_cm: Float[np.ndarray, " b"]
    effusion_right_cm: Float[np.ndarray, " b"]
    pneumothorax_left_cm: Float[np.ndarray, " b"]
    pneumothorax_right_cm: Float[np.ndarray, " b"]

    @property
    def cardiomegaly(self) -> Bool[np.ndarray, " b"]:
        """Whether the heart is enlarged, for its view."""
        ap, pa = CARDIOMEGALY_RATIO["AP"], CARDIOMEGALY_RATIO["PA"]
        return self.heart_width_ratio > np.where(self.is_ap, ap, pa)

    @property
    def effusion(self) -> Int[np.ndarray, " b"]:
        """Which sides have fluid nearer to the least that is drawn than to none.

        0 for none, 1 for the left, 2 for the right, 3 for both.
        """
        limit = _SMALLEST_EFFUSION_CM / 2
        return _sides(self.effusion_left_cm, self.effusion_right_cm, limit)

    @property
    def pneumothorax(self) -> Int[np.ndarray, " b"]:
        """Which sides have air outside the lung, likewise."""
        limit = _SMALLEST_PNEUMOTHORAX_CM / 2
        return _sides(self.pneumothorax_left_cm, self.pneumothorax_right_cm, limit)


def _sides(
    left: Float[np.ndarray, " b"], right: Float[np.ndarray, " b"], limit: float
) -> Int[np.ndarray, " b"]:
    return (left > limit) + 2 * (right > limit)


def check_computed_chests(data: DataConfig) -> None:
    """Check that a data set has chests whose findings can be measured.

    Raises:
        UserError: If it has no computed chests.
    """
    if data.phantoms is None or data.phantoms.kind != "chest":
        raise UserError(
            "config.eval.chest_findings is True, but the data are no computed "
            "chests; add --config.eval.chest_findings=False"
        )


def measure_chest(images: Float[np.ndarray, "b H H c"]) -> ChestMeasure:
    """Measure heart, effusions and pneumothoraces of chests, rendered or generated.

    The first call in a process fits the reader, which takes some ten seconds.

    Args:
        images: In [-1, 1], square; channels are averaged.

    Raises:
        UserError: If a pixel is not a finite number.
    """
    if not np.isfinite(images).all():
        raise UserError(
            "cannot measure images with pixels that are not finite numbers; expected "
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
    """Return `agreement` and `presence` together: all that is measured."""
    return agreement(images, texts) | presence(images, texts)


def matches(
    images: Float[np.ndarray, "b H H c"], texts: Sequence[str]
) -> dict[str, Bool[np.ndarray, "b b"]]:
    """Return whether each image (row) is as each caption (column) says.

    Args:
        images: Generated from the captions; see `measure_chest`.
        texts: As `medjax.data.captions.caption` writes them. Where one tells no side of
            a finding, either will do.

    Returns:
        By what is compared: ``heart``, ``effusion`` and ``pneumothorax`` (none, left,
        right or both sides), and ``caption`` (heart and effusion).

    Raises:
        UserError: If a caption cannot be read or there is not one an image; or see
            `measure_chest`.
    """
    if len(images) != len(texts):
        raise UserError(
            f"{len(images)} images, {len(texts)} captions: expected as many"
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
    """Return how often images show what their captions say; see `matches`.

    Returns:
        ``heart_agreement`` and so on, each a share of the images, and each with
        ``_chance``: the mean share over the *other* images' captions, NaN for a single
        image.
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
    """Return how often a finding is there, on any side, where it is asked for or not.

    Returns:
        ``effusion_presence``: a share of the images whose caption names one, and
        ``effusion_presence_unasked``: of the others; NaN of none. Likewise
        ``pneumothorax_presence``.
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
    """Return in which states each caption allows the sides of a finding to be."""
    rows = []
    for text in texts:
        labels, sides = labels_of(text)
        states: Sequence[str] = ("none",)
        if finding in labels:
            states = (sides[finding],) if finding in sides else _STATES[1:]
        rows.append([state in states for state in _STATES])
    return np.array(rows)
