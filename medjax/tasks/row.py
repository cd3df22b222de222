"""A row of the table of tasks: all that other modules need to know about a task."""

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
    """The run of an autoencoder that another run uses.

    Attributes:
        folder: Folder of the autoencoder's run. "" means the folder inside the workdir
            of the run that uses it.
        config_file: Config file to train the autoencoder in that folder. None means
            that the config names none.
    """

    folder: str
    config_file: str | None


@dataclasses.dataclass(frozen=True)
class Origins:
    """Pretrained weights that training started from.

    Attributes:
        pretrained: Location of the base model; "" is the tiny one. None means that
            training started without one.
        vae: Location of the autoencoder that replaced the base model's. None means no
            replacement.
        controlnet: Location of the ControlNet. None means that training started
            without one.
    """

    pretrained: str | None = None
    vae: str | None = None
    controlnet: str | None = None


@dataclasses.dataclass(frozen=True)
class OptionalMetrics:
    """Metrics of validation that a key of ``config.eval`` turns on.

    Attributes:
        key: Name of the key in ``config.eval``.
        endings: Endings of the metrics' names.
        asked: Function from the section ``eval`` to True if the key is on, else False.
    """

    key: str
    endings: tuple[str, ...]
    asked: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True)
class CaptionScores:
    """Scores of images from captions, in addition to their similarity to real images.

    Attributes:
        measure: Function from images (n H W 3) in [-1, 1], their captions and the
            section ``eval`` to scores of each image (n,) and of all images, by name.
        explain: Function from the section ``eval`` to a paragraph that explains these
            scores, or "".
    """

    measure: Callable[
        [Float[np.ndarray, "n H W 3"], Sequence[str], Any],
        tuple[dict[str, Float[np.ndarray, " n"]], dict[str, float]],
    ] = lambda images, texts, config: ({}, {})
    explain: Callable[[Any], str] = lambda config: ""


def no_measures(page: SamplePage, data: Any, config: Any) -> dict[str, float]:
    """Return no metrics of a page of samples."""
    del page, data, config
    return {}


def any_config(config: Any) -> None:
    """Accept all combinations of sections."""
    del config


def any_first_stage(config: Any, untrained: TrainedAutoencoder) -> None:
    """Accept all autoencoders."""
    del config, untrained


@dataclasses.dataclass(frozen=True)
class TaskRow:
    """A row of the table of tasks.

    Attributes:
        sections: Classes of those config sections that depend on the task, by name.
        build: Function that builds the task for training.
        reopen: Function from a checkpoint, the value of ``--base`` and the run's
            autoencoder to the trained model, float32: a Stable Diffusion, an
            autoencoder or a `medjax.tasks.drawing.DrawingModel`. The value and the
            autoencoder may be None.
        check: Function that raises UserError if sections do not fit each other.
        measure: Function from a page of samples and the sections ``data`` and ``eval``
            to metrics by name.
        metrics: Names of the metrics, except the loss, that validation always measures.
        optional_metrics: Metrics that validation measures on request.
        first_stage: Function from the section ``model`` to the autoencoder's run that
            a run uses, or None.
        check_first_stage: Function that raises UserError if a run of a config cannot
            use an autoencoder. The weights of the autoencoder may be missing.
        autoencoder: Function from the section ``model`` to the network of an
            autoencoder. None for tasks that train no autoencoder.
        origins: Function from the section ``model`` to the pretrained weights that
            training started from.
        formats: Function from the sections ``model`` and ``data`` to names of export
            formats, see `medjax.exporting.formats`. The default is first; no names mean
            no export.
        classes: Function from the section ``data`` to the names of the classes.
        caption_scores: Scores of images from captions. None for tasks without captions.
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
    formats: Callable[[Any, Any], tuple[str, ...]] = lambda model, data: ()
    classes: Callable[[Any], tuple[str, ...]] = lambda data: ()
    caption_scores: CaptionScores | None = None
