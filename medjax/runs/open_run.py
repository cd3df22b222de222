"""Open a run: the trained weights of one of its checkpoints, in place, at float32.

Nothing in the workdir changes, so the run may still be training. Only the workdir and
the base are needed.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from ml_collections import ConfigDict

from medjax import storage, trees
from medjax.data.config import ControlDataConfig
from medjax.data.pipeline import dataset_identity, dataset_metadata
from medjax.data.prepared import Metadata
from medjax.errors import UserError, nearest
from medjax.pretrained import StableDiffusion
from medjax.runs.checksums import SMALL, damage, saved_steps
from medjax.runs.config import RunConfig, completed, parse
from medjax.runs.read_checkpoint import (
    read_about,
    read_metrics,
    read_trees,
    state_names,
)
from medjax.runs.sections import BestConfig
from medjax.tasks import TASKS
from medjax.tasks.drawing import DrawingModel
from medjax.tasks.interface import Checkpoint
from medjax.tasks.latent_scaling import TrainedAutoencoder
from medjax.tasks.row import FirstStage

logger = logging.getLogger(__name__)

Weights = Literal["auto", "ema", "raw"]
AUTOENCODER = "autoencoder"
"""Folder of the autoencoder's run, inside the run that it was trained for."""
# Of the state, the tree with the weights of each name.
_TREES = {"ema": "ema_params", "raw": "params"}


@dataclasses.dataclass(frozen=True)
class Run:
    """What one checkpoint of a run holds.

    Attributes:
        model: What can be used of it, float32: a Stable Diffusion, which is the base
            with what was trained in its place, or what a run without a base trained.
        config: What the run was configured with.
        step: Updates done.
        weights: "ema" for the average of the weights, "raw" for the last ones.
        trained: Names of the networks that trained, wholly or in part.
        metrics: What validation measured at this step; may be empty.
        base: ``source`` and ``fingerprint`` of the weights that the run stood on.
        dataset: ``source`` and ``fingerprint`` of its data.
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
        """The model, where it is a Stable Diffusion.

        Raises:
            UserError: If it is not.
        """
        if not isinstance(self.model, StableDiffusion):
            raise UserError(
                f"this run's task is {self.config.task}, which makes no Stable "
                f"Diffusion; expected a run of {' or '.join(_captioned_tasks())}"
            )
        return self.model


def _captioned_tasks() -> list[str]:
    """Return the names of the tasks that draw images for captions."""
    return [name for name, row in TASKS.items() if row.caption_scores is not None]


def load_run(
    workdir: str | Path,
    step: int | str | None = None,
    weights: str = "auto",
    base: str | None = None,
) -> Run:
    """Read one checkpoint of a run.

    Args:
        workdir: Where `medjax.train` wrote.
        step: Which checkpoint: its number, or "best" for the best that is kept, by the
            run's `config.best`; the newest whole one if None.
        weights: "ema", "raw", or "auto": the average, where the run kept one.
        base: Where its base lies now: a folder, hub id or file; where it lay in
            training if None.

    Raises:
        UserError: If there is no such run or checkpoint, it is damaged, it has no such
            weights, or its base is not found or has changed.
    """
    if weights not in get_args(Weights):
        raise UserError(
            f"--weights={weights}: expected one of {', '.join(get_args(Weights))}"
            + nearest(weights, get_args(Weights))
        )
    folder = _checkpoint(workdir, _number(workdir, step))
    names = state_names(folder)
    kind = _kind(names, weights)
    about = read_about(folder)
    config, inputs = parse(ConfigDict(completed(about["config"]))), about["inputs"]
    wanted = {_TREES[kind], "statistics"} & set(names)
    state = read_trees(folder, *sorted(wanted))
    params, statistics = state[_TREES[kind]], state.get("statistics", {})
    trained = sorted(params.keys() - statistics.keys())
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
        trained=tuple(trained),
        metrics=read_metrics(folder),
        base=inputs["base"],
        dataset=inputs["dataset"],
    )


def _autoencoder(
    workdir: Path, stage: FirstStage, base: str | None
) -> TrainedAutoencoder:
    """Return the autoencoder that a run stands on."""
    place = stage.folder
    folder = Path(base or place) if base or place else workdir / AUTOENCODER
    try:
        return trained_autoencoder(load_done(folder))
    except UserError as error:
        raise UserError(
            f"the autoencoder that the run was trained on, {folder}: {error}; --base=… "
            "says where its run lies now"
        ) from error


def load_done(workdir: str | Path) -> Run:
    """Read what a run came to: its best checkpoint where patience may end it.

    Raises:
        UserError: See `load_run`.
    """
    run = load_run(workdir)
    return run if run.config.best.patience is None else load_run(workdir, "best")


def best_step(workdir: str | Path, best: BestConfig) -> tuple[int, float]:
    """Return the step of a run's best checkpoint, and what it was measured at.

    Raises:
        UserError: If no checkpoint has been measured by that.
    """
    home = Path(workdir).expanduser().absolute() / "checkpoints"
    measured: dict[int, float] = {}
    for step in saved_steps(home):
        if reason := damage(home / str(step), SMALL):
            logger.warning("checkpoint %d is passed over: %s", step, reason)
            continue
        measured[step] = read_metrics(home / str(step)).get(best.metric, math.nan)
    finite = {step: value for step, value in measured.items() if math.isfinite(value)}
    if not finite:
        raise UserError(
            f"--workdir={workdir}: no checkpoint was measured by {best.metric}; "
            "checkpoints at steps with a validation (train.checkpoint_every, "
            "eval.every) are"
        )
    choose = min if best.mode == "min" else max
    step = choose(finite, key=lambda step: finite[step])
    return step, finite[step]


def trained_autoencoder(run: Run) -> TrainedAutoencoder:
    """Return the autoencoder that a run trained.

    Raises:
        UserError: If it trained something else.
    """
    if not isinstance(run.model, TrainedAutoencoder):
        raise UserError(
            f"this is a run of task {run.config.task}, expected one of "
            f"{' or '.join(autoencoder_tasks())}"
        )
    return run.model


def autoencoder_tasks() -> tuple[str, ...]:
    """Return the names of the tasks that train an autoencoder."""
    return tuple(name for name, row in TASKS.items() if row.autoencoder is not None)


def has_stored_controls(run: Run) -> bool:
    """Tell whether the run's data held controls beside the images.

    Checkpoints from before did not say so; then the data do, if they are at hand.
    """
    if "controls" in run.dataset:
        return run.dataset["controls"] == "stored"
    metadata = dataset_at_hand(run)
    if metadata is None and isinstance(run.config.data, ControlDataConfig):
        logger.warning(
            "the data that the run was trained on are not at hand, so its controls are "
            "taken to be edges"
        )
    return metadata is not None and "conditioning_image" in metadata.features


def dataset_at_hand(run: Run) -> Metadata | None:
    """Return what the data say of themselves, if they are still where they were."""
    data = run.config.data
    try:
        if dataset_identity(data)["fingerprint"] == run.dataset["fingerprint"]:
            return dataset_metadata(data)
    except UserError:
        pass  # They are elsewhere, or damaged; an export does not need them.
    return None


def _number(workdir: str | Path, step: int | str | None) -> int | None:
    """Return the number of the checkpoint that is meant; None for the newest."""
    if step == "best":
        about = read_about(_checkpoint(workdir, None))
        best = parse(ConfigDict(completed(about["config"]))).best
        number, value = best_step(workdir, best)
        logger.info("the best checkpoint: step %d, %s %.4g", number, best.metric, value)
        return number
    if isinstance(step, str):
        if not step.isdecimal():
            raise UserError(f"--step={step}: expected the number of one, or best")
        return int(step)
    return step


def _checkpoint(workdir: str | Path, step: int | None) -> Path:
    """Return the folder of the checkpoint of `step`, or of the newest whole one."""
    home = Path(workdir).expanduser().absolute() / "checkpoints"
    if not home.parent.is_dir():
        raise UserError(f"--workdir={workdir}: no such folder")
    steps = saved_steps(home)
    if not steps:
        folds = [one.name for one in storage.listed(home.parent, "fold-*")]
        raise UserError(
            f"--workdir={workdir}: holds no checkpoint; expected the folder of a run "
            "of python -m medjax.train that has saved one"
            + (f"; its folds have: --workdir={workdir}/{folds[0]}" if folds else "")
        )
    if step is not None and step not in steps:
        raise UserError(
            f"--workdir={workdir}: no checkpoint of step {step}; it has {steps}"
        )
    reasons = []
    for number in reversed(steps) if step is None else [step]:
        reason = damage(home / str(number))
        if reason is None:
            return home / str(number)
        reasons.append(f"{number}: {reason}")
        logger.warning("checkpoint %s is damaged: %s", home / str(number), reason)
    raise UserError(f"--workdir={workdir}: damaged checkpoints: {'; '.join(reasons)}")


def _kind(names: Sequence[str], weights: str) -> str:
    """Return which weights are meant: "ema" or "raw"."""
    has_ema = _TREES["ema"] in names
    if weights == "ema" and not has_ema:
        raise UserError(
            "--weights=ema: the run kept no average (config.optim.ema_decay is None); "
            "take --weights=raw"
        )
    return "ema" if has_ema and weights != "raw" else "raw"
