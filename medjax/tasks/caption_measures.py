"""Measure images that were generated from captions, and compare with real images."""

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
from medjax.tasks.captioned import check_cached_latents
from medjax.tasks.eval_config import SamplingEvalConfig
from medjax.tasks.interface import GENERATED, SamplePage
from medjax.tasks.row import CaptionScores, OptionalMetrics

_FINDINGS = (
    "`…_agreement` is the fraction of images that show what their captions say about "
    "the heart, or about a finding and its side. `caption` means heart and effusion "
    "together. `…_agreement_chance` is the same fraction with the captions of other "
    "images. `…_presence` is the fraction of images that show the finding on any side, "
    "among images whose captions name it. `…_presence_unasked` is the same fraction "
    "among images whose captions do not name it."
)


@dataclasses.dataclass(frozen=True)
class TextToImageEvalConfig(SamplingEvalConfig):
    """Settings of validation for task text_to_image.

    A page of samples is always measured by PSNR, SSIM and MSE.

    Attributes:
        frechet_distance: Whether to measure the Fréchet distance to the real images
            too. This requires ``medjax[evaluation]``, and `samples` must be in the
            hundreds for a meaningful value.
        chest_findings: Whether to measure too how often images show the findings in
            their captions. Only for computed chests; see `medjax.evaluation.chest`.
    """

    frechet_distance: bool = False
    chest_findings: bool = False

    def __post_init__(self) -> None:
        """Check values, and that a package for the Fréchet distance is installed.

        Raises:
            UserError: If a check fails. The message starts with the name of the key.
        """
        super().__post_init__()
        if self.frechet_distance:
            try:
                check_efficientnet()
            except UserError as error:
                raise UserError(f"frechet_distance=True: {error}") from error


def measure_likeness(
    page: SamplePage, data: Any, config: TextToImageEvalConfig
) -> dict[str, float]:
    """Return metrics of how similar generated images are to real ones.

    Each pair has the same caption. Two chests with the same caption differ in much that
    the caption does not describe. So use these numbers to compare checkpoints only.
    """
    del data
    real, drawn = page.columns["target"], page.columns[GENERATED]
    each = likeness(real, drawn, page.batch.get("loss_mask"))
    measured = {name: float(values.mean()) for name, values in each.items()}
    if config.frechet_distance:
        features = efficientnet_features(real), efficientnet_features(drawn)
        measured["frechet_distance"] = frechet_distance(*features)
    if config.chest_findings:
        measured |= findings(drawn, [record["text"] for record in page.records])
    return measured


def check_text_to_image(config: Any) -> None:
    """Check that latents can be cached, and findings are of computed chests.

    Args:
        config: The run's config.

    Raises:
        UserError: If images are padded and their latents are cached, or if
            `eval.chest_findings` is set for other images.
    """
    check_cached_latents(config)
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
"""Metrics of task text_to_image that need a key of ``config.eval``."""


def _score_findings(
    images: Float[np.ndarray, "n H W 3"],
    texts: Sequence[str],
    config: TextToImageEvalConfig,
) -> tuple[dict[str, Float[np.ndarray, " n"]], dict[str, float]]:
    """Return whether images of computed chests agree with their captions.

    Returns:
        Scores of each image, by name, and fractions of all images, by name. Both are
        empty unless ``config.eval.chest_findings`` is set.
    """
    if not config.chest_findings:
        return {}, {}
    each = {
        f"{name}_agreement": np.diagonal(agrees).astype(float)
        for name, agrees in matches(images, texts).items()
    }
    whole = {
        name: share
        for name, share in findings(images, texts).items()
        # If no caption names a finding, its fraction is undefined.
        if name not in each and not np.isnan(share)
    }
    return each, whole


FINDINGS_SCORES = CaptionScores(
    _score_findings, lambda config: _FINDINGS if config.chest_findings else ""
)
"""Scores of computed chests, if ``config.eval.chest_findings`` is set."""
