"""Load and verify a run's base model, and put trained weights in place.

The base model is a Stable Diffusion. A run that is opened again reads it in float32,
because training may have used a lower precision. Its fingerprint must be the one that
the run stored.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from medjax import trees
from medjax.arrays import Params
from medjax.diffusion.schedule import PredictionType, Schedule, make_schedule
from medjax.diffusion.schedulers import SAMPLERS, scheduler_config
from medjax.errors import UserError
from medjax.pretrained import (
    Network,
    StableDiffusion,
    load_autoencoder,
    load_stable_diffusion,
)
from medjax.pretrained.tiny import tiny_stable_diffusion
from medjax.tasks.adapter_export import low_rank_changes
from medjax.tasks.adapters import merge_adapters
from medjax.tasks.interface import Checkpoint


def load_base(
    source: str, vae: str | None = None, route: str = "auto"
) -> StableDiffusion:
    """Load the base model of a run.

    Args:
        source: Folder, hub id or file of the base model; "" is the tiny one.
        vae: Folder, hub id or file of an autoencoder that replaces the base model's.
            None means no replacement.
        route: How weights are read: auto, flax-pipelines or safetensors.
    """
    sd = (
        load_stable_diffusion(source, route=route)
        if source
        else tiny_stable_diffusion()
    )
    return dataclasses.replace(sd, vae=load_autoencoder(vae)) if vae else sd


def base_weights(sd: StableDiffusion) -> Params:
    """Return the weights of a base model by network. Runs store their fingerprint."""
    parts = {"unet": sd.unet, "vae": sd.vae, "text_encoder": sd.text_encoder}
    return {name: part.params for name, part in parts.items()}


def check_fingerprint(params: Params, base: Mapping[str, str], place: str) -> None:
    """Check that weights are those that a run was trained on.

    Args:
        params: The weights.
        base: ``source`` and ``fingerprint`` that the run stored.
        place: Location of the weights, for the error message.

    Raises:
        UserError: If the fingerprints differ.
    """
    found = trees.fingerprint_like(base["fingerprint"], params)
    if found != base["fingerprint"]:
        raise UserError(
            f"the base model at '{place}' ({found}) is not the one that the run was "
            f"trained on, '{base['source']}' ({base['fingerprint']}). Set --base to "
            "the current location of that one"
        )


def trained_base(checkpoint: Checkpoint, source: str | None) -> StableDiffusion:
    """Return a run's base model with its trained weights in place, float32.

    Args:
        checkpoint: The run's checkpoint.
        source: Current location of the base model. None means the location in training.

    Raises:
        UserError: If the base model is missing or has changed.
    """
    return with_trained(_read_base(checkpoint, source), checkpoint)


def with_trained(sd: StableDiffusion, checkpoint: Checkpoint) -> StableDiffusion:
    """Return a Stable Diffusion with trained weights in place and adapters merged."""
    networks = trees.cast(checkpoint.params, np.float32)
    adapters = checkpoint.model.adapters

    def replaced(name: str, network: Network) -> Network:
        own = trees.flatten(network.params) | trees.flatten(networks.get(name, {}))
        params = trees.unflatten(own)
        if name in adapters:
            params = merge_adapters(params, adapters[name])
        return dataclasses.replace(network, params=params)

    before: dict[str, Any] = base_weights(sd)
    return dataclasses.replace(
        sd,
        unet=replaced("unet", sd.unet),
        text_encoder=replaced("text_encoder", sd.text_encoder),
        adapters={
            name: low_rank_changes(before[name], networks[name], config)
            for name, config in adapters.items()
        },
        schedule=trained_schedule(sd.schedule, checkpoint.diffusion.prediction_type),
    )


def trained_schedule(
    base: Schedule, prediction_type: PredictionType | None
) -> Schedule:
    """Return the schedule of a base model for another prediction type.

    If the scheduler does not support that type, here and in diffusers, the result is
    DDIM's schedule.

    Args:
        base: Schedule of the base model.
        prediction_type: Prediction type of the trained model. None means the
            prediction type of the base model.
    """
    schedule = make_schedule(base.config, prediction_type)
    kind = schedule.config.get("_class_name")
    known = [one.predictions for one in SAMPLERS.values() if one.scheduler == kind]
    if not known or schedule.prediction_type in known[0]:
        return schedule
    # DDIM clips to ±1 by default, but latents can be larger.
    unclipped = make_schedule({"clip_sample": False, **schedule.config})
    return make_schedule(scheduler_config("ddim", unclipped))


def _read_base(checkpoint: Checkpoint, source: str | None) -> StableDiffusion:
    """Load the base model of a run, and check the fingerprint of its weights."""
    base = checkpoint.base
    place = base["source"] if source is None else source
    try:
        sd = load_base(place, checkpoint.model.vae)
    except UserError as error:
        raise UserError(
            f"cannot load the base model that the run was trained on: {error}. If it "
            "was moved, set --base to its new location"
        ) from error
    check_fingerprint(base_weights(sd), base, place)
    return sd
