"""What a run trained, put back into its base: a Stable Diffusion with its ControlNet.

The base is read again at float32, for training may have kept it in less, and is held
to its fingerprint.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from medjax import trees
from medjax.arrays import Params
from medjax.diffusion.objective import DiffusionConfig
from medjax.diffusion.schedule import PredictionType, Schedule, make_schedule
from medjax.diffusion.schedulers import SAMPLERS, scheduler_config
from medjax.errors import UserError
from medjax.models.controlnet import ControlNet, config_from_unet
from medjax.pretrained import Network, StableDiffusion, load_controlnet_config
from medjax.tasks.controlnet import ControlNetConfig, base_weights, load_base

# The connections that `only_mid_control` leaves unused.
_UNUSED = "controlnet/controlnet_down_blocks_"


def trained_controlnet(
    model: ControlNetConfig,
    diffusion: DiffusionConfig,
    trained: Params,
    base: Mapping[str, str],
    source: str | None = None,
) -> StableDiffusion:
    """Return the base with what was trained in its place, all of it float32.

    With `only_mid_control`, the connections that were unused are zero, so that whoever
    uses all of them gets the same.

    Args:
        model: What the run was configured with.
        diffusion: The same.
        trained: ``controlnet``, and those weights of ``unet`` that trained.
        base: ``source`` and ``fingerprint`` of what the run stood on.
        source: Where that lies now; where it lay then if None.

    Raises:
        UserError: If the base, or the configuration of the ControlNet that the run
            started from, is not found, or the base is another.
    """
    sd = _read_base(base, source)
    flat = trees.flatten(trees.cast(trained, np.float32))
    if model.only_mid_control:
        unused = {path: leaf for path, leaf in flat.items() if path.startswith(_UNUSED)}
        flat |= {path: np.zeros_like(leaf) for path, leaf in unused.items()}
    networks = trees.unflatten(flat)
    unet = trees.flatten(sd.unet.params) | trees.flatten(networks.get("unet", {}))
    config = _controlnet_config(model, sd)
    return dataclasses.replace(
        sd,
        unet=dataclasses.replace(sd.unet, params=trees.unflatten(unet)),
        controlnet=Network(
            ControlNet.from_config(config), networks["controlnet"], config
        ),
        schedule=_schedule(sd.schedule, diffusion.prediction_type),
    )


def _schedule(base: Schedule, prediction_type: PredictionType | None) -> Schedule:
    """Return the base's schedule for a model that predicts this; None is the base's.

    Where the base's scheduler, diffusers' own too, takes no such model, it is DDIM's.
    """
    schedule = make_schedule(base.config, prediction_type)
    kind = schedule.config.get("_class_name")
    known = [one.predictions for one in SAMPLERS.values() if one.scheduler == kind]
    if not known or schedule.prediction_type in known[0]:
        return schedule
    # DDIM clips by default, and latents go beyond ±1.
    unclipped = make_schedule({"clip_sample": False, **schedule.config})
    return make_schedule(scheduler_config("ddim", unclipped))


def _read_base(base: Mapping[str, str], source: str | None) -> StableDiffusion:
    """Return the base, whose weights are those that the run stood on."""
    place = base["source"] if source is None else source
    try:
        sd = load_base(place)
    except UserError as error:
        raise UserError(
            f"the base that the run was trained on: {error}; --base=… says where it "
            "lies now"
        ) from error
    found = trees.fingerprint(base_weights(sd))
    if found != base["fingerprint"]:
        raise UserError(
            f"the base at '{place}' ({found}) is not the one that the run was trained "
            f"on, '{base['source']}' ({base['fingerprint']}); --base=… says where that "
            "one lies now"
        )
    return sd


def _controlnet_config(
    model: ControlNetConfig, sd: StableDiffusion
) -> Mapping[str, Any]:
    if model.controlnet is None:
        return config_from_unet(sd.unet.config, sd.vae.module.downsampling)
    try:
        return load_controlnet_config(model.controlnet)
    except UserError as error:
        raise UserError(
            "the ControlNet that the run started from has the configuration, and its "
            f"weights are not needed: {error}"
        ) from error
