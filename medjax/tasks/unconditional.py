"""Diffusion from nothing, or from a class: of pixels, or of an autoencoder's latents.

Trees: ``unet`` trains; ``autoencoder`` is frozen. The statistics are ``latents``, their
mean and deviation, which stay, and ``batch_stats``, the running averages of a U-Net
with batch normalisation, which follow. `image_diffusion` has the loss.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from medjax import trees
from medjax.arrays import Params
from medjax.data.config import ClassDataConfig
from medjax.data.pipeline import dataset_metadata
from medjax.diffusion.objective import ScheduledDiffusionConfig
from medjax.diffusion.schedule import make_schedule
from medjax.errors import UserError
from medjax.models.conv_unet import ConvUNet
from medjax.models.unet_2d import UNet2D
from medjax.tasks import latent_scaling
from medjax.tasks.base_model import check_fingerprint
from medjax.tasks.image_diffusion import ImageDiffusion, TrainedImageDiffusion
from medjax.tasks.interface import NO_BASE, BuiltTask, Checkpoint, TaskInputs
from medjax.tasks.latent_scaling import TrainedAutoencoder
from medjax.tasks.row import FirstStage

_OF_UNET_2D = ("attention_levels", "attention_head_dim", "norm_num_groups", "remat")


@dataclasses.dataclass(frozen=True)
class UnconditionalConfig:
    """Which network, of what.

    Attributes:
        architecture: unet_2d, with group normalisation and attention, or conv_unet,
            which the published systems have, with batch normalisation.
        channels: Of the images: 1 for gray ones, or 3.
        block_out_channels: Widths of the levels, from the finest.
        layers_per_block: Residual blocks of a level.
        attention_levels: Of unet_2d: levels with self-attention, from 0, the finest,
            beside the middle; () is none at all.
        attention_head_dim: Of unet_2d: channels of an attention head.
        norm_num_groups: Of unet_2d: groups of every norm.
        residual: Of conv_unet: whether its blocks are residual.
        autoencoder: Folder of a run that trained an autoencoder, for diffusion of its
            latents; "" for one beside this run, None for diffusion of pixels.
        autoencoder_config: Config file by which one beside this run is trained first.
        dtype: Of the U-Net's activations; all weights are float32.
        remat: Of unet_2d: whether activations are computed again for the gradient.
    """

    architecture: Literal["unet_2d", "conv_unet"] = "unet_2d"
    channels: int = 1
    block_out_channels: tuple[int, ...] = (64, 128, 256, 512)
    layers_per_block: int = 2
    attention_levels: tuple[int, ...] = ()
    attention_head_dim: int = 32
    norm_num_groups: int = 32
    residual: bool = False
    autoencoder: str | None = None
    autoencoder_config: str | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: bool = False

    def __post_init__(self) -> None:
        """Refuse what the architecture does not have.

        Raises:
            UserError: Starts with the name of the field.
        """
        if self.channels not in (1, 3):
            raise UserError(f"channels is {self.channels}, expected 1 or 3")
        if self.architecture == "conv_unet":
            for name in _OF_UNET_2D:
                value = getattr(self, name)
                if value != getattr(UnconditionalConfig, name):
                    raise UserError(
                        f"{name} is {value}, but architecture is conv_unet, which has "
                        "none; expected unet_2d"
                    )
        elif self.residual:
            raise UserError(
                "residual is for conv_unet; the blocks of unet_2d are residual"
            )
        if self.autoencoder is None and self.autoencoder_config is not None:
            raise UserError(
                "autoencoder_config is there, but autoencoder is None; give its "
                'folder, or ""'
            )


def make_unconditional_task(inputs: TaskInputs) -> BuiltTask:
    """Draw the network's weights, and measure the latents that it will see.

    Raises:
        UserError: If the configuration does not fit.
    """
    model: UnconditionalConfig = inputs.model
    trained: TrainedAutoencoder | None = inputs.autoencoder
    task = unconditional_task(model, inputs.data, inputs.diffusion, trained)
    params, batch_stats = task.unet.init_variables(inputs.key)
    statistics: Params = {"batch_stats": batch_stats} if batch_stats else {}
    frozen: Params = {}
    if trained is not None:
        if trained.channels != model.channels:
            raise UserError(
                f"config.model.channels={model.channels}: the autoencoder was trained "
                f"with {trained.channels}; expected the same"
            )
        frozen = {"autoencoder": trained.weights}
        mean, deviation = latent_scaling.measure_latents(
            trained, inputs.source, inputs.data, model.channels, inputs.key
        )
        statistics["latents"] = {"mean": mean, "deviation": deviation}
    base = NO_BASE
    if trained is not None:
        base = trained.identity(model.autoencoder or "")
    return BuiltTask(
        task,
        params={"unet": params},
        # Its rounding would be part of every target.
        frozen=trees.cast(frozen, jnp.float32),
        tokenizer=None,
        base=base,
        statistics=statistics,
    )


def unconditional_task(
    model: UnconditionalConfig,
    data: Any,
    diffusion: ScheduledDiffusionConfig,
    trained: TrainedAutoencoder | None,
) -> ImageDiffusion:
    """Build the network of a configuration.

    Raises:
        UserError: If its widths do not fit each other.
    """
    autoencoder = trained.module if trained else None
    shared: dict[str, Any] = {
        "channels": autoencoder.latent_channels if autoencoder else model.channels,
        "block_out_channels": model.block_out_channels,
        "layers_per_block": model.layers_per_block,
        "num_classes": len(data.classes),
        "dtype": jnp.dtype(model.dtype),
    }
    unet: UNet2D | ConvUNet
    if model.architecture == "conv_unet":
        unet = ConvUNet(residual=model.residual, **shared)
    else:
        unet = UNet2D(
            attention_levels=model.attention_levels,
            attention_head_dim=model.attention_head_dim,
            norm_num_groups=model.norm_num_groups,
            remat=model.remat,
            **shared,
        )
        unet.check()
    schedule = make_schedule(
        {
            "num_train_timesteps": diffusion.num_train_timesteps,
            "beta_schedule": diffusion.beta_schedule,
            "beta_start": diffusion.beta_start,
            "beta_end": diffusion.beta_end,
            "rescale_betas_zero_snr": diffusion.rescale_betas_zero_snr,
            # From T, however few the steps: Lin et al., 2023, section 3.3.
            "timestep_spacing": "trailing",
        },
        diffusion.prediction_type,
    )
    return ImageDiffusion(unet, autoencoder, model.channels, diffusion, schedule)


def trained_unconditional(
    checkpoint: Checkpoint,
    source: str | None = None,
    autoencoder: TrainedAutoencoder | None = None,
) -> TrainedImageDiffusion:
    """Return the trained model, float32.

    Args:
        checkpoint: The run's checkpoint.
        source: Not used: it has no base.
        autoencoder: The one that the run stood on; None for pixels.

    Raises:
        UserError: If the autoencoder is another.
    """
    del source
    if autoencoder is not None:
        check_fingerprint(autoencoder.weights, checkpoint.base, "the autoencoder")
    model = dataclasses.replace(checkpoint.model, dtype="float32")
    task = unconditional_task(model, checkpoint.data, checkpoint.diffusion, autoencoder)
    nets = dict(checkpoint.params)
    if autoencoder is not None:
        nets["autoencoder"] = autoencoder.weights
    return TrainedImageDiffusion(task, trees.cast(nets, np.float32))


def check_unconditional(config: Any) -> None:
    """Refuse what batch normalisation cannot do.

    Args:
        config: The run's.

    Raises:
        UserError: It names the keys.
    """
    accumulation = config.train.gradient_accumulation_steps
    if accumulation > 1 and config.model.architecture == "conv_unet":
        raise UserError(
            f"config.train.gradient_accumulation_steps={accumulation}: batch "
            "normalisation would see a microbatch at a time, which trains "
            "something else; expected 1, or model.architecture=unet_2d"
        )


def unconditional_first_stage(model: UnconditionalConfig) -> FirstStage | None:
    """Return the autoencoder's run whose latents are diffused; None for pixels."""
    if model.autoencoder is None:
        return None
    return FirstStage(model.autoencoder, model.autoencoder_config)


def check_unconditional_first_stage(config: Any, untrained: TrainedAutoencoder) -> None:
    """Check that a run can stand on an autoencoder, before that trains for hours.

    Args:
        config: The run's.
        untrained: The autoencoder; its weights may be missing.

    Raises:
        UserError: If channels, sizes, sampler or classes do not fit.
    """
    if untrained.channels != config.model.channels:
        raise UserError(
            f"config.model.channels={config.model.channels}: the autoencoder by "
            f"{config.model.autoencoder_config} has {untrained.channels}; expected "
            "the same"
        )
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


def unconditional_classes(data: ClassDataConfig) -> tuple[str, ...]:
    """Return the classes that can be asked for."""
    return data.classes
