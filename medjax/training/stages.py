"""A run and what it stands on: an autoencoder first, where its latents are wanted."""

import dataclasses
import logging
import time
from pathlib import Path

from medjax.config_files import load_config
from medjax.data.pipeline import dataset_identity
from medjax.errors import UserError
from medjax.training.config import RunConfig, parse
from medjax.training.integrity import saved_steps
from medjax.training.loop import train
from medjax.training.runs import AUTOENCODER, Run, load_run, trained_autoencoder
from medjax.training.step import TrainState

logger = logging.getLogger(__name__)


def train_stages(config: RunConfig, workdir: str | Path) -> TrainState:
    """Train a run, and before it the autoencoder that it stands on.

    One that is named is taken as it is; one beside the run is trained to its end first.
    Where `train.max_hours` ends that, the state returned is the autoencoder's.

    Arguments, result and errors are those of `loop.train`.

    Raises:
        UserError: If the autoencoder is neither there nor can be trained.
    """
    place = getattr(config.model, "autoencoder", None)
    if place is None:
        return train(config, workdir)
    start = time.monotonic()
    folder = Path(place).expanduser() if place else Path(workdir) / AUTOENCODER
    run = _run(folder)
    if not place and (run is None or run.step < run.config.train.steps):
        try:
            state = train(_first_stage(config), folder)
        except UserError as error:
            by = config.model.autoencoder_config
            where = f"the autoencoder, which is trained first, by {by}: " if by else ""
            raise UserError(f"{where}{error}") from error
        run = _run(folder)
        assert run is not None
        if run.step < run.config.train.steps:
            return state
        config = _in_hours(config, start)
    if run is None:
        raise UserError(
            f"config.model.autoencoder: {folder} holds no trained autoencoder; give "
            "the folder of a run that has one"
        )
    try:
        autoencoder = trained_autoencoder(run)
    except UserError as error:
        raise UserError(f"config.model.autoencoder: {folder}: {error}") from error
    if run.dataset["fingerprint"] != dataset_identity(config.data)["fingerprint"]:
        logger.warning(
            "the autoencoder in %s was trained on other data, %s: some that are held "
            "out here may be among them",
            folder,
            run.dataset["source"],
        )
    return train(config, workdir, autoencoder)


def _run(folder: Path) -> Run | None:
    """Return the newest checkpoint in a folder; None where there is none."""
    return load_run(folder) if saved_steps(folder / "checkpoints") else None


def _in_hours(config: RunConfig, start: float) -> RunConfig:
    """Return the config with what is left of its hours since `start`."""
    if config.train.max_hours is None:
        return config
    # The next step is made in any case.
    left = max(1e-9, config.train.max_hours - (time.monotonic() - start) / 3600)
    plan = dataclasses.replace(config.train, max_hours=left)
    return dataclasses.replace(config, train=plan)


def _first_stage(config: RunConfig) -> RunConfig:
    """Return the autoencoder's config, on the data and in the hours of the run.

    Raises:
        UserError: If there is no such config, or it is wrong.
    """
    file = config.model.autoencoder_config
    if file is None:
        raise UserError(
            "config.model.autoencoder is '', for one that is trained first; give "
            "config.model.autoencoder_config, by which, or the folder of its run"
        )
    first = parse(load_config("config.model.autoencoder_config", file))
    logger.info("first the autoencoder, by %s", file)
    shared = {
        field.name: getattr(config.data, field.name)
        for field in dataclasses.fields(first.data)
        if field.name != "batch_size"
    }
    return dataclasses.replace(
        first,
        data=dataclasses.replace(first.data, **shared),
        mesh=config.mesh,
        train=dataclasses.replace(first.train, max_hours=config.train.max_hours),
    )
