"""Task controlnet: teach a frozen Stable Diffusion to follow a conditioning image.

Trees: ``controlnet`` trains. ``unet``, ``vae`` and ``text_encoder`` are frozen, except
for the part of the U-Net that `ControlNetConfig` unlocks. `captioned` has the loss.

Source: Zhang et al., 2023, section 3.2 (sd_locked, only_mid_control).
"""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from medjax import trees
from medjax.arrays import Array, Params
from medjax.data.config import ControlDataConfig
from medjax.data.examples import edges
from medjax.data.pipeline import dataset_metadata
from medjax.errors import UserError, check_least
from medjax.evaluation.adherence import Canny, edge_adherence
from medjax.models.controlnet import ControlNet, config_from_unet
from medjax.pretrained import (
    Network,
    StableDiffusion,
    load_controlnet,
    load_controlnet_config,
)
from medjax.tasks.base_model import load_base, trained_base
from medjax.tasks.captioned import BaseConfig, assemble_captioned
from medjax.tasks.eval_config import SamplingEvalConfig
from medjax.tasks.interface import (
    GENERATED,
    BuiltTask,
    Checkpoint,
    SamplePage,
    TaskInputs,
)
from medjax.tasks.latent_scaling import TrainedAutoencoder
from medjax.tasks.row import Origins

logger = logging.getLogger(__name__)

# Half of the U-Net that `sd_locked=False` trains. The ControlNet copies the other half.
DECODER = ("up_blocks_", "conv_norm_out", "conv_out")
_CONTROL = "controlnet/"
# Connections that are unused with `only_mid_control`.
_UNUSED = "controlnet/controlnet_down_blocks_"


@dataclasses.dataclass(frozen=True)
class ControlNetConfig(BaseConfig):
    """The networks of task controlnet, and which of their weights train.

    Attributes:
        controlnet: ControlNet to start from: a folder, hub id or file, which may be a
            whole checkpoint. None means a copy of the U-Net's encoder.
        sd_locked: Whether the decoder of the U-Net is frozen. False trains it too.
        train_unet: Whether the whole U-Net trains too, for a base model with random
            weights.
        only_mid_control: Whether the ControlNet only affects the middle of the U-Net,
            and not its skip connections.
    """

    controlnet: str | None = None
    sd_locked: bool = True
    train_unet: bool = False
    only_mid_control: bool = False


@dataclasses.dataclass(frozen=True)
class ControlNetEvalConfig(SamplingEvalConfig):
    """Settings of validation for task controlnet.

    Attributes:
        edge_tolerance_px: Largest distance in pixels, at least 0, at which an edge of a
            generated image still matches an edge of its conditioning image.
    """

    edge_tolerance_px: int = 1

    def __post_init__(self) -> None:
        """Raise UserError if a value is outside its range."""
        super().__post_init__()
        check_least(self, edge_tolerance_px=0)


def make_controlnet_task(inputs: TaskInputs) -> BuiltTask:
    """Load the networks, and divide their weights into trained and frozen ones.

    Raises:
        UserError: If weights are missing or do not fit.
    """
    model: ControlNetConfig = inputs.model
    if "text" not in dataset_metadata(inputs.data).features:
        logger.warning(
            "%s has no captions: the ControlNet is trained with the empty caption",
            inputs.data.root,
        )
    sd = load_base(model.pretrained, model.vae, model.route)
    config, weights = _controlnet(model, sd, inputs.key)
    controlnet = Network(ControlNet.from_config(config), weights, config)
    return assemble_captioned(
        dataclasses.replace(sd, controlnet=controlnet),
        inputs,
        lambda path: _trains(path, model),
        only_mid_control=model.only_mid_control,
    )


def trained_controlnet(
    checkpoint: Checkpoint,
    source: str | None = None,
    autoencoder: TrainedAutoencoder | None = None,
) -> StableDiffusion:
    """Return the base model with the trained weights in place, float32.

    With `only_mid_control`, the unused connections are set to zero, because other
    programs use all connections.

    Args:
        checkpoint: The run's checkpoint.
        source: Current location of the base model. None means the location in training.
        autoencoder: Unused, because the task needs no trained autoencoder.

    Raises:
        UserError: If the base model, or the config of the ControlNet that the run
            started from, is missing, or if the base model has changed.
    """
    del autoencoder
    model: ControlNetConfig = checkpoint.model
    sd = trained_base(checkpoint, source)
    flat = trees.flatten(trees.cast(checkpoint.params, np.float32))
    weights = {path: leaf for path, leaf in flat.items() if path.startswith(_CONTROL)}
    if model.only_mid_control:
        unused = {path: leaf for path, leaf in flat.items() if path.startswith(_UNUSED)}
        weights |= {path: np.zeros_like(leaf) for path, leaf in unused.items()}
    config = _trained_config(model, sd)
    params = trees.unflatten(weights)["controlnet"]
    network = Network(ControlNet.from_config(config), params, config)
    return dataclasses.replace(sd, controlnet=network)


def controlnet_origins(model: ControlNetConfig) -> Origins:
    """Return the pretrained weights that training started from."""
    return Origins(model.pretrained, model.vae, model.controlnet)


def controlnet_formats(model: ControlNetConfig, data: Any) -> tuple[str, ...]:
    """Return the export formats for a ControlNet, the default one first."""
    del model, data
    return ("pipeline", "controlnet", "single_file")


def _trained_config(model: ControlNetConfig, sd: StableDiffusion) -> Mapping[str, Any]:
    """Return the config of the ControlNet that a run trained."""
    if model.controlnet is None:
        return config_from_unet(sd.unet.config, sd.vae.module.downsampling)
    try:
        return load_controlnet_config(model.controlnet)
    except UserError as error:
        raise UserError(
            "cannot read the config of the ControlNet that the run started from (its "
            f"weights are not needed): {error}"
        ) from error


def _controlnet(
    model: ControlNetConfig, sd: StableDiffusion, key: Array
) -> tuple[Mapping[str, Any], Params]:
    """Return the config and the weights that the ControlNet starts from."""
    if model.controlnet is not None:
        network = load_controlnet(model.controlnet, route=model.route)
        network.module.check_fits(sd.unet.module, sd.vae.module.downsampling)
        return network.config, network.params
    config = config_from_unet(sd.unet.config, sd.vae.module.downsampling)
    return config, ControlNet.from_config(config).init_from_unet(sd.unet.params, key)


def _trains(path: str, model: ControlNetConfig) -> bool:
    network, _, rest = path.partition("/")
    if network == "unet":
        return model.train_unet or (not model.sd_locked and rest.startswith(DECODER))
    return network == "controlnet"


def measure_adherence(
    page: SamplePage, data: ControlDataConfig, config: ControlNetEvalConfig
) -> dict[str, float]:
    """Return edge adherence and its chance level if the conditions are edges.

    Nothing is measured if the data store other conditioning images.
    """
    if any(record.get("conditioning_image") is not None for record in page.records):
        return {}
    mask = page.batch.get("loss_mask")
    return edge_adherence(
        page.columns[GENERATED],
        page.batch["conditioning_image"],
        [_edges_of(data, number) for number in range(len(page.records))],
        config.edge_tolerance_px,
        None if mask is None else mask[..., 0] > 0,
    )


def _edges_of(data: ControlDataConfig, number: int) -> Canny:
    """Return the Canny function that made an example's conditioning image."""
    return lambda image: edges(image, data, (data.seed, number))
