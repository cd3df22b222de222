"""Load the model to sample from: a run, an export, or published weights."""

import dataclasses
from pathlib import Path
from typing import Any

from medjax.data.config import ControlDataConfig, DataConfig
from medjax.data.controls import CONTROL_MISSING, Preparation, Size
from medjax.diffusion.schedule import Schedule
from medjax.errors import UserError
from medjax.pretrained import (
    StableDiffusion,
    load_controlnet,
    load_stable_diffusion,
)
from medjax.pretrained.layout import MODEL_INDEX
from medjax.pretrained.sources import local_file, local_folder, read_json
from medjax.runs.config import RunConfig
from medjax.runs.open_run import has_stored_controls, load_run
from medjax.sampling.defaults import ABOUT
from medjax.tasks import TASKS
from medjax.tasks.drawing import DrawingModel
from medjax.tasks.latent_scaling import TrainedAutoencoder


@dataclasses.dataclass(frozen=True)
class Source:
    """A model to sample from, with its default settings.

    Attributes:
        model: The networks.
        name: Name of the model in the metadata of the images.
        size: Default height and width of images, in pixels.
        preparation: Default preparation of input images, as in training.
        guidance_scale: Default guidance scale, as in the run's pages of samples.
        sampler: Default sampler. None means the one that the schedule names.
        steps: Default number of sampler steps.
        eta: Default eta of that sampler, in [0, 1].
        classes: Names of the classes of a model without captions; may be empty.
        data: Data config of the run. None means that the source is not a run.
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
        """Whether the model reads captions."""
        return isinstance(self.model, StableDiffusion)

    @property
    def controlled(self) -> bool:
        """Whether the model has a ControlNet."""
        return isinstance(self.model, StableDiffusion) and bool(self.model.controlnet)

    @property
    def schedule(self) -> Schedule:
        """Noise schedule of the model."""
        return self.model.schedule


def load_source(
    *,
    workdir: str | None = None,
    step: int | str | None = None,
    weights: str = "auto",
    base: str | None = None,
    pretrained: str | None = None,
    controlnet: str | None = None,
    control_given: bool = True,
) -> Source:
    """Load the model to sample from: `workdir` or `pretrained`.

    Args:
        workdir: Folder of a run.
        step: Checkpoint of the run: a number, or best. None means the newest complete
            checkpoint.
        weights: ema, raw, or auto. auto means ema if the run kept a moving average.
        base: New location of the run's base. None means that it has not moved.
        pretrained: Stable Diffusion: a folder, hub id or original file.
        controlnet: ControlNet for `pretrained`: a folder, hub id or file. None means
            the one in `pretrained`, if any.
        control_given: Whether sampling has a control. Without one, a run with a
            ControlNet and `controlnet` are refused before any weights are loaded.

    Raises:
        UserError: If not exactly one of the two is given, if it cannot be loaded, if
            it does not generate images, or if its control is missing.
    """
    if (workdir is None) == (pretrained is None):
        raise UserError(
            "give either --workdir=RUN, to sample from a run, or "
            "--pretrained=FOLDER_OR_HUB_ID, to sample from published weights"
        )
    if pretrained is not None:
        if step is not None or base is not None:
            raise UserError(
                "--step and --base require --workdir. Remove them, or use --workdir "
                "instead of --pretrained"
            )
        if weights != "auto":
            raise UserError(
                "--weights requires --workdir. Remove --weights, or use --workdir "
                "instead of --pretrained"
            )
        if controlnet is not None and not control_given:
            raise UserError(CONTROL_MISSING)
        sd = load_stable_diffusion(pretrained, controlnet=controlnet is None)
        if controlnet is not None:
            sd = dataclasses.replace(sd, controlnet=load_controlnet(controlnet))
        # The metadata of the images must not contain paths of this machine.
        name = Path(pretrained).name if Path(pretrained).exists() else pretrained
        return _published(sd, name, pretrained, controlnet)
    if controlnet is not None:
        raise UserError(
            "--controlnet requires --pretrained, because a run uses its own "
            "ControlNet. Remove --controlnet, or use --pretrained instead of --workdir"
        )
    assert workdir is not None
    return _trained(workdir, step, weights, base, control_given)


def _trained(
    workdir: str,
    step: int | str | None,
    weights: str,
    base: str | None,
    control_given: bool,
) -> Source:
    """Return a source from a run; its settings are those of the run's own samples."""

    def check(config: RunConfig) -> None:
        if config.eval.sampling() is None or TASKS[config.task].autoencoder:
            raise UserError(
                f"--workdir={workdir}: runs of task {config.task} do not generate "
                "images. Expected a run of a diffusion model, which may use this run"
            )
        if isinstance(config.data, ControlDataConfig) and not control_given:
            raise UserError(CONTROL_MISSING)

    run = load_run(workdir, step, weights, base, check)
    data, drawn = run.config.data, run.config.eval.sampling()
    assert drawn is not None
    assert not isinstance(run.model, TrainedAutoencoder)
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
    # Its schedule names no sampler, so use that of the run's own samples.
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
    """Return a source from published weights; an export records its training settings.

    The settings of a separate ControlNet replace those of the pipeline. If it has no
    recorded settings, its input is edges.
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
    """Return an export's `ABOUT`, from a folder or the hub; {} if it has none."""
    file = local_file(source)
    folder = file.parent if file else local_folder(source, [[ABOUT]], lambda _: True)
    # The source may be the folder of one part of a pipeline.
    whole = [folder.parent] if (folder.parent / MODEL_INDEX).is_file() else []
    found = [home / ABOUT for home in (folder, *whole) if (home / ABOUT).is_file()]
    return read_json(found[0]) if found else {}
