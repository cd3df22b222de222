"""Measures of images that were drawn for captions, against the real ones."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from medjax.errors import UserError
from medjax.evaluation.chest import check_computed_chests, findings, matches
from medjax.evaluation.frechet import frechet_distance
from medjax.evaluation.similarity import likeness
from medjax.pretrained.efficientnet import check_efficientnet, efficientnet_features
from medjax.tasks.eval_config import SamplingEvalConfig
from medjax.tasks.interface import SamplePage
from medjax.tasks.row import CaptionScores, OptionalMetrics

_FINDINGS = (
    "`…_agreement` is the share of images that show what their captions say (of the "
    "heart, of a finding and its side; `caption` is heart and effusion together), and "
    "`…_agreement_chance` what the other images' captions would give. `…_presence` is "
    "the share that shows the finding, on any side, of the images whose captions name "
    "it, and `…_presence_unasked` of those whose captions do not."
)


@dataclasses.dataclass(frozen=True)
class TextToImageEvalConfig(SamplingEvalConfig):
    """Validation, and what a page of samples is measured by beside PSNR, SSIM and MSE.

    Attributes:
        frechet_distance: Whether by the Fréchet distance to the real images, too. It
            needs ``medjax[evaluation]``, and `samples` of hundreds to say anything.
        chest_findings: Whether by the findings that `medjax.evaluation.chest` sees in
            computed chests, too.
    """

    frechet_distance: bool = False
    chest_findings: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be measured here.

        Raises:
            UserError: Starts with the name of the field.
        """
        super().__post_init__()
        if self.frechet_distance:
            try:
                check_efficientnet()
            except UserError as error:
                raise UserError(f"frechet_distance is True, but {error}") from error


def measure_likeness(
    page: SamplePage, data: Any, config: TextToImageEvalConfig
) -> dict[str, float]:
    """Return how like the real images those drawn for their captions are.

    Two chests of one caption differ in much that it does not tell; so the numbers
    compare checkpoints, and say little alone.
    """
    del data
    real, drawn = page.columns["target"], page.columns["generated"]
    each = likeness(real, drawn, page.batch.get("loss_mask"))
    measured = {name: float(values.mean()) for name, values in each.items()}
    if config.frechet_distance:
        features = efficientnet_features(real), efficientnet_features(drawn)
        measured["frechet_distance"] = frechet_distance(*features)
    if config.chest_findings:
        measured |= findings(drawn, [record["text"] for record in page.records])
    return measured


def check_text_to_image(config: Any) -> None:
    """Refuse to measure findings in images that are no computed chests.

    Args:
        config: The run's.

    Raises:
        UserError: It names the key.
    """
    if config.eval.chest_findings:
        check_computed_chests(config.data)


OPTIONAL_METRICS = (
    OptionalMetrics(
        "frechet_distance",
        ("frechet_distance",),
        lambda config: config.frechet_distance,
    ),
    OptionalMetrics(
        "chest_findings",
        ("_agreement", "_presence", "_presence_unasked"),
        lambda config: config.chest_findings,
    ),
)
"""Metrics of task text_to_image that keys of ``config.eval`` ask for."""


def _score_findings(
    images: Float[np.ndarray, "n H W 3"],
    texts: Sequence[str],
    config: TextToImageEvalConfig,
) -> tuple[dict[str, Float[np.ndarray, " n"]], dict[str, float]]:
    """Return, of computed chests, whether they are as their captions say."""
    if not config.chest_findings:
        return {}, {}
    each = {
        f"{name}_agreement": np.diagonal(agrees).astype(float)
        for name, agrees in matches(images, texts).items()
    }
    whole = {
        name: share
        for name, share in findings(images, texts).items()
        # A finding that no caption names has no share.
        if name not in each and not np.isnan(share)
    }
    return each, whole


FINDINGS_SCORES = CaptionScores(
    _score_findings, lambda config: _FINDINGS if config.chest_findings else ""
)
"""Scores of computed chests, where ``config.eval.chest_findings`` asks for them."""
