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
from medjax.evaluation.chest import findings
from medjax.evaluation.frechet import frechet_distance
from medjax.evaluation.similarity import likeness
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.pretrained import StableDiffusion
from medjax.pretrained.efficientnet import check_efficientnet, efficientnet_features
from medjax.pretrained.phantom import drawn_stable_diffusion, scaled
from medjax.tasks.adapters import (
    NO_ADAPTERS,
    AdapterConfig,
    saved_paths,
)
from medjax.tasks.assembly import Assembly, Given, Shown
from medjax.tasks.autoencoder_kl import kl_network
from medjax.tasks.captioned import (
    BaseConfig,
    CaptionedTask,
    assemble_captioned,
    base_weights,
    load_base,
)
from medjax.tasks.eval_config import SamplingEvalConfig
from medjax.tasks.latent_scaling import TrainedAutoencoder, latent_deviation


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


@dataclasses.dataclass(frozen=True)
class TextToImageEvalConfig(SamplingEvalConfig):
    """Validation, and what a page of samples is measured by beside PSNR, SSIM and MSE.

    Attributes:
        frechet_distance: Whether by the Fréchet distance to the real images, too. It
            needs ``medjax[evaluation]``, and `samples` of hundreds to say anything.
        chest_findings: Whether by the findings that `medjax.evaluation.chest` sees in
            computed chests, too.
    """

    frechet_distance: bool = False
    chest_findings: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be measured here.

        Raises:
            UserError: Starts with the name of the field.
        """
        super().__post_init__()
        if self.frechet_distance:
            try:
                check_efficientnet()
            except UserError as error:
                raise UserError(f"frechet_distance is True, but {error}") from error


def measure_likeness(
    shown: Shown, data: Any, config: TextToImageEvalConfig
) -> dict[str, float]:
    """Return how like the real images those drawn for their captions are.

    Two chests of one caption differ in much that it does not tell; so the numbers
    compare checkpoints, and say little alone.
    """
    del data
    real, drawn = shown.columns["target"], shown.columns["generated"]
    each = likeness(real, drawn, shown.batch.get("loss_mask"))
    measured = {name: float(values.mean()) for name, values in each.items()}
    if config.frechet_distance:
        features = efficientnet_features(real), efficientnet_features(drawn)
        measured["frechet_distance"] = frechet_distance(*features)
    if config.chest_findings:
        measured |= findings(drawn, [record["text"] for record in shown.records])
    return measured


def make_text_to_image_task(given: Given) -> Assembly:
    """Load or draw the networks, and divide their weights in trained and frozen.

    Raises:
        UserError: If weights are not found or do not fit.
    """
    model: TextToImageConfig = given.model
    check_captions(given.data)
    statistics: Params = {}
    if given.autoencoder is None:
        sd = load_base(model.pretrained, model.vae, model.route)
    else:
        check_autoencoder(given.autoencoder)
        deviation = latent_deviation(
            given.autoencoder, given.source, given.data, given.key
        )
        statistics = {"vae": {"deviation": deviation}}
        sd = from_scratch(given.autoencoder, float(deviation), given.key)
    assembly = assemble_captioned(
        dataclasses.replace(sd, controlnet=None),
        given,
        _trains(model, base_weights(sd)),
    )
    base = assembly.base
    if given.autoencoder is not None:
        base = given.autoencoder.identity(model.autoencoder or "")
    assert isinstance(assembly.task, CaptionedTask)
    return dataclasses.replace(
        assembly,
        base=base,
        statistics=statistics,
        posterior=assembly.task.model.posterior if model.cache_latents else None,
    )


def _trains(model: TextToImageConfig, base: Params) -> Callable[[str], bool]:
    """Return which of the base's weights train: with adapters, what is named."""
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
    return drawn_stable_diffusion(scaled(vae, deviation), key)
