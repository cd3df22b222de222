"""A row of the table of tasks: all that the rest of the program asks of a task."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.models.vq_vae import VQVAE
from medjax.tasks.interface import BuiltTask, Checkpoint, SamplePage, TaskInputs
from medjax.tasks.latent_scaling import TrainedAutoencoder


@dataclasses.dataclass(frozen=True)
class FirstStage:
    """The run of an autoencoder that another run stands on.

    Attributes:
        folder: Its folder; "" for the one beside the run that stands on it.
        config_file: Config file to train the one beside the run by; None if missing.
    """

    folder: str
    config_file: str | None


@dataclasses.dataclass(frozen=True)
class Origins:
    """The published weights that training started from; None for those that it did not.

    Attributes:
        pretrained: The base; "" is the tiny one.
        vae: The autoencoder in place of the base's own.
        controlnet: The ControlNet.
    """

    pretrained: str | None = None
    vae: str | None = None
    controlnet: str | None = None


@dataclasses.dataclass(frozen=True)
class OptionalMetrics:
    """Metrics that validation gives only if a key of ``config.eval`` asks for them.

    Attributes:
        key: The key of ``config.eval``.
        endings: Ends of the metrics' names.
        asked: Whether a section ``eval`` asks for them.
    """

    key: str
    endings: tuple[str, ...]
    asked: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True)
class CaptionScores:
    """Scores of images drawn for captions, beside how like the real ones they are.

    Attributes:
        measure: From images (n H W 3) in [-1, 1], their captions and the section
            ``eval`` to scores of each image (n,) and of all of them, by name.
        explain: From the section ``eval`` to a paragraph about these scores, or "".
    """

    measure: Callable[
        [Float[np.ndarray, "n H W 3"], Sequence[str], Any],
        tuple[dict[str, Float[np.ndarray, " n"]], dict[str, float]],
    ] = lambda images, texts, config: ({}, {})
    explain: Callable[[Any], str] = lambda config: ""


def no_measures(page: SamplePage, data: Any, config: Any) -> dict[str, float]:
    """Measure nothing on a page of samples."""
    del page, data, config
    return {}


def any_config(config: Any) -> None:
    """Accept any sections."""
    del config


def any_first_stage(config: Any, untrained: TrainedAutoencoder) -> None:
    """Accept any autoencoder."""
    del config, untrained


@dataclasses.dataclass(frozen=True)
class TaskRow:
    """A row of the table of tasks.

    Attributes:
        sections: Classes of the config's sections that differ from task to task.
        build: Builds the task for training.
        reopen: From a checkpoint, ``--base`` and the autoencoder that the run stood on
            to the trained model, float32: a Stable Diffusion, an autoencoder or a
            `medjax.tasks.drawing.DrawingModel`. The last two may be None.
        check: Raises UserError for sections that do not fit each other.
        measure: Measures a page of samples, given the sections ``data`` and ``eval``.
        metrics: Names of what validation always measures beside the loss.
        optional_metrics: What it measures on request.
        first_stage: From the section ``model`` to the autoencoder's run that a run
            stands on; None if it stands on none.
        check_first_stage: Raises UserError unless a run of a config can stand on an
            autoencoder, whose weights may be missing.
        autoencoder: From the section ``model`` to the network of an autoencoder; None
            for tasks that train none.
        origins: From the section ``model`` to the weights that training started from.
        formats: From the section ``model`` to names of formats of
            `medjax.exporting.formats`, the usual one first; none for no export.
        classes: From the section ``data`` to the classes that can be asked for.
        caption_scores: How images for captions are scored; None for tasks that draw
            none.
    """

    sections: Mapping[str, type]
    build: Callable[[TaskInputs], BuiltTask]
    reopen: Callable[[Checkpoint, str | None, TrainedAutoencoder | None], Any]
    check: Callable[[Any], None] = any_config
    measure: Callable[[SamplePage, Any, Any], dict[str, float]] = no_measures
    metrics: tuple[str, ...] = ()
    optional_metrics: tuple[OptionalMetrics, ...] = ()
    first_stage: Callable[[Any], FirstStage | None] = lambda model: None
    check_first_stage: Callable[[Any, TrainedAutoencoder], None] = any_first_stage
    autoencoder: Callable[[Any], VQVAE | AutoencoderKL] | None = None
    origins: Callable[[Any], Origins] = lambda model: Origins()
    formats: Callable[[Any], tuple[str, ...]] = lambda model: ()
    classes: Callable[[Any], tuple[str, ...]] = lambda data: ()
    caption_scores: CaptionScores | None = None
