"""What an image of a chest phantom shows: how wide the heart is, and pleural effusions.

It tells from pixels alone whether a generated chest is what its caption says, and so
whether a model of phantoms obeys its prompts. An image that is no chest gets some
answer, too; so agreement stands beside its chance level, as edge adherence does.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from skimage.transform import resize_local_mean

from medjax.data.captions import labels_of
from medjax.data.phantoms import CARDIOMEGALY_RATIO
from medjax.errors import UserError
from medjax.evaluation.chest_reader import IMAGE_SIZE, fit_reader

_SMALLEST_EFFUSION_CM = 5.5
_EFFUSION_STATES = ("none", "left", "right", "both")


@dataclasses.dataclass(frozen=True)
class ChestMeasure:
    """What b images show.

    Attributes:
        heart_width_ratio: Cardiothoracic ratio.
        is_ap: Whether the view is AP rather than PA, which decides the ratio's limit.
        effusion_left_cm: Height of the fluid over the costophrenic sulcus on the
            patient's left; about 0 where there is none.
        effusion_right_cm: The same on the right.
    """

    heart_width_ratio: Float[np.ndarray, " b"]
    is_ap: Bool[np.ndarray, " b"]
    effusion_left_cm: Float[np.ndarray, " b"]
    effusion_right_cm: Float[np.ndarray, " b"]

    @property
    def cardiomegaly(self) -> Bool[np.ndarray, " b"]:
        """Whether the heart is enlarged, for its view."""
        ap, pa = CARDIOMEGALY_RATIO["AP"], CARDIOMEGALY_RATIO["PA"]
        return self.heart_width_ratio > np.where(self.is_ap, ap, pa)

    @property
    def effusion_left(self) -> Bool[np.ndarray, " b"]:
        """Whether the fluid is nearer to the least effusion that is drawn than to 0."""
        return self.effusion_left_cm > _SMALLEST_EFFUSION_CM / 2

    @property
    def effusion_right(self) -> Bool[np.ndarray, " b"]:
        """See `effusion_left`."""
        return self.effusion_right_cm > _SMALLEST_EFFUSION_CM / 2


def measure_chest(images: Float[np.ndarray, "b H H c"]) -> ChestMeasure:
    """Measure heart and effusions of chest phantoms, rendered or generated.

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
    ratio, view, left, right = fit_reader().read(gray).T
    return ChestMeasure(ratio, view > 0, left, right)


def agreement(
    images: Float[np.ndarray, "b H H c"], texts: Sequence[str]
) -> dict[str, float]:
    """Return how often images show the heart size and the effusion of their captions.

    Args:
        images: Generated from the captions; see `measure_chest`.
        texts: As `medjax.data.captions.caption` writes them. Where one tells no side of
            an effusion, either will do.

    Returns:
        ``heart_agreement``, ``effusion_agreement`` (none, left, right or both sides)
        and ``caption_agreement`` (both of these), each a share of the images, and each
        with ``_chance``: the mean share over the *other* images' captions, NaN for a
        single image.

    Raises:
        UserError: If a caption cannot be read or there is not one an image; or see
            `measure_chest`.
    """
    if len(images) != len(texts):
        raise UserError(
            f"{len(images)} images, {len(texts)} captions: expected as many"
        )
    measured = measure_chest(images)
    enlarged, effusion = _stated(texts)
    state = measured.effusion_left + 2 * measured.effusion_right
    # Row i, column j: whether image i agrees with caption j.
    heart = measured.cardiomegaly[:, None] == enlarged[None, :]
    fluid = effusion.T[state]
    pairs = {"heart": heart, "effusion": fluid, "caption": heart & fluid}
    scores = {}
    for name, agrees in pairs.items():
        others = agrees[~np.eye(len(agrees), dtype=bool)]
        scores[f"{name}_agreement"] = float(np.diagonal(agrees).mean())
        scores[f"{name}_agreement_chance"] = (
            float(others.mean()) if others.size else float("nan")
        )
    return scores


def _stated(
    texts: Sequence[str],
) -> tuple[Bool[np.ndarray, " b"], Bool[np.ndarray, "b 4"]]:
    """Return which captions state a large heart, and which effusions each allows."""
    enlarged = np.zeros(len(texts), bool)
    effusion = np.zeros((len(texts), len(_EFFUSION_STATES)), bool)
    for i, text in enumerate(texts):
        labels, sides = labels_of(text)
        enlarged[i] = "Cardiomegaly" in labels
        if "Effusion" not in labels:
            allowed: Sequence[str] = ("none",)
        elif "Effusion" in sides:
            allowed = (sides["Effusion"],)
        else:
            allowed = ("left", "right", "both")
        effusion[i] = [state in allowed for state in _EFFUSION_STATES]
    return enlarged, effusion
