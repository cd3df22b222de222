"""ControlNet: teach a frozen Stable Diffusion to follow a picture.

Trees: ``controlnet`` trains; ``unet``, ``vae`` and ``text_encoder`` are frozen, except
for the part of the U-Net that `ControlNetConfig` unlocks. `captioned` has the loss.

Source: Zhang et al., 2023, section 3.2 (sd_locked, only_mid_control).
"""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from medjax.arrays import Array, Params
from medjax.data.config import ControlDataConfig
from medjax.data.examples import edges
from medjax.data.pipeline import dataset_metadata
from medjax.errors import check_least
from medjax.evaluation.adherence import Canny, edge_adherence
from medjax.models.controlnet import ControlNet, config_from_unet
from medjax.pretrained import Network, StableDiffusion, load_controlnet
from medjax.tasks.assembly import Assembly, Given, Shown
from medjax.tasks.captioned import BaseConfig, assemble_captioned, load_base
from medjax.tasks.eval_config import SamplingEvalConfig

logger = logging.getLogger(__name__)

# What `sd_locked=False` trains: the half of the U-Net that ControlNet does not copy.
DECODER = ("up_blocks_", "conv_norm_out", "conv_out")


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


def make_controlnet_task(given: Given) -> Assembly:
    """Load the networks, and divide their weights in trained and frozen.

    Raises:
        UserError: If weights are not found or do not fit.
    """
    model: ControlNetConfig = given.model
    if "text" not in dataset_metadata(given.data).features:
        logger.warning(
            "%s has no captions: the ControlNet is trained for the empty one",
            given.data.root,
        )
    sd = load_base(model.pretrained, model.vae, model.route)
    config, weights = _controlnet(model, sd, given.key)
    controlnet = Network(ControlNet.from_config(config), weights, config)
    return assemble_captioned(
        dataclasses.replace(sd, controlnet=controlnet),
        given,
        lambda path: _trains(path, model),
        only_mid_control=model.only_mid_control,
    )


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
    shown: Shown, data: ControlDataConfig, config: ControlNetEvalConfig
) -> dict[str, float]:
    """Return edge adherence and its chance level, where conditions are edges."""
    if any(record.get("conditioning_image") is not None for record in shown.records):
        return {}
    mask = shown.batch.get("loss_mask")
    return edge_adherence(
        shown.columns["generated"],
        shown.batch["conditioning_image"],
        [_edges_of(data, number) for number in range(len(shown.records))],
        config.edge_tolerance_px,
        None if mask is None else mask[..., 0] > 0,
    )


def _edges_of(data: ControlDataConfig, number: int) -> Canny:
    """Return the Canny that an example's condition was made with."""
    return lambda image: edges(image, data, (data.seed, number))
