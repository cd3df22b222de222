"""What images are drawn from: a run, an export, or published weights."""

import dataclasses
from pathlib import Path
from typing import Any

from medjax.data.config import DataConfig
from medjax.data.controls import Preparation, Size
from medjax.diffusion.schedule import Schedule
from medjax.errors import UserError
from medjax.pretrained import (
    StableDiffusion,
    load_controlnet,
    load_stable_diffusion,
)
from medjax.pretrained.layout import MODEL_INDEX
from medjax.pretrained.sources import local_file, local_folder, read_json
from medjax.runs.open_run import has_stored_controls, load_run
from medjax.sampling.defaults import ABOUT
from medjax.tasks import TASKS
from medjax.tasks.drawing import DrawingModel
from medjax.tasks.latent_scaling import TrainedAutoencoder


@dataclasses.dataclass(frozen=True)
class Source:
    """What to draw from.

    Attributes:
        model: The networks.
        name: What the images' metadata call it.
        size: Height and width of images by default.
        preparation: What is done to images by default, which is as in training.
        guidance_scale: By default, which is as in the run's own samples.
        sampler: By default; None for the one that the schedule names.
        steps: By default.
        eta: Of that sampler, by default.
        classes: What a model that reads no captions may be asked for instead.
        data: What a run was trained on.
    """

    model: StableDiffusion | DrawingModel
    name: str
    size: Size
    preparation: Preparation
    guidance_scale: float = 7.5
    sampler: str | None = None
    steps: int = 30
    eta: float = 0.0
    classes: tuple[str, ...] = ()
    data: DataConfig | None = None

    @property
    def captioned(self) -> bool:
        """Whether it reads captions."""
        return isinstance(self.model, StableDiffusion)

    @property
    def controlled(self) -> bool:
        """Whether it has a ControlNet."""
        return isinstance(self.model, StableDiffusion) and bool(self.model.controlnet)

    @property
    def schedule(self) -> Schedule:
        """Its noise schedule."""
        return self.model.schedule


def load_source(
    *,
    workdir: str | None = None,
    step: int | str | None = None,
    weights: str = "auto",
    base: str | None = None,
    pretrained: str | None = None,
    controlnet: str | None = None,
) -> Source:
    """Load what to draw from.

    Args:
        workdir: Of a run.
        step: Its checkpoint, a number or best; the newest whole one if None.
        weights: ema, raw, or auto: the average, where the run kept one.
        base: Where the run's base lies now, if not where it lay.
        pretrained: Or else a Stable Diffusion: folder, hub id or original file.
        controlnet: For it, likewise; its own, where it has one, if None.

    Raises:
        UserError: If not exactly one is named, or it cannot be loaded.
    """
    if (workdir is None) == (pretrained is None):
        raise UserError(
            "give either --workdir=RUN, to draw from what a run trained, or "
            "--pretrained=FOLDER_OR_HUB_ID"
        )
    if pretrained is not None:
        if step is not None or base is not None:
            raise UserError("--step and --base go with --workdir, not --pretrained")
        if weights != "auto":
            raise UserError("--weights goes with --workdir, not --pretrained")
        sd = load_stable_diffusion(pretrained, controlnet=controlnet is None)
        if controlnet is not None:
            sd = dataclasses.replace(sd, controlnet=load_controlnet(controlnet))
        # No place of this machine goes into the images.
        name = Path(pretrained).name if Path(pretrained).exists() else pretrained
        return _published(sd, name, pretrained, controlnet)
    if controlnet is not None:
        raise UserError("--controlnet goes with --pretrained; a run has its own")
    assert workdir is not None
    run = load_run(workdir, step, weights, base)
    data, drawn = run.config.data, run.config.eval.sampling()
    if drawn is None or isinstance(run.model, TrainedAutoencoder):
        raise UserError(
            f"--workdir={workdir}: a run of task {run.config.task}, which draws no "
            "images; expected one of what stands on it"
        )
    source = Source(
        run.model,
        f"{Path(workdir).resolve().name}, step {run.step}, {run.weights} weights",
        (data.image_size, data.image_size),
        Preparation.of_training(data, has_stored_controls(run)),
        drawn.guidance_scale,
        classes=TASKS[run.config.task].classes(data),
        data=data,
    )
    if source.captioned:
        return source
    # Its schedule names no sampler: its own samples have one.
    guidance = drawn.guidance_scale if source.classes else 1.0
    return dataclasses.replace(
        source,
        sampler=drawn.sampler,
        steps=drawn.steps,
        eta=drawn.eta,
        guidance_scale=guidance,
    )


def _published(
    sd: StableDiffusion, name: str, pretrained: str, controlnet: str | None
) -> Source:
    """Return what is not of a run; what we exported says how it was trained.

    A ControlNet that is named by itself says so of itself. One that is not ours takes
    edges, whatever the one of the pipeline took.
    """
    about = published_about(pretrained)
    if controlnet is not None:
        resize = about.get("preparation", {}).get("resize", Preparation.resize)
        about = (
            about | {"preparation": {"resize": resize}} | published_about(controlnet)
        )
    side = sd.unet.config.get("sample_size", 64) * sd.vae.module.downsampling
    side = about.get("image_size", side)
    return Source(
        sd,
        name,
        (side, side),
        Preparation(**about.get("preparation", {})),
        about.get("guidance_scale", Source.guidance_scale),
    )


def published_about(source: str) -> dict[str, Any]:
    """Return what an export says of itself, here or on the hub; {} for what is none."""
    file = local_file(source)
    folder = file.parent if file else local_folder(source, [[ABOUT]], lambda _: True)
    # A part of a pipeline may be named by its own folder.
    whole = [folder.parent] if (folder.parent / MODEL_INDEX).is_file() else []
    found = [home / ABOUT for home in (folder, *whole) if (home / ABOUT).is_file()]
    return read_json(found[0]) if found else {}
