"""Text to image: train a Stable Diffusion's U-Net and its text encoder, or adapters.

Trees: ``unet``, and where it is asked for ``text_encoder``, train; the rest is frozen.
With adapters (LoRA) of one of them or both, these alone train, and what is named beside
them: ``unet/…/to_q/lora_a``, while ``unet/…/to_q/kernel`` is frozen.
From scratch, the statistics are ``vae/deviation``, that of its latents as measured on
training images, which stays. `captioned` has the loss.
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
    """Which networks, and which of them train.

    Attributes:
        train_text_encoder: Whether the text encoder trains beside the U-Net, wholly.
        unet_lora: Adapters that train in place of the U-Net.
        text_encoder_lora: The same of the text encoder.
        cache_latents: Whether the autoencoder sees each training image only once,
            before training, and its answers are kept on disk.
        autoencoder: From scratch, in phantom-SD's shape: folder of a run of task
            autoencoder_kl, or "" for one beside this run. None: from `pretrained`.
        autoencoder_config: Config file by which one beside this run is trained first.
    """

    train_text_encoder: bool = False
    unet_lora: AdapterConfig = NO_ADAPTERS
    text_encoder_lora: AdapterConfig = NO_ADAPTERS
    cache_latents: bool = False
    autoencoder: str | None = None
    autoencoder_config: str | None = None

    def __post_init__(self) -> None:
        """Refuse what does not go together.

        Raises:
            UserError: Starts with the name of the field.
        """
        if self.train_text_encoder and self.adapters:
            raise UserError(
                "train_text_encoder is True, but "
                f"{next(iter(self.adapters))}_lora.rank is there, with which only "
                "adapters train; expected False and text_encoder_lora.rank, or no rank"
            )
        if self.autoencoder is None:
            if self.autoencoder_config is not None:
                raise UserError(
                    "autoencoder_config is there, but autoencoder is None; give its "
                    'folder, or ""'
                )
        elif self.pretrained or self.vae or not self.train_text_encoder:
            raise UserError(
                "autoencoder is for training from scratch; expected pretrained='', "
                "vae=None and train_text_encoder=True beside it"
            )

    @property
    def adapters(self) -> dict[str, AdapterConfig]:
        """Those that train, by network."""
        all_of_them = {"unet": self.unet_lora, "text_encoder": self.text_encoder_lora}
        return {name: one for name, one in all_of_them.items() if one != NO_ADAPTERS}


def make_text_to_image_task(inputs: TaskInputs) -> BuiltTask:
    """Load or draw the networks, and divide their weights in trained and frozen.

    Raises:
        UserError: If weights are not found or do not fit.
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
    return dataclasses.replace(
        built,
        base=base,
        statistics=statistics,
        posterior=built.task.model.posterior if model.cache_latents else None,
    )


def _trains(model: TextToImageConfig, base: Params) -> Callable[[str], bool]:
    """Return a predicate of the paths that train; with adapters, few do."""
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
    """Raise UserError if the data have none to train by."""
    if "text" not in dataset_metadata(data).features:
        raise UserError(
            f"config.data.root={data.root}: no image has a caption, which task "
            "text_to_image trains by; medjax.prepare reads them from metadata.csv or "
            "metadata.jsonl beside the images (file_name, text)"
        )


def check_autoencoder(trained: TrainedAutoencoder) -> None:
    """Raise UserError unless a Stable Diffusion can have it."""
    if not isinstance(trained.module, AutoencoderKL) or trained.channels != 3:
        raise UserError(
            "config.model.autoencoder: expected a run of task autoencoder_kl with "
            "channels=3, as Stable Diffusion has it"
        )


def from_scratch(
    trained: TrainedAutoencoder, deviation: float, key: jax.Array
) -> StableDiffusion:
    """Return a Stable Diffusion that knows nothing but its autoencoder.

    Args:
        trained: A KL autoencoder of three channels.
        deviation: Of its latents.
        key: For all other weights.
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
        source: Where the base lies now; None for where it lay in training.
        autoencoder: Of a run from scratch, the one that it stood on.

    Raises:
        UserError: If the base is not found, or is another.
    """
    if autoencoder is None:
        sd = trained_base(checkpoint, source)
        return dataclasses.replace(sd, controlnet=None)
    check_fingerprint(autoencoder.weights, checkpoint.base, "the autoencoder")
    deviation = float(checkpoint.params["vae"]["deviation"])
    # All weights that are drawn here are replaced by trained ones.
    sd = from_scratch(autoencoder, deviation, jax.random.key(0))
    return with_trained(sd, checkpoint)


def text_to_image_first_stage(model: TextToImageConfig) -> FirstStage | None:
    """Return the autoencoder's run of training from scratch; None with a base."""
    if model.autoencoder is None:
        return None
    return FirstStage(model.autoencoder, model.autoencoder_config)


def check_text_to_image_first_stage(config: Any, untrained: TrainedAutoencoder) -> None:
    """Check that a run can stand on an autoencoder, before that trains for hours.

    Args:
        config: The run's.
        untrained: The autoencoder; its weights may be missing.

    Raises:
        UserError: If a Stable Diffusion cannot have it, or the data have no captions.
    """
    check_captions(config.data)
    check_autoencoder(untrained)


def text_to_image_origins(model: TextToImageConfig) -> Origins:
    """Return the weights that training started from; none if from scratch."""
    if model.autoencoder is not None:
        return Origins()
    return Origins(model.pretrained, model.vae)


def text_to_image_formats(model: TextToImageConfig) -> tuple[str, ...]:
    """Return the formats that hold the trained weights: adapters have their own."""
    return ("lora", "kohya", "pipeline") if model.adapters else ("pipeline",)
