"""ControlNet: teach a frozen Stable Diffusion to follow a picture.

Trees: ``controlnet`` trains; ``unet``, ``vae`` and ``text_encoder`` are frozen, except
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
from medjax.tasks.interface import BuiltTask, Checkpoint, SamplePage, TaskInputs
from medjax.tasks.latent_scaling import TrainedAutoencoder
from medjax.tasks.row import Origins

logger = logging.getLogger(__name__)

# What `sd_locked=False` trains: the half of the U-Net that ControlNet does not copy.
DECODER = ("up_blocks_", "conv_norm_out", "conv_out")
_CONTROL = "controlnet/"
# The connections that `only_mid_control` leaves unused.
_UNUSED = "controlnet/controlnet_down_blocks_"


@dataclasses.dataclass(frozen=True)
class ControlNetConfig(BaseConfig):
    """Which networks, and which part of them trains.

    Attributes:
        controlnet: ControlNet to start from: a folder, hub id or file, which may be a
            whole checkpoint. None: a copy of the U-Net's encoder.
        sd_locked: Whether the U-Net's decoder stays as it is.
        train_unet: Whether the whole U-Net trains too (for a base that is not trained).
        only_mid_control: Whether the ControlNet reaches the U-Net's middle only.
    """

    controlnet: str | None = None
    sd_locked: bool = True
    train_unet: bool = False
    only_mid_control: bool = False


@dataclasses.dataclass(frozen=True)
class ControlNetEvalConfig(SamplingEvalConfig):
    """Validation of a ControlNet.

    Attributes:
        edge_tolerance_px: How far an edge of a generated image may lie from its
            condition's and still count as following it.
    """

    edge_tolerance_px: int = 1

    def __post_init__(self) -> None:
        """Refuse counts that cannot be counted."""
        super().__post_init__()
        check_least(self, edge_tolerance_px=0)


def make_controlnet_task(inputs: TaskInputs) -> BuiltTask:
    """Load the networks, and divide their weights in trained and frozen.

    Raises:
        UserError: If weights are not found or do not fit.
    """
    model: ControlNetConfig = inputs.model
    if "text" not in dataset_metadata(inputs.data).features:
        logger.warning(
            "%s has no captions: the ControlNet is trained for the empty one",
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
    """Return the base with its trained weights in place, float32.

    With `only_mid_control`, the connections that were unused are zero, because other
    programs use all of them.

    Args:
        checkpoint: The run's checkpoint.
        source: Where the base lies now; None for where it lay in training.
        autoencoder: None: the run stands on no other.

    Raises:
        UserError: If the base, or the configuration of the ControlNet that the run
            started from, is not found, or the base is another.
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
    """Return the weights that training started from."""
    return Origins(model.pretrained, model.vae, model.controlnet)


def controlnet_formats(model: ControlNetConfig) -> tuple[str, ...]:
    """Return the formats that hold a ControlNet."""
    del model
    return ("pipeline", "controlnet", "single_file")


def _trained_config(model: ControlNetConfig, sd: StableDiffusion) -> Mapping[str, Any]:
    """Return the configuration of a ControlNet that a run trained."""
    if model.controlnet is None:
        return config_from_unet(sd.unet.config, sd.vae.module.downsampling)
    try:
        return load_controlnet_config(model.controlnet)
    except UserError as error:
        raise UserError(
            "the ControlNet that the run started from has the configuration, and its "
            f"weights are not needed: {error}"
        ) from error


def _controlnet(
    model: ControlNetConfig, sd: StableDiffusion, key: Array
) -> tuple[Mapping[str, Any], Params]:
    """Return the configuration and weights that the ControlNet starts from."""
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
    """Return edge adherence and its chance level, where conditions are edges."""
    if any(record.get("conditioning_image") is not None for record in page.records):
        return {}
    mask = page.batch.get("loss_mask")
    return edge_adherence(
        page.columns["generated"],
        page.batch["conditioning_image"],
        [_edges_of(data, number) for number in range(len(page.records))],
        config.edge_tolerance_px,
        None if mask is None else mask[..., 0] > 0,
    )


def _edges_of(data: ControlDataConfig, number: int) -> Canny:
    """Return the Canny that an example's condition was made with."""
    return lambda image: edges(image, data, (data.seed, number))
