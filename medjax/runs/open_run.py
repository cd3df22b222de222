"""Open a run: load the trained weights of one of its checkpoints, in float32.

This needs only the workdir and the base model. It changes nothing in the workdir, so
the run may still be training.
"""

import dataclasses
import logging
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Literal, get_args

from ml_collections import ConfigDict

from medjax import trees
from medjax.data.config import ControlDataConfig
from medjax.data.pipeline import dataset_identity, dataset_metadata
from medjax.data.prepared import Metadata
from medjax.errors import UserError, nearest
from medjax.pretrained import StableDiffusion
from medjax.runs.config import RunConfig, completed, parse
from medjax.runs.find_checkpoint import find_checkpoint
from medjax.runs.read_checkpoint import (
    read_about,
    read_metrics,
    read_trees,
    state_layout,
)
from medjax.tasks import TASKS
from medjax.tasks.drawing import DrawingModel
from medjax.tasks.interface import Checkpoint
from medjax.tasks.latent_scaling import TrainedAutoencoder
from medjax.tasks.row import FirstStage

logger = logging.getLogger(__name__)

Weights = Literal["auto", "ema", "raw"]
AUTOENCODER = "autoencoder"
"""Folder of the autoencoder's run, inside the workdir of the run that needs it."""
# Name of the tree in the state, for each kind of weights.
_TREES = {"ema": "ema_params", "raw": "params"}


@dataclasses.dataclass(frozen=True)
class Run:
    """A checkpoint of a run, ready to use.

    Attributes:
        model: The trained model, float32. With a base model, it is a Stable Diffusion:
            the base with the trained weights in place.
        config: The run's config.
        step: Number of training steps done.
        weights: "ema" for the average of the weights, "raw" for the last weights.
        trained: Names of the networks that were trained, wholly or in part.
        metrics: Metrics of validation at this step; may be empty.
        base: ``source`` and ``fingerprint`` of the base model, or of the autoencoder.
        dataset: ``source`` and ``fingerprint`` of the data.
    """

    model: StableDiffusion | TrainedAutoencoder | DrawingModel
    config: RunConfig
    step: int
    weights: str
    trained: tuple[str, ...]
    metrics: Mapping[str, float]
    base: Mapping[str, str]
    dataset: Mapping[str, str]

    @property
    def sd(self) -> StableDiffusion:
        """The model as a Stable Diffusion.

        Raises:
            UserError: If the model is not a Stable Diffusion.
        """
        if not isinstance(self.model, StableDiffusion):
            raise UserError(
                f"the run has task {self.config.task}, which does not train a Stable "
                f"Diffusion. Expected a run of task {' or '.join(_captioned_tasks())}"
            )
        return self.model


def _captioned_tasks() -> list[str]:
    """Return the names of the tasks that generate images from captions."""
    return [name for name, row in TASKS.items() if row.caption_scores is not None]


def load_run(
    workdir: str | Path,
    step: int | str | None = None,
    weights: str = "auto",
    base: str | None = None,
    check: Callable[[RunConfig], None] | None = None,
) -> Run:
    """Load one checkpoint of a run.

    Args:
        workdir: Folder of the run, as `medjax.train` wrote it.
        step: Step of the checkpoint, or "best" for the best stored one by the run's
            `config.best`. None means the newest intact one.
        weights: "ema" for the average of the weights, "raw" for the last weights, or
            "auto" for the average if the run has one.
        base: Current location of the base model (a folder, hub id or file) or of the
            autoencoder's run. None means the location in training.
        check: Function called with the run's config before any weights are loaded. It
            may raise UserError. None checks nothing.

    Raises:
        UserError: If the run, the checkpoint, its weights or its base model are
            missing, if the checkpoint is damaged, or if the base model has changed.
    """
    if weights not in get_args(Weights):
        raise UserError(
            f"--weights={weights}: expected one of {', '.join(get_args(Weights))}"
            + nearest(weights, get_args(Weights))
        )
    folder = find_checkpoint(workdir, step)
    about = read_about(folder)
    config, inputs = parse(ConfigDict(completed(about["config"]))), about["inputs"]
    if check is not None:
        check(config)
    layout = state_layout(folder)
    kind = _kind(layout, weights)
    wanted = {_TREES[kind], "statistics"}
    state = read_trees(folder, {n: t for n, t in layout.items() if n in wanted})
    params, statistics = state[_TREES[kind]], state.get("statistics", {})
    if kind == "raw":
        params = trees.merge(params, statistics)
    checkpoint = Checkpoint(
        config.model, config.data, config.diffusion, params, inputs["base"]
    )
    logger.info("read checkpoint %s, %s weights", folder, kind)
    row = TASKS[config.task]
    stage = row.first_stage(config.model)
    autoencoder = None if stage is None else _autoencoder(Path(workdir), stage, base)
    return Run(
        model=row.reopen(checkpoint, base, autoencoder),
        config=config,
        step=int(folder.name),
        weights=kind,
        trained=tuple(sorted(params.keys() - statistics.keys())),
        metrics=read_metrics(folder),
        base=inputs["base"],
        dataset=inputs["dataset"],
    )


def _autoencoder(
    workdir: Path, stage: FirstStage, base: str | None
) -> TrainedAutoencoder:
    """Load the autoencoder that a run needs."""
    place = stage.folder
    folder = Path(base or place) if base or place else workdir / AUTOENCODER
    try:
        return trained_autoencoder(load_done(folder))
    except UserError as error:
        raise UserError(
            f"cannot load the autoencoder that the run was trained with, {folder}: "
            f"{error}. If its run was moved, set --base to its new folder"
        ) from error


def load_done(workdir: str | Path) -> Run:
    """Load the best checkpoint of a run with early stopping, else the newest.

    Raises:
        UserError: See `load_run`.
    """
    run = load_run(workdir)
    return run if run.config.best.patience is None else load_run(workdir, "best")


def trained_autoencoder(run: Run) -> TrainedAutoencoder:
    """Return the autoencoder that a run trained.

    Raises:
        UserError: If the run's task does not train an autoencoder.
    """
    if not isinstance(run.model, TrainedAutoencoder):
        raise UserError(
            f"the run has task {run.config.task}. Expected a run of task "
            f"{' or '.join(autoencoder_tasks())}"
        )
    return run.model


def autoencoder_tasks() -> tuple[str, ...]:
    """Return the names of the tasks that train an autoencoder."""
    return tuple(name for name, row in TASKS.items() if row.autoencoder is not None)


def has_stored_controls(run: Run) -> bool:
    """Return whether the run's data contain conditioning images.

    Checkpoints of older versions do not store this. In that case, the data decide. If
    the data are missing, the result is False.
    """
    if "controls" in run.dataset:
        return run.dataset["controls"] == "stored"
    metadata = dataset_at_hand(run)
    if metadata is None and isinstance(run.config.data, ControlDataConfig):
        logger.warning(
            "the training data of the run are missing, so its conditioning images are "
            "assumed to be edges"
        )
    return metadata is not None and "conditioning_image" in metadata.features


def dataset_at_hand(run: Run) -> Metadata | None:
    """Return the metadata of the data; None if they are missing or have changed."""
    data = run.config.data
    try:
        if dataset_identity(data)["fingerprint"] == run.dataset["fingerprint"]:
            return dataset_metadata(data)
    except UserError:
        pass  # The data were moved or are damaged. An export does not need them.
    return None


def _kind(names: Container[str], weights: str) -> str:
    """Return the kind of weights to load: "ema" or "raw"."""
    has_ema = _TREES["ema"] in names
    if weights == "ema" and not has_ema:
        raise UserError(
            "--weights=ema: the run has no average of the weights, because "
            "config.optim.ema_decay was None. Use --weights=raw"
        )
    return "ema" if has_ema and weights != "raw" else "raw"
