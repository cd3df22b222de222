"""Export formats: the weights that each one stores, and how to write them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from medjax.data.pipeline import open_dataset
from medjax.errors import UserError
from medjax.exporting.for_torch import save_pixels_pipeline, save_pytorch
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.pretrained import (
    Network,
    StableDiffusion,
    save_autoencoder,
    save_controlnet,
    save_stable_diffusion,
)
from medjax.pretrained.lora_files import save_diffusers_lora, save_kohya_lora
from medjax.pretrained.single_file_out import save_controlnet_file
from medjax.runs.open_run import Run, trained_autoencoder
from medjax.tasks import TASKS
from medjax.tasks.autoencoder_kl import kl_network
from medjax.tasks.image_diffusion import TrainedImageDiffusion
from medjax.tasks.latent_scaling import TrainedAutoencoder, latent_deviation

Exported = Network | StableDiffusion | TrainedImageDiffusion | TrainedAutoencoder
"""The weights in memory that an export stores."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Name and format of an export to write.

    Attributes:
        name: Name of the folder, or its hub id.
        format: Name of a format, a key of `FORMATS`.
        dtype: Dtype of the stored weights.
        file: Name of the single file; "" if the format is a folder.
    """

    name: str
    format: str
    dtype: str
    file: str = ""


@dataclasses.dataclass(frozen=True)
class Format:
    """Functions and properties of an export format.

    Attributes:
        save: Function that writes a run's weights to an empty folder. It returns these
            weights, for the comparison with PyTorch.
        check: Function that raises UserError if the format cannot store all the weights
            that a run trained.
        draws: Whether the format contains a model that samples images. If so, sampling
            defaults are written too.
        whole: Whether the export is a pipeline of diffusers.
    """

    save: Callable[[Run, Path, Export], Exported]
    check: Callable[[Run, str], None] = lambda run, name: None
    draws: bool = True
    whole: bool = False


def format_for(run: Run, asked: str | None) -> str:
    """Return the requested format, or the default one.

    Args:
        run: The run to export.
        asked: Name of a format. None means the default format of the run's model.

    Raises:
        UserError: If a run of this task cannot be exported, or if the format cannot
            store all the weights that the run trained.
    """
    task = run.config.task
    formats = TASKS[task].formats(run.config.model, run.config.data)
    if not formats:
        raise UserError(
            f"a run of task {task} cannot be exported. Expected a run of task "
            f"{' or '.join(_exportable())}"
        )
    if asked is not None and asked not in formats:
        raise UserError(
            f"--format={asked}: not available for runs of task {task}. Expected "
            f"--format={' or '.join(formats)}"
        )
    chosen = asked or formats[0]
    FORMATS[chosen].check(run, chosen)
    return chosen


def _exportable() -> list[str]:
    """Return the tasks whose default model can be exported."""
    return [
        name
        for name, row in TASKS.items()
        if row.formats(row.sections["model"](), row.sections["data"]())
    ]


def _check_unet(run: Run, name: str) -> None:
    """Check that the run did not train the U-Net, which the format cannot store."""
    if "unet" in run.trained:
        raise UserError(
            f"--format={name}: cannot store the U-Net, which this run also trained "
            "(config.model.train_unet or sd_locked=False). Without it, images would "
            "differ. Use --format=pipeline"
        )


def _check_low_rank(run: Run, name: str) -> None:
    """Check that the run trained adapters only."""
    for network, adapters in run.sd.adapters.items():
        if adapters.rest:
            paths = ", ".join(f"{network}/{path}" for path in adapters.rest)
            raise UserError(
                f"--format={name}: cannot store {paths}, which this run also trained "
                f"(config.model.{network}_lora.modules_to_save). Without them, images "
                "would differ. Use --format=pipeline"
            )


def _save_pipeline(run: Run, folder: Path, export: Export) -> Exported:
    if isinstance(run.model, TrainedImageDiffusion):
        save_pixels_pipeline(run.model, run, folder, export.dtype)
        return run.model
    save_stable_diffusion(run.sd, folder, jnp.dtype(export.dtype))
    return run.sd


def _save_controlnet(run: Run, folder: Path, export: Export) -> StableDiffusion:
    assert run.sd.controlnet is not None
    save_controlnet(run.sd.controlnet, folder, jnp.dtype(export.dtype))
    return run.sd


def _save_single_file(run: Run, folder: Path, export: Export) -> StableDiffusion:
    assert run.sd.controlnet is not None
    dtype = jnp.dtype(export.dtype)
    save_controlnet_file(run.sd.controlnet, folder / export.file, dtype)
    return run.sd


def _save_vae(run: Run, folder: Path, export: Export) -> Network:
    network = _scaled_autoencoder(run)
    save_autoencoder(network, folder, jnp.dtype(export.dtype))
    return network


def _save_lora(run: Run, folder: Path, export: Export) -> StableDiffusion:
    dtype = jnp.dtype(export.dtype)
    save_diffusers_lora(run.sd.adapters, folder / export.file, dtype)
    return run.sd


def _save_kohya(run: Run, folder: Path, export: Export) -> StableDiffusion:
    save_kohya_lora(run.sd.adapters, folder / export.file, jnp.dtype(export.dtype))
    return run.sd


def _save_pytorch(run: Run, folder: Path, export: Export) -> Exported:
    assert isinstance(run.model, TrainedImageDiffusion | TrainedAutoencoder)
    save_pytorch(run.model, run, folder, export.dtype)
    return run.model


def _scaled_autoencoder(run: Run) -> Network:
    """Return the KL autoencoder of a run, with the scaling factor of its latents.

    The factor of a base is kept. Without a base, it is measured on the training images.
    """
    trained = trained_autoencoder(run)
    assert isinstance(trained.module, AutoencoderKL)
    network = kl_network(trained.module, trained.weights["network"])
    if run.config.model.pretrained is not None:
        return network
    data = run.config.data
    try:
        source = open_dataset(data, "train")
    except UserError as error:
        raise UserError(
            "the factor that scales latents to unit variance is measured on the "
            f"training images, which cannot be read: {error}"
        ) from error
    key = jax.random.key(run.config.train.seed)
    return network.scaled(float(latent_deviation(trained, source, data, key)))


FORMATS: dict[str, Format] = {
    "pipeline": Format(_save_pipeline, whole=True),
    "controlnet": Format(_save_controlnet, _check_unet),
    "single_file": Format(_save_single_file, _check_unet),
    "vae": Format(_save_vae, draws=False),
    "pytorch": Format(_save_pytorch),
    "lora": Format(_save_lora, _check_low_rank, draws=False),
    "kohya": Format(_save_kohya, _check_low_rank, draws=False),
}
"""All formats by name; `medjax.tasks.TASKS` lists the formats of each task."""
