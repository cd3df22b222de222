"""Train a run and, before it, the autoencoder that it uses."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from medjax import distributed, meshes, storage
from medjax.config_files import find_config, load_config
from medjax.data.pipeline import dataset_identity
from medjax.errors import Stopped, UserError
from medjax.runs.checksums import saved_steps
from medjax.runs.config import RunConfig, parse
from medjax.runs.open_run import (
    AUTOENCODER,
    Run,
    autoencoder_tasks,
    load_done,
    load_run,
    trained_autoencoder,
)
from medjax.runs.same_run import differences, matters
from medjax.tasks import TASKS
from medjax.tasks.latent_scaling import TrainedAutoencoder
from medjax.tasks.row import FirstStage
from medjax.training.loop import train
from medjax.training.step import TrainState, check_batch_size
from medjax.training.stop import stop_on_signals

logger = logging.getLogger(__name__)


def train_stages(config: RunConfig, workdir: str | Path) -> TrainState:
    """Train a run, and before it the autoencoder that it uses.

    An autoencoder that the config names is used unchanged. If the config names none,
    the autoencoder in the run's folder is trained first, to its last step. If
    `train.max_hours` ends that, the returned state is that of the autoencoder. If
    `best.patience` ends it, the autoencoder is finished.

    Arguments, result and errors are those of `loop.train`.

    Raises:
        UserError: If the autoencoder is missing and cannot be trained, or the folder
            contains a cross-validation.
        Stopped: If a signal came, also between the two stages.
    """
    _refuse_folds(workdir)
    stage = TASKS[config.task].first_stage(config.model)
    if stage is None:
        return train(config, workdir)
    start = time.monotonic()
    folder = Path(stage.folder or Path(workdir) / AUTOENCODER).expanduser()
    run = _run(folder)
    if not stage.folder and (run is None or _unfinished(run)):
        state = _train_first(config, stage, folder)
        config = _in_hours(config, start)
        if config.train.max_hours == 0:
            return state
        run = _run(folder)
    if run is None:
        raise UserError(
            f"config.model.autoencoder: {folder} holds no trained autoencoder. Set it "
            "to the folder of a run that has one"
        )
    try:
        autoencoder = trained_autoencoder(load_done(folder))
    except UserError as error:
        raise UserError(f"config.model.autoencoder: {folder}: {error}") from error
    _warn_of_differences(config, stage, folder, run)
    return train(config, workdir, autoencoder)


def _refuse_folds(workdir: str | Path) -> None:
    """Raise UserError if the folder contains a cross-validation."""
    if folds := [one.name for one in storage.listed(Path(workdir), "fold-[0-9]*")]:
        raise UserError(
            f"--workdir={workdir}: contains a cross-validation ({', '.join(folds)}). "
            "Give this run another folder, or resume the cross-validation with "
            "medjax cross-validate"
        )


def _train_first(config: RunConfig, stage: FirstStage, folder: Path) -> TrainState:
    """Train the autoencoder that a run uses; return its state.

    Raises:
        UserError: If it cannot be trained, or if the run could not use it.
        Stopped: If a signal came.
    """
    with _named_as_first(stage.config_file):
        first = _first_config(config, stage)
    logger.info("training the autoencoder first, with %s", stage.config_file)
    _check_second_stage(config, first)
    with stop_on_signals() as stop:
        with _named_as_first(stage.config_file):
            state = train(first, folder)
        votes = distributed.Agreement()
        # On several hosts, the second call returns the result of the first.
        if max(votes.largest(int(stop.made)), votes.largest(0)):
            raise Stopped(
                f"asked to stop when the autoencoder in {folder} was done; the "
                "same command resumes the run"
            )
    return state


def _warn_of_differences(
    config: RunConfig, stage: FirstStage, folder: Path, run: Run
) -> None:
    """Warn if an autoencoder is unfinished, or if its config or data differ."""
    if not stage.folder:
        _warn_of_another_config(folder, run, config, stage)
    plan = run.config.train
    if stage.folder and run.step < plan.steps and run.config.best.patience is None:
        logger.warning(
            "the autoencoder in %s has done %d of its %d steps",
            folder,
            run.step,
            plan.steps,
        )
    if _trained_on(run.dataset, run.config) != _trained_on(
        dataset_identity(config.data), config
    ):
        logger.warning(
            "the autoencoder in %s was trained on other data, or another fold of %s. "
            "Some images that are held out here may be among its training images",
            folder,
            run.dataset["source"],
        )


def _run(folder: Path) -> Run | None:
    """Return the run of the newest checkpoint in a folder; None if there is none."""
    return load_run(folder) if saved_steps(folder / "checkpoints") else None


def _unfinished(run: Run) -> bool:
    """Tell whether steps are missing, or the evaluation after the last step."""
    return run.step < run.config.train.steps or not run.metrics


def _warn_of_another_config(
    folder: Path, run: Run, config: RunConfig, stage: FirstStage
) -> None:
    """Warn if an autoencoder's config file has changed since it was trained."""
    file = stage.config_file
    if file is None:
        return
    try:
        find_config("config.model.autoencoder_config", file)
    except UserError:
        return  # The file is missing, so nothing can be compared.
    now = _first_config(config, stage)
    for key, was, said in differences(
        dataclasses.asdict(run.config), dataclasses.asdict(now)
    ):
        if key == "train.steps" or matters(key):
            logger.warning(
                "using the autoencoder in %s unchanged, although in %s config.%s is "
                "now %r, and was %r; to train a new one, set another --workdir",
                *(folder, file, key, said, was),
            )


def _trained_on(dataset: Mapping[str, str], config: RunConfig) -> tuple[object, ...]:
    return dataset["fingerprint"], config.data.folds, config.data.fold


def _in_hours(config: RunConfig, start: float) -> RunConfig:
    """Return the config with `max_hours` reduced by the time since `start`."""
    if config.train.max_hours is None:
        return config
    left = max(0, config.train.max_hours - (time.monotonic() - start) / 3600)
    plan = dataclasses.replace(config.train, max_hours=left)
    return dataclasses.replace(config, train=plan)


@contextlib.contextmanager
def _named_as_first(file: str | None) -> Iterator[None]:
    """Add the first stage and its config file to its errors."""
    try:
        yield
    except UserError as error:
        where = f"the autoencoder, which is trained first with {file}: " if file else ""
        raise UserError(f"{where}{error}") from error


def _first_config(config: RunConfig, stage: FirstStage) -> RunConfig:
    """Return the autoencoder's config with data, mesh and `max_hours` of the run.

    Raises:
        UserError: If the config is missing or wrong.
    """
    file = stage.config_file
    if file is None:
        raise UserError(
            "config.model.autoencoder_config is missing. Set it to the config of the "
            "autoencoder to train first, or set config.model.autoencoder to the folder "
            "of a finished run"
        )
    first = parse(load_config("config.model.autoencoder_config", file))
    if TASKS[first.task].autoencoder is None:
        raise UserError(
            f"config.model.autoencoder_config={file}: is of task {first.task}. "
            f"Expected task {' or '.join(autoencoder_tasks())}"
        )
    names = {field.name for field in dataclasses.fields(first.data)} - {"batch_size"}
    shared = {name: value for name, value in vars(config.data).items() if name in names}
    return dataclasses.replace(
        first,
        data=dataclasses.replace(first.data, **shared),
        mesh=config.mesh,
        train=dataclasses.replace(first.train, max_hours=config.train.max_hours),
    )


def _check_second_stage(config: RunConfig, first: RunConfig) -> None:
    """Raise now the errors that the second stage could raise only hours later."""
    check_batch_size(
        config.data.batch_size,
        config.train.gradient_accumulation_steps,
        meshes.make_mesh(config.mesh),
    )
    build = TASKS[first.task].autoencoder
    assert build is not None
    untrained = TrainedAutoencoder(build(first.model), {}, "")
    TASKS[config.task].check_first_stage(config, untrained)
