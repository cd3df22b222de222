"""Task unconditional: train diffusion without captions, of pixels or of latents.

Images can have classes. Trees: ``unet`` trains; ``autoencoder`` is frozen. The
statistics are ``latents``, their constant mean and standard deviation, and
``batch_stats``, the running averages of a U-Net with batch normalisation, which each
step updates. `image_diffusion` has the loss.
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

_OF_UNET_2D = (
    "attention_levels",
    "attention_head_dim",
    "norm_num_groups",
    "remat",
    "attention",
)


@dataclasses.dataclass(frozen=True)
class UnconditionalConfig:
    """The U-Net of task unconditional, and the autoencoder of its latents.

    Attributes:
        architecture: unet_2d, with group normalisation and attention, or conv_unet,
            with batch normalisation, which the published systems use.
        channels: Number of channels of the images: 1 for grayscale, or 3.
        block_out_channels: Number of channels of each level, from the finest. Each
            level except the last halves the resolution. With unet_2d, all must be
            divisible by `norm_num_groups` and, with attention, by
            `attention_head_dim`.
        layers_per_block: Number of blocks per level. The last level of conv_unet always
            has one.
        attention_levels: Numbers of the levels with self-attention; 0 is the finest. If
            any level has it, the middle has it too. () means no attention at all. Only
            for unet_2d.
        attention_head_dim: Number of channels per attention head. Only for unet_2d.
        norm_num_groups: Number of groups of each group normalisation. Only for unet_2d.
        residual: Whether blocks add their input to their output. Only for conv_unet;
            the blocks of unet_2d always do.
        autoencoder: Folder of a run that trained an autoencoder, for diffusion of its
            latents. "" means the folder ``autoencoder`` in this run's workdir; its run
            is trained first unless it is finished. None means diffusion of pixels.
        autoencoder_config: Config (NAME, or FILE, with :VARIANT if needed) to train the
            autoencoder first, if `autoencoder` is "". None means that its run must be
            finished.
        dtype: Data type of the U-Net's activations: float32 or bfloat16. All weights
            are float32.
        remat: What each block keeps for its gradient. none keeps everything; attention
            keeps the results of long attention on a TPU, and full keeps nothing:
            they take less memory but more time. Only for unet_2d.
        attention: How attention is computed: plain, fused or splash (on a TPU), cudnn
            (on a GPU in half precision), or auto, which chooses by platform and length.
            Only for unet_2d.
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
    remat: Literal["none", "attention", "full"] = "none"
    attention: Literal["auto", "plain", "fused", "splash", "cudnn"] = "auto"

    def __post_init__(self) -> None:
        """Check the values, and that they apply to the architecture.

        Raises:
            UserError: If a check fails. The message starts with the name of the key.
        """
        if self.channels not in (1, 3):
            raise UserError(f"channels={self.channels}: expected 1 or 3")
        if self.architecture == "conv_unet":
            for name in _OF_UNET_2D:
                value = getattr(self, name)
                if value != getattr(UnconditionalConfig, name):
                    raise UserError(
                        f"{name}={value}: does not apply to architecture=conv_unet. "
                        "Remove it, or set architecture=unet_2d"
                    )
        elif self.residual:
            raise UserError(
                "residual=True: applies only to architecture=conv_unet, because the "
                "blocks of unet_2d are always residual. Remove it"
            )
        if self.autoencoder is None and self.autoencoder_config is not None:
            raise UserError(
                "autoencoder_config is set, but autoencoder is None. Set autoencoder "
                'to "" or to the folder of a run'
            )


def make_unconditional_task(inputs: TaskInputs) -> BuiltTask:
    """Build a network with random weights, and measure its autoencoder's latents.

    Raises:
        UserError: If the autoencoder does not fit the config.
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
                f"with {trained.channels} channels. Set config.model.channels to this "
                "number"
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
        # In a lower precision, the autoencoder's rounding would be in every target.
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
    """Build the network of a config.

    Raises:
        UserError: If its widths, groups, heads and levels do not fit each other.
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
            attention=model.attention,
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
            # Sampling starts at T with any number of steps: Lin et al., 2023, 3.3.
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
        source: Unused, because the task has no base model.
        autoencoder: The autoencoder of the run. None means diffusion of pixels.

    Raises:
        UserError: If the autoencoder has changed.
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
    """Check that batch normalisation is not combined with gradient accumulation.

    Args:
        config: The run's config.

    Raises:
        UserError: If both are used. The message names the keys.
    """
    accumulation = config.train.gradient_accumulation_steps
    if accumulation > 1 and config.model.architecture == "conv_unet":
        raise UserError(
            f"config.train.gradient_accumulation_steps={accumulation}: batch "
            "normalisation would see only one microbatch at a time, which changes the "
            "result. Expected 1, or config.model.architecture=unet_2d"
        )


def unconditional_first_stage(model: UnconditionalConfig) -> FirstStage | None:
    """Return the autoencoder's run for diffusion of latents; None for pixels."""
    if model.autoencoder is None:
        return None
    return FirstStage(model.autoencoder, model.autoencoder_config)


def check_unconditional_first_stage(config: Any, untrained: TrainedAutoencoder) -> None:
    """Check that a run can use an autoencoder, before that trains for hours.

    Args:
        config: The run's config.
        untrained: The autoencoder; its weights may be missing.

    Raises:
        UserError: If channels, sizes, sampler or classes do not fit.
    """
    if untrained.channels != config.model.channels:
        raise UserError(
            f"config.model.channels={config.model.channels}: the autoencoder of "
            f"{config.model.autoencoder_config} has {untrained.channels} channels. Set "
            "config.model.channels to this number"
        )
    task = unconditional_task(config.model, config.data, config.diffusion, untrained)
    task.check(config.data.image_size, config.eval.sampling())
    there = dataset_metadata(config.data).label_names
    for name in config.data.classes:
        if name not in there:
            raise UserError(
                f"config.data.classes={config.data.classes}: no image has the label "
                f"'{name}'. Labels in the data: {', '.join(there) or 'none'}. Set "
                "() to train without classes"
            )


def unconditional_formats(
    model: UnconditionalConfig, data: ClassDataConfig
) -> tuple[str, ...]:
    """Return the export formats for the trained weights, the default one first.

    Diffusers has a pipeline only for pixels, without classes and batch normalisation.
    """
    pixels = model.autoencoder is None and not data.classes
    if pixels and model.architecture == "unet_2d":
        return ("pipeline", "pytorch")
    return ("pytorch",)


def unconditional_classes(data: ClassDataConfig) -> tuple[str, ...]:
    """Return the names of the classes."""
    return data.classes
