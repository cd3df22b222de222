"""Collect the facts for a model card from a run and its data.

Missing facts are recorded as unknown. The facts contain no path of the machine that
trained.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from medjax import texts
from medjax.data.config import ControlDataConfig, DataConfig
from medjax.data.prepared import Metadata
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.exporting.formats import Export
from medjax.pretrained import StableDiffusion
from medjax.pretrained.sources import hub_id, local_place, public_name
from medjax.runs.config import RunConfig
from medjax.runs.open_run import Run, dataset_at_hand, has_stored_controls
from medjax.tasks import TASKS
from medjax.tasks.image_diffusion import TrainedImageDiffusion
from medjax.tasks.latent_scaling import TrainedAutoencoder

UNKNOWN = "unknown"
# The hub's licence identifiers of common base models.
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
    # The tiny model is part of this project.
    "apache-2.0": ("",),
}


@dataclasses.dataclass(frozen=True)
class Weights:
    """Name and licence of the published weights that training started from.

    Attributes:
        name: Public name; "" means the tiny model of medjax, with random weights.
        licence: The hub's licence identifier, or `UNKNOWN`.
    """

    name: str
    licence: str


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """The facts in a model card.

    Attributes:
        export: The export.
        texts: Key of the export's texts in `medjax.exporting.card_texts`.
        config: The run's configuration.
        step: Number of training steps.
        average: Whether the weights are the moving average.
        metrics: Metrics measured at the step, by column of ``metrics.csv``.
        captioned: Whether the model generates images from captions.
        classes: Names of the classes of a model without captions; may be empty.
        channels: Number of channels of the images.
        sampling: How the run samples. None means that it does not.
        unet_too: Whether the run trained the U-Net as well as a ControlNet.
        tags: The hub's tags for additions to Stable Diffusion: ControlNet or LoRA.
        from_scratch: Whether medjax trained all weights from random ones.
        first_stage: Whether the autoencoder was trained first.
        fingerprint: Fingerprint of the base.
        base: Weights that training started from. None means from scratch.
        base_id: Hub id of the base. None means that the base has no hub id.
        vae: Weights that replaced the base's autoencoder. None means that it was kept.
        controlnet: Weights that the ControlNet started from. None means that there
            are none.
        prediction_type: Prediction type in training. None means the base's type.
        licence: The hub's licence identifier of the export, or `UNKNOWN`.
        data_name: Name of the data folder.
        data_fingerprint: Fingerprint of the data.
        data: Metadata of the data. None means that the data were not found.
        control: Key of the text about the conditioning image. None means no
            conditioning image.
    """

    export: Export
    texts: str
    config: RunConfig
    step: int
    average: bool
    metrics: Mapping[str, float]
    captioned: bool
    classes: tuple[str, ...]
    channels: int
    sampling: SamplingConfig | None
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
    """Collect the facts for the model card of a run's export."""
    config, row = run.config, TASKS[run.config.task]
    origins = row.origins(config.model)
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
        classes=row.classes(config.data),
        channels=_channels(run),
        sampling=config.eval.sampling(),
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
    """Return the key of the texts, which depends on the model, too."""
    if isinstance(run.model, TrainedImageDiffusion) and export.format == "pipeline":
        return "pixels_pipeline"
    if isinstance(run.model, TrainedAutoencoder) and export.format == "pytorch":
        return "pytorch_autoencoder"
    if export.format == "pipeline" and "controlnet" in run.trained:
        return "controlnet_pipeline"
    return export.format


def _channels(run: Run) -> int:
    if isinstance(run.model, TrainedImageDiffusion):
        return run.model.task.channels
    return run.model.channels if isinstance(run.model, TrainedAutoencoder) else 3


def _tags(run: Run) -> tuple[str, ...]:
    if "controlnet" in run.trained:
        return ("controlnet",)
    has_adapters = isinstance(run.model, StableDiffusion) and run.model.adapters
    return ("lora",) if has_adapters else ()


def _weights(source: str) -> Weights:
    return Weights(public_name(source) if source else "", licence(source))


def _own_licence(data: DataConfig) -> str:
    """Return the licence of weights that were trained on these data only."""
    # Weights trained on computed images belong to this project.
    return UNKNOWN if data.root else "apache-2.0"


def licence(source: str) -> str:
    """Return the hub's licence identifier of published weights, or `UNKNOWN`."""
    for word, sources in LICENCES.items():
        if source in sources:
            return word
    card = local_place(source) / "README.md"
    if not card.is_file():
        return UNKNOWN
    found = re.search(r"^license: *([\w.+-]+) *$", texts.read_text(card), re.M)
    return found[1] if found else UNKNOWN


def _control(run: Run, data: Metadata | None) -> str | None:
    """Return the origin of the conditioning image: a key of `card_texts.CONDITION`."""
    if not isinstance(run.config.data, ControlDataConfig):
        return None
    if has_stored_controls(run):
        return "stored"
    return "unknown" if data is None else "edges"
