"""The facts that a model card tells, collected from a run and its surroundings.

A fact that is unknown is said to be unknown. No path of the machine that trained is
among them.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from medjax import texts
from medjax.data.config import ControlDataConfig, DataConfig
from medjax.data.prepared import Metadata
from medjax.exporting.formats import Export
from medjax.pretrained import StableDiffusion
from medjax.pretrained.sources import hub_id, local_place, public_name
from medjax.runs.config import RunConfig
from medjax.runs.open_run import Run, dataset_at_hand, has_stored_controls
from medjax.tasks import TASKS

UNKNOWN = "unknown"
# The hub's words for the licences of the usual bases.
LICENCES = {
    "creativeml-openrail-m": (
        "CompVis/stable-diffusion-v1-4",
        "runwayml/stable-diffusion-v1-5",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    "openrail++": (
        "stabilityai/stable-diffusion-2",
        "stabilityai/stable-diffusion-2-base",
        "stabilityai/stable-diffusion-2-1",
        "stabilityai/stable-diffusion-2-1-base",
    ),
    "openrail": ("lllyasviel/ControlNet", "lllyasviel/sd-controlnet-canny"),
    # The tiny one is part of this project.
    "apache-2.0": ("",),
}


@dataclasses.dataclass(frozen=True)
class Weights:
    """Published weights that training started from.

    Attributes:
        name: Their public name; "" for the tiny, random model of medjax.
        licence: The hub's word for their licence, or `UNKNOWN`.
    """

    name: str
    licence: str


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """The facts that a model card tells.

    Attributes:
        export: The export.
        texts: Key of its texts in `medjax.exporting.card_texts`.
        config: The run's configuration.
        step: Updates done.
        average: Whether the weights are the moving average.
        metrics: What was measured at the step, by column.
        captioned: Whether it draws images for captions.
        guidance_scale: Of the run's own samples; None if it draws none.
        unet_too: Whether the U-Net trained beside a ControlNet.
        tags: The hub's words for what there is beside a Stable Diffusion.
        from_scratch: Whether all of it was trained by medjax from random weights.
        first_stage: Whether its autoencoder was trained first.
        fingerprint: Fingerprint of the base.
        base: The weights that training started from; None if from scratch.
        base_id: Hub id of the base, if it has one.
        vae: Weights in place of the base's autoencoder, if any.
        controlnet: Weights that a ControlNet started from, if any.
        prediction_type: What the model was trained to predict, if not as the base.
        licence: The hub's word for the licence of the export, or `UNKNOWN`.
        data_name: Name of the data's folder.
        data_fingerprint: Fingerprint of the data.
        data: Metadata of the data; None if they are not at hand.
        control: Key of the text about the control; None without one.
    """

    export: Export
    texts: str
    config: RunConfig
    step: int
    average: bool
    metrics: Mapping[str, float]
    captioned: bool
    guidance_scale: float | None
    unet_too: bool
    tags: tuple[str, ...]
    from_scratch: bool
    first_stage: bool
    fingerprint: str
    base: Weights | None
    base_id: str | None
    vae: Weights | None
    controlnet: Weights | None
    prediction_type: str | None
    licence: str
    data_name: str
    data_fingerprint: str
    data: Metadata | None
    control: str | None


def collect_facts(run: Run, export: Export) -> CardFacts:
    """Collect what a card tells of a run's export."""
    config, row = run.config, TASKS[run.config.task]
    origins, sampling = row.origins(config.model), config.eval.sampling()
    source, from_scratch = run.base["source"], origins.pretrained is None
    data = dataset_at_hand(run)
    return CardFacts(
        export=export,
        texts=_texts(run, export),
        config=config,
        step=run.step,
        average=run.weights == "ema",
        metrics=run.metrics,
        captioned=row.caption_scores is not None,
        guidance_scale=None if sampling is None else sampling.guidance_scale,
        unet_too={"controlnet", "unet"} <= set(run.trained),
        tags=_tags(run),
        from_scratch=from_scratch,
        first_stage=row.first_stage(config.model) is not None,
        fingerprint=run.base["fingerprint"],
        base=None if from_scratch else _weights(source),
        base_id=None if from_scratch else hub_id(source),
        vae=None if origins.vae is None else _weights(origins.vae),
        controlnet=None if origins.controlnet is None else _weights(origins.controlnet),
        prediction_type=config.diffusion and config.diffusion.prediction_type,
        licence=_own_licence(config.data) if from_scratch else licence(source),
        data_name=Path(run.dataset["source"]).name,
        data_fingerprint=run.dataset["fingerprint"],
        data=data,
        control=_control(run, data),
    )


def _texts(run: Run, export: Export) -> str:
    """Return the key of the texts: pipelines with a ControlNet have their own."""
    if export.format == "pipeline" and "controlnet" in run.trained:
        return "controlnet_pipeline"
    return export.format


def _tags(run: Run) -> tuple[str, ...]:
    if "controlnet" in run.trained:
        return ("controlnet",)
    has_adapters = isinstance(run.model, StableDiffusion) and run.model.adapters
    return ("lora",) if has_adapters else ()


def _weights(source: str) -> Weights:
    return Weights(public_name(source) if source else "", licence(source))


def _own_licence(data: DataConfig) -> str:
    """Return the licence of weights that learned from these data alone."""
    # Weights of computed images are the project's own.
    return UNKNOWN if data.root else "apache-2.0"


def licence(source: str) -> str:
    """Return the hub's word for the licence of published weights, or `UNKNOWN`."""
    for word, sources in LICENCES.items():
        if source in sources:
            return word
    card = local_place(source) / "README.md"
    if not card.is_file():
        return UNKNOWN
    found = re.search(r"^license: *([\w.+-]+) *$", texts.read_text(card), re.M)
    return found[1] if found else UNKNOWN


def _control(run: Run, data: Metadata | None) -> str | None:
    """Return how the control was made: a key of `card_texts.CONDITION`."""
    if not isinstance(run.config.data, ControlDataConfig):
        return None
    if has_stored_controls(run):
        return "stored"
    return "unknown" if data is None else "edges"
