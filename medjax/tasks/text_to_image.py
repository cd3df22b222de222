"""Task text_to_image: train a Stable Diffusion's U-Net and text encoder, or adapters.

``unet`` trains. ``text_encoder`` trains on request. All other weights are frozen. One
or both networks may have LoRA adapters. Then only the adapters train, and the weights
that ``modules_to_save`` names. For example, ``unet/…/to_q/lora_a`` trains, and
``unet/…/to_q/kernel`` is frozen.

In training from scratch, the statistics are ``vae/deviation``: the standard deviation
of the latents of training images. It stays constant. `captioned` defines the loss.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from medjax.arrays import Params
from medjax.data.config import DataConfig
from medjax.data.pipeline import dataset_metadata
from medjax.errors import UserError
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.pretrained import StableDiffusion
from medjax.pretrained.phantom import drawn_stable_diffusion
from medjax.tasks.adapters import (
    NO_ADAPTERS,
    AdapterConfig,
    saved_paths,
)
from medjax.tasks.autoencoder_kl import kl_network
from medjax.tasks.base_model import (
    base_weights,
    check_fingerprint,
    load_base,
    trained_base,
    with_trained,
)
from medjax.tasks.captioned import BaseConfig, CaptionedTask, assemble_captioned
from medjax.tasks.interface import BuiltTask, Checkpoint, TaskInputs
from medjax.tasks.latent_scaling import TrainedAutoencoder, latent_deviation
from medjax.tasks.row import FirstStage, Origins


@dataclasses.dataclass(frozen=True)
class TextToImageConfig(BaseConfig):
    """The networks of task text_to_image, and which of their weights train.

    Attributes:
        train_text_encoder: Whether all weights of the text encoder train too. It cannot
            be combined with adapters.
        unet_lora: LoRA adapters of the U-Net. They train instead of its weights.
        text_encoder_lora: LoRA adapters of the text encoder. They train instead of its
            weights.
        autoencoder: Folder of a run of task autoencoder_kl, to train from scratch: all
            other networks start from random weights, with the architecture of
            phantom-SD. "" means the folder ``autoencoder`` in this run's workdir; its
            run is trained first unless it is finished. None means no training from
            scratch: training starts from `pretrained`.
        autoencoder_config: Config (NAME, or FILE, with :VARIANT if needed) to train the
            autoencoder first, if `autoencoder` is "". None means that its run must be
            finished.
    """

    train_text_encoder: bool = False
    unet_lora: AdapterConfig = NO_ADAPTERS
    text_encoder_lora: AdapterConfig = NO_ADAPTERS
    autoencoder: str | None = None
    autoencoder_config: str | None = None

    def __post_init__(self) -> None:
        """Check that the values fit together.

        Raises:
            UserError: If they do not. The message starts with the name of a key.
        """
        if self.train_text_encoder and self.adapters:
            raise UserError(
                "train_text_encoder=True: cannot be combined with "
                f"{next(iter(self.adapters))}_lora.rank, because only adapters would "
                "train. Set it to False and use text_encoder_lora.rank, or set no rank"
            )
        if self.autoencoder is None:
            if self.autoencoder_config is not None:
                raise UserError(
                    "autoencoder_config is set, but autoencoder is None. Set "
                    'autoencoder to "" or to the folder of a run'
                )
        elif self.pretrained or self.vae or not self.train_text_encoder:
            raise UserError(
                "autoencoder is set, so training starts from scratch. This requires "
                "pretrained='', vae=None and train_text_encoder=True"
            )

    @property
    def adapters(self) -> dict[str, AdapterConfig]:
        """Adapters that train, by name of the network."""
        all_of_them = {"unet": self.unet_lora, "text_encoder": self.text_encoder_lora}
        return {name: one for name, one in all_of_them.items() if one != NO_ADAPTERS}


def make_text_to_image_task(inputs: TaskInputs) -> BuiltTask:
    """Load the networks, or start them from scratch, and choose what trains.

    Raises:
        UserError: If weights or captions are missing, or weights do not fit.
    """
    model: TextToImageConfig = inputs.model
    check_captions(inputs.data)
    statistics: Params = {}
    if inputs.autoencoder is None:
        sd = load_base(model.pretrained, model.vae, model.route)
    else:
        check_autoencoder(inputs.autoencoder)
        deviation = latent_deviation(
            inputs.autoencoder, inputs.source, inputs.data, inputs.key
        )
        statistics = {"vae": {"deviation": deviation}}
        sd = from_scratch(inputs.autoencoder, float(deviation), inputs.key)
    built = assemble_captioned(
        dataclasses.replace(sd, controlnet=None),
        inputs,
        _trains(model, base_weights(sd)),
    )
    base = built.base
    if inputs.autoencoder is not None:
        base = inputs.autoencoder.identity(model.autoencoder or "")
    assert isinstance(built.task, CaptionedTask)
    return dataclasses.replace(built, base=base, statistics=statistics)


def _trains(model: TextToImageConfig, base: Params) -> Callable[[str], bool]:
    """Return a function that tells whether the weight at a path trains.

    It is not called for adapters, which always train.
    """
    if configs := model.adapters:
        saved = {
            f"{name}/{path}"
            for name, config in configs.items()
            for path in saved_paths(name, base[name], config)
        }
        return saved.__contains__
    networks = ("unet", "text_encoder") if model.train_text_encoder else ("unet",)
    return lambda path: path.partition("/")[0] in networks


def check_captions(data: DataConfig) -> None:
    """Raise UserError if the data have no captions."""
    if "text" not in dataset_metadata(data).features:
        raise UserError(
            f"config.data.root={data.root}: no image has a caption, and task "
            "text_to_image requires captions. medjax prepare reads them from "
            "metadata.csv or metadata.jsonl beside the images (file_name, text)"
        )


def check_autoencoder(trained: TrainedAutoencoder) -> None:
    """Raise UserError if a Stable Diffusion cannot use this autoencoder."""
    if not isinstance(trained.module, AutoencoderKL) or trained.channels != 3:
        raise UserError(
            "config.model.autoencoder: expected a run of task autoencoder_kl with "
            "channels=3, because Stable Diffusion has 3 channels"
        )


def from_scratch(
    trained: TrainedAutoencoder, deviation: float, key: jax.Array
) -> StableDiffusion:
    """Return a Stable Diffusion with a trained autoencoder and random other weights.

    Args:
        trained: A KL autoencoder of three channels.
        deviation: Standard deviation of its latents.
        key: Key for all other weights.
    """
    assert isinstance(trained.module, AutoencoderKL)
    vae = kl_network(trained.module, trained.weights["network"])
    return drawn_stable_diffusion(vae.scaled(deviation), key)


def trained_text_to_image(
    checkpoint: Checkpoint,
    source: str | None = None,
    autoencoder: TrainedAutoencoder | None = None,
) -> StableDiffusion:
    """Return the Stable Diffusion with its trained weights in place, float32.

    Args:
        checkpoint: The run's checkpoint.
        source: Current location of the base model. None means the location in training.
        autoencoder: The autoencoder of a run from scratch; None for other runs.

    Raises:
        UserError: If the base model or autoencoder is missing or has changed.
    """
    if autoencoder is None:
        sd = trained_base(checkpoint, source)
        return dataclasses.replace(sd, controlnet=None)
    check_fingerprint(autoencoder.weights, checkpoint.base, "the autoencoder")
    deviation = float(checkpoint.params["vae"]["deviation"])
    # Trained weights replace all random weights from here, so any key works.
    sd = from_scratch(autoencoder, deviation, jax.random.key(0))
    return with_trained(sd, checkpoint)


def text_to_image_first_stage(model: TextToImageConfig) -> FirstStage | None:
    """Return the autoencoder's run for training from scratch, else None."""
    if model.autoencoder is None:
        return None
    return FirstStage(model.autoencoder, model.autoencoder_config)


def check_text_to_image_first_stage(config: Any, untrained: TrainedAutoencoder) -> None:
    """Check that a run can use an autoencoder, before that trains for hours.

    Args:
        config: The run's config.
        untrained: The autoencoder; its weights may be missing.

    Raises:
        UserError: If a Stable Diffusion cannot use it, or the data have no captions.
    """
    check_captions(config.data)
    check_autoencoder(untrained)


def text_to_image_origins(model: TextToImageConfig) -> Origins:
    """Return the pretrained weights that training started from, if any."""
    if model.autoencoder is not None:
        return Origins()
    return Origins(model.pretrained, model.vae)


def text_to_image_formats(model: TextToImageConfig, data: Any) -> tuple[str, ...]:
    """Return the export formats for the trained weights, the default one first."""
    del data
    return ("lora", "kohya", "pipeline") if model.adapters else ("pipeline",)
