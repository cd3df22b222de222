"""Stable Diffusion as a run's base: loaded, verified, trained weights in place.

A run that is opened again reads its base at float32, since training may have kept it in
less. The base must have the fingerprint that the run was trained on.
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
    """Load the Stable Diffusion that a run stands on; "" is the tiny one.

    Args:
        source: Folder, hub id or file of the base.
        vae: Folder, hub id or file of an autoencoder to replace its own; None keeps it.
        route: How weights are read: auto, flax-pipelines or safetensors.
    """
    sd = (
        load_stable_diffusion(source, route=route)
        if source
        else tiny_stable_diffusion()
    )
    return dataclasses.replace(sd, vae=load_autoencoder(vae)) if vae else sd


def base_weights(sd: StableDiffusion) -> Params:
    """Return the weights by network; a run knows its base by their fingerprint."""
    parts = {"unet": sd.unet, "vae": sd.vae, "text_encoder": sd.text_encoder}
    return {name: part.params for name, part in parts.items()}


def check_fingerprint(params: Params, base: Mapping[str, str], place: str) -> None:
    """Check that weights are those that a run stood on.

    Args:
        params: The weights.
        base: ``source`` and ``fingerprint`` that the run stored.
        place: Where the weights were read from, for the error.

    Raises:
        UserError: If they are others.
    """
    found = trees.fingerprint_like(base["fingerprint"], params)
    if found != base["fingerprint"]:
        raise UserError(
            f"the base at '{place}' ({found}) is not the one that the run was trained "
            f"on, '{base['source']}' ({base['fingerprint']}); --base=… says where that "
            "one lies now"
        )


def trained_base(checkpoint: Checkpoint, source: str | None) -> StableDiffusion:
    """Return a run's base with its trained weights in place, float32.

    Args:
        checkpoint: The run's checkpoint.
        source: Where the base lies now; None for where it lay in training.

    Raises:
        UserError: If the base is not found, or is another.
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
    """Return the base's schedule for a model of another prediction type.

    DDIM's takes its place if the base's scheduler, diffusers' own too, does not support
    the type.

    Args:
        base: The base's schedule.
        prediction_type: What the model predicts; None for the same as the base.
    """
    schedule = make_schedule(base.config, prediction_type)
    kind = schedule.config.get("_class_name")
    known = [one.predictions for one in SAMPLERS.values() if one.scheduler == kind]
    if not known or schedule.prediction_type in known[0]:
        return schedule
    # DDIM clips by default, and latents exceed ±1.
    unclipped = make_schedule({"clip_sample": False, **schedule.config})
    return make_schedule(scheduler_config("ddim", unclipped))


def _read_base(checkpoint: Checkpoint, source: str | None) -> StableDiffusion:
    """Load the base, and check that its weights are those that the run stood on."""
    base = checkpoint.base
    place = base["source"] if source is None else source
    try:
        sd = load_base(place, checkpoint.model.vae)
    except UserError as error:
        raise UserError(
            f"the base that the run was trained on: {error}; --base=… says where it "
            "lies now"
        ) from error
    check_fingerprint(base_weights(sd), base, place)
    return sd
