"""A run and what it stands on: an autoencoder first, where its latents are wanted."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from medjax import distributed, meshes
from medjax.config_files import load_config
from medjax.data.pipeline import dataset_identity, dataset_metadata
from medjax.errors import Stopped, UserError
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.models.vq_vae import VQVAE
from medjax.pretrained import load_autoencoder
from medjax.runs.checksums import saved_steps
from medjax.runs.config import RunConfig, parse
from medjax.runs.open_run import (
    AUTOENCODER,
    Run,
    load_done,
    load_run,
    trained_autoencoder,
)
from medjax.runs.same_run import differences, matters
from medjax.tasks.autoencoder_kl import autoencoder_kl_module
from medjax.tasks.latent_scaling import TrainedAutoencoder
from medjax.tasks.text_to_image import check_autoencoder, check_captions
from medjax.tasks.unconditional import unconditional_task
from medjax.tasks.vq_vae import vq_vae_module
from medjax.training.loop import train
from medjax.training.step import TrainState, check_batch_size
from medjax.training.stop import stop_on_signals

logger = logging.getLogger(__name__)

_AUTOENCODERS = ("vq_vae", "autoencoder_kl")


def train_stages(config: RunConfig, workdir: str | Path) -> TrainState:
    """Train a run, and before it the autoencoder that it stands on.

    One that is named is taken as it is; one beside the run is trained to its end first.
    Where `train.max_hours` ends that, the state returned is the autoencoder's; where
    `best.patience` does, it is at its end.

    Arguments, result and errors are those of `loop.train`.

    Raises:
        UserError: If the autoencoder is neither there nor can be trained, or the folder
            is a cross-validation's.
        Stopped: Also between the two.
    """
    if folds := sorted(one.name for one in Path(workdir).glob("fold-[0-9]*")):
        raise UserError(
            f"--workdir={workdir}: holds a cross-validation ({', '.join(folds)}); "
            "medjax.cross_validate goes on with it, and another run needs a folder of "
            "its own"
        )
    place = getattr(config.model, "autoencoder", None)
    if place is None:
        return train(config, workdir)
    start = time.monotonic()
    folder = Path(place).expanduser() if place else Path(workdir) / AUTOENCODER
    run = _run(folder)
    if not place and (run is None or _unfinished(run)):
        with _named_as_first(config.model.autoencoder_config):
            first = _first_stage(config)
        logger.info("first the autoencoder, by %s", config.model.autoencoder_config)
        _check_second_stage(config, first)
        with stop_on_signals() as stop:
            with _named_as_first(config.model.autoencoder_config):
                state = train(first, folder)
            votes = distributed.Agreement()
            # Of several hosts, what one call hears the next one gives.
            if max(votes.largest(int(stop.made)), votes.largest(0)):
                raise Stopped(
                    f"asked to stop when the autoencoder in {folder} was done; the "
                    "same command goes on from here"
                )
        config = _in_hours(config, start)
        if config.train.max_hours == 0:
            return state
        run = _run(folder)
    if run is None:
        raise UserError(
            f"config.model.autoencoder: {folder} holds no trained autoencoder; give "
            "the folder of a run that has one"
        )
    try:
        autoencoder = trained_autoencoder(load_done(folder))
    except UserError as error:
        raise UserError(f"config.model.autoencoder: {folder}: {error}") from error
    if not place:
        _tell_of_another_config(folder, run, config)
    plan = run.config.train
    if place and run.step < plan.steps and run.config.best.patience is None:
        logger.warning(
            "the autoencoder in %s has done %d of its %d updates",
            folder,
            run.step,
            plan.steps,
        )
    if _trained_on(run.dataset, run.config) != _trained_on(
        dataset_identity(config.data), config
    ):
        logger.warning(
            "the autoencoder in %s was trained on other data, or another fold of %s: "
            "some that are held out here may be among them",
            folder,
            run.dataset["source"],
        )
    return train(config, workdir, autoencoder)


def _run(folder: Path) -> Run | None:
    """Return the newest checkpoint in a folder; None where there is none."""
    return load_run(folder) if saved_steps(folder / "checkpoints") else None


def _unfinished(run: Run) -> bool:
    """Tell whether updates are missing, or the evaluation after the last one."""
    return run.step < run.config.train.steps or not run.metrics


def _tell_of_another_config(folder: Path, run: Run, config: RunConfig) -> None:
    """Warn where an autoencoder is not what its config file describes by now."""
    file = config.model.autoencoder_config
    if file is None or not Path(file.partition(":")[0]).expanduser().is_file():
        return
    now = _first_stage(config)
    for key, was, said in differences(
        dataclasses.asdict(run.config), dataclasses.asdict(now)
    ):
        if key == "train.steps" or matters(key):
            logger.warning(
                "the autoencoder in %s is taken as it is, though by %s config.%s is "
                "now %r, and was %r; to train another, give another --workdir",
                *(folder, file, key, said, was),
            )


def _trained_on(dataset: Mapping[str, str], config: RunConfig) -> tuple[object, ...]:
    return dataset["fingerprint"], config.data.folds, config.data.fold


def _in_hours(config: RunConfig, start: float) -> RunConfig:
    """Return the config with what is left of its hours since `start`."""
    if config.train.max_hours is None:
        return config
    left = max(0, config.train.max_hours - (time.monotonic() - start) / 3600)
    plan = dataclasses.replace(config.train, max_hours=left)
    return dataclasses.replace(config, train=plan)


@contextlib.contextmanager
def _named_as_first(file: str | None) -> Iterator[None]:
    """Say of mistakes that they are of the first stage."""
    try:
        yield
    except UserError as error:
        where = f"the autoencoder, which is trained first, by {file}: " if file else ""
        raise UserError(f"{where}{error}") from error


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
    if first.task not in _AUTOENCODERS:
        raise UserError(
            f"config.model.autoencoder_config: {file} is of task {first.task}; "
            f"expected {' or '.join(_AUTOENCODERS)}"
        )
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


def _check_second_stage(config: RunConfig, first: RunConfig) -> None:
    """Raise UserError for what it would say when the first has trained for hours."""
    wanted = getattr(config.model, "channels", first.model.channels)
    if first.model.channels != wanted:
        raise UserError(
            f"config.model.channels={wanted}: the autoencoder by "
            f"{config.model.autoencoder_config} has {first.model.channels}; expected "
            "the same"
        )
    check_batch_size(
        config.data.batch_size,
        config.train.gradient_accumulation_steps,
        meshes.make_mesh(config.mesh),
    )
    untrained = TrainedAutoencoder(_module(first), {}, "")
    if config.task != "unconditional":
        check_captions(config.data)
        check_autoencoder(untrained)
        return
    task = unconditional_task(config.model, config.data, config.diffusion, untrained)
    task.check(config.data.image_size, config.eval.sampling())
    there = dataset_metadata(config.data).label_names
    for name in config.data.classes:
        if name not in there:
            raise UserError(
                f"config.data.classes={config.data.classes}: no image has the label "
                f"'{name}'; the data have {', '.join(there) or 'no labels'}, and () is "
                "for diffusion without classes"
            )


def _module(config: RunConfig) -> VQVAE | AutoencoderKL:
    """Return the network of an autoencoder's config."""
    if config.task == "vq_vae":
        return vq_vae_module(config.model)
    if config.model.pretrained is None:
        return autoencoder_kl_module(config.model)
    module = load_autoencoder(config.model.pretrained).module
    assert isinstance(module, AutoencoderKL)
    return module
