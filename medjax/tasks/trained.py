"""What a run trained, put where it is used: into its base, or beside its statistics.

A base is read again at float32, for training may have kept it in less, and is held to
its fingerprint.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from medjax import trees
from medjax.arrays import Params
from medjax.data.config import DataConfig
from medjax.diffusion.schedule import PredictionType, Schedule, make_schedule
from medjax.diffusion.schedulers import SAMPLERS, scheduler_config
from medjax.errors import UserError
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.models.controlnet import ControlNet, config_from_unet
from medjax.models.vq_vae import VQVAE
from medjax.pretrained import (
    Network,
    StableDiffusion,
    load_autoencoder,
    load_controlnet_config,
)
from medjax.tasks.adapter_export import low_rank_changes
from medjax.tasks.adapters import merge_adapters
from medjax.tasks.autoencoder_kl import autoencoder_kl_module
from medjax.tasks.autoencoder_loss import autoencoder_weights
from medjax.tasks.captioned import base_weights, load_base
from medjax.tasks.controlnet import ControlNetConfig
from medjax.tasks.image_diffusion import ImageDiffusion
from medjax.tasks.latent_scaling import TrainedAutoencoder
from medjax.tasks.text_to_image import from_scratch
from medjax.tasks.unconditional import unconditional_task
from medjax.tasks.vq_vae import VQVAEConfig, vq_vae_module

_CONTROL = "controlnet/"
# The connections that `only_mid_control` leaves unused.
_UNUSED = "controlnet/controlnet_down_blocks_"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint of a run holds, as NumPy arrays.

    Attributes:
        model: The section of the config.
        data: The same.
        diffusion: The same; None for tasks without one.
        params: What trained, and the statistics that were kept beside it.
        base: ``source`` and ``fingerprint`` of what the run stood on.
    """

    model: Any
    data: DataConfig
    diffusion: Any
    params: Params
    base: Mapping[str, str]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedUnconditional:
    """What an unconditional run trained, ready to draw images.

    Attributes:
        task: Its functions.
        nets: Weights by network, and the statistics; float32.
    """

    task: ImageDiffusion
    nets: Params


def trained_controlnet(
    checkpoint: Checkpoint, source: str | None = None
) -> StableDiffusion:
    """Return the base with what was trained in its place, all of it float32.

    With `only_mid_control`, the connections that were unused are zero, so that whoever
    uses all of them gets the same.

    Args:
        checkpoint: What was read.
        source: Where the base lies now; where it lay then if None.

    Raises:
        UserError: If the base, or the configuration of the ControlNet that the run
            started from, is not found, or the base is another.
    """
    model: ControlNetConfig = checkpoint.model
    sd, flat = _in_base(checkpoint, source)
    weights = {path: leaf for path, leaf in flat.items() if path.startswith(_CONTROL)}
    if model.only_mid_control:
        unused = {path: leaf for path, leaf in flat.items() if path.startswith(_UNUSED)}
        weights |= {path: np.zeros_like(leaf) for path, leaf in unused.items()}
    config = _controlnet_config(model, sd)
    params = trees.unflatten(weights)["controlnet"]
    network = Network(ControlNet.from_config(config), params, config)
    return dataclasses.replace(sd, controlnet=network)


def trained_text_to_image(
    checkpoint: Checkpoint, stands_on: str | TrainedAutoencoder | None = None
) -> StableDiffusion:
    """Return the base with what was trained in its place, all of it float32.

    Args:
        checkpoint: What was read.
        stands_on: Of a run from scratch, its autoencoder; of another, where its base
            lies now, or None for where it lay then.

    Raises:
        UserError: If the base is not found, or is another.
    """
    if not isinstance(stands_on, TrainedAutoencoder):
        return dataclasses.replace(_in_base(checkpoint, stands_on)[0], controlnet=None)
    _check_fingerprint(stands_on.weights, checkpoint.base, "the autoencoder")
    deviation = float(checkpoint.params["vae"]["deviation"])
    # All of what is drawn here was trained.
    sd = from_scratch(stands_on, deviation, jax.random.key(0))
    return _replaced(sd, checkpoint)


def trained_autoencoder(
    checkpoint: Checkpoint, source: str | None = None
) -> TrainedAutoencoder:
    """Return an autoencoder with its weights, float32.

    Args:
        checkpoint: What was read.
        source: Where what it began with lies now, if its decoder alone trained.

    Raises:
        UserError: If that is not found, or is another.
    """
    model = checkpoint.model
    weights = trees.cast(checkpoint.params, "float32")
    module: VQVAE | AutoencoderKL
    if isinstance(model, VQVAEConfig):
        module = vq_vae_module(dataclasses.replace(model, dtype="float32"))
    elif model.pretrained is None:
        module = autoencoder_kl_module(dataclasses.replace(model, dtype="float32"))
    else:
        place = checkpoint.base["source"] if source is None else source
        network = load_autoencoder(place)
        _check_fingerprint(network.params, checkpoint.base, place)
        module = network.module
        own = trees.flatten({"network": network.params})
        weights = trees.unflatten(own | trees.flatten(weights))
    weights = autoencoder_weights(weights)
    return TrainedAutoencoder(module, weights, trees.fingerprint(weights))


def trained_unconditional(
    checkpoint: Checkpoint, autoencoder: TrainedAutoencoder | None = None
) -> TrainedUnconditional:
    """Return what draws images, with its weights, float32.

    Args:
        checkpoint: What was read.
        autoencoder: What the run stood on, if it did.

    Raises:
        UserError: If the autoencoder is another.
    """
    if autoencoder is not None:
        _check_fingerprint(autoencoder.weights, checkpoint.base, "the autoencoder")
    model = dataclasses.replace(checkpoint.model, dtype="float32")
    task = unconditional_task(model, checkpoint.data, checkpoint.diffusion, autoencoder)
    nets = dict(checkpoint.params)
    if autoencoder is not None:
        nets["autoencoder"] = autoencoder.weights
    return TrainedUnconditional(task, trees.cast(nets, np.float32))


def _in_base(
    checkpoint: Checkpoint, source: str | None
) -> tuple[StableDiffusion, dict[str, Any]]:
    """Return the base with its trained weights, and all that trained, by path."""
    sd = _replaced(_read_base(checkpoint, source), checkpoint)
    return sd, trees.flatten(trees.cast(checkpoint.params, np.float32))


def _replaced(sd: StableDiffusion, checkpoint: Checkpoint) -> StableDiffusion:
    """Return a Stable Diffusion with what was trained in its place, adapters merged."""
    networks = trees.cast(checkpoint.params, np.float32)
    adapters = checkpoint.model.adapters

    def replaced(name: str, network: Network) -> Network:
        own = trees.flatten(network.params) | trees.flatten(networks.get(name, {}))
        params = trees.unflatten(own)
        if name in adapters:
            params = merge_adapters(params, adapters[name])
        return dataclasses.replace(network, params=params)

    return dataclasses.replace(
        sd,
        unet=replaced("unet", sd.unet),
        text_encoder=replaced("text_encoder", sd.text_encoder),
        adapters={
            name: low_rank_changes(getattr(sd, name).params, networks[name], config)
            for name, config in adapters.items()
        },
        schedule=_schedule(sd.schedule, checkpoint.diffusion.prediction_type),
    )


def _check_fingerprint(params: Params, base: Mapping[str, str], place: str) -> None:
    found = trees.fingerprint_like(base["fingerprint"], params)
    if found != base["fingerprint"]:
        raise UserError(
            f"the base at '{place}' ({found}) is not the one that the run was trained "
            f"on, '{base['source']}' ({base['fingerprint']}); --base=… says where that "
            "one lies now"
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


def _read_base(checkpoint: Checkpoint, source: str | None) -> StableDiffusion:
    """Return the base, whose weights are those that the run stood on."""
    base = checkpoint.base
    place = base["source"] if source is None else source
    try:
        sd = load_base(place, checkpoint.model.vae)
    except UserError as error:
        raise UserError(
            f"the base that the run was trained on: {error}; --base=… says where it "
            "lies now"
        ) from error
    _check_fingerprint(base_weights(sd), base, place)
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
