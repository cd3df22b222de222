"""Load Stable Diffusion 1.x or 2.x, or a ControlNet, from one file of original names.

| names                                          |                              |
|------------------------------------------------|------------------------------|
| ``model.diffusion_model.*``                    | the U-Net                    |
| ``first_stage_model.*``                        | the autoencoder              |
| ``cond_stage_model.transformer.*``             | the text encoder of SD1.x    |
| ``cond_stage_model.model.*``                   | the text encoder of SD2.x    |
| ``control_model.*``, or all without a prefix   | a ControlNet                 |
| the averages, the schedule's buffers, …        | skipped without reading      |

Any other name is an error. Configurations are inferred from the shapes. Such a file
contains neither the tokenizer nor the prediction type. The tokenizer comes from a
folder ``tokenizer`` beside the file or, if that is missing, from the hub. The U-Net is
assumed to predict ε. For SD2.x models of 768², set
``--config.diffusion.prediction_type=v_prediction``.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medjax.diffusion.schedule import make_schedule
from medjax.errors import UserError, nearest
from medjax.pretrained import (
    diffusers_format,
    layout,
    ldm_config,
    ldm_names,
    names,
    safetensors_io,
    torch_files,
)
from medjax.pretrained.networks import Network, StableDiffusion
from medjax.pretrained.safetensors_io import StoredTensor
from medjax.pretrained.tiny import SCHEDULER_CONFIG
from medjax.pretrained.tokenizer import find_tokenizer, load_tokenizer

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = "cond_stage_model.transformer."
OPEN_CLIP = "cond_stage_model.model."
CONTROLNET = "control_model."
# A weight that only ControlNets have, without its prefix.
HINT = "input_hint_block.0.weight"
# OpenCLIP pads captions with this token, whose id is 0.
OPEN_CLIP_PADDING = "!"

_SKIPPED = re.compile(
    r"model_ema\..*|first_stage_model\.(loss|model_ema)\..*|.*\.position_ids"
    r"|betas|logvar|lvlb_weights|scale_factor|posterior_\w+|\w*alphas_cumprod\w*"
    r"|cond_stage_model\..*(attn_mask|logit_scale|text_projection)(\.weight)?"
    r"|epoch|global_step|optimizer\w*\..*|lr_schedulers?\..*|loops\..*|callbacks\..*"
)
_FUSED = re.compile(r"(.*\.attn\.)in_proj_(weight|bias)")


@dataclasses.dataclass(frozen=True)
class _Tensors:
    """The tensors of one network, named without `prefix`, and their file."""

    prefix: str
    stored: Mapping[str, StoredTensor]
    file: Path

    @property
    def where(self) -> str:
        return f"{self.file} ({self.prefix}*)"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.stored.items()}


def load_stable_diffusion(
    file: Path, dtype: np.dtype, controlnet: bool = False
) -> StableDiffusion:
    """Load a whole checkpoint, which may also contain a ControlNet.

    Args:
        file: The checkpoint.
        dtype: Dtype of the weights and of the computation.
        controlnet: Whether to load the checkpoint's ControlNet, if it has one.

    Raises:
        UserError: If the file is damaged or of another kind, if weights are missing,
            unknown or of a wrong shape, or if its tokenizer is missing.
    """
    stored = _stored(file)
    scale = _scaling_factor(stored)
    _check_known(stored, file)
    unet, vae = _within(UNET, stored, file), _within(VAE, stored, file)
    text, text_config, text_table = _text_encoder(stored, file)
    # First read what may be missing, then gigabytes.
    tokenizer = _tokenizer(file, text.prefix == OPEN_CLIP, text_config["vocab_size"])
    vae_config = ldm_config.vae_config(vae.shapes, vae.where, scale)
    unet_config = ldm_config.unet_config(unet.shapes, unet.where)
    parts = layout.STABLE_DIFFUSION
    return StableDiffusion(
        unet=_network(parts["unet"], unet, unet_config, ldm_names.unet_table, dtype),
        vae=_network(parts["vae"], vae, vae_config, ldm_names.vae_table, dtype),
        text_encoder=_network(
            parts["text_encoder"], text, text_config, lambda _: text_table, dtype
        ),
        tokenizer=tokenizer,
        schedule=make_schedule(SCHEDULER_CONFIG),
        controlnet=load_controlnet(file, dtype)
        if controlnet and CONTROLNET + HINT in stored
        else None,
    )


def load_controlnet(file: Path, dtype: np.dtype) -> Network:
    """Load the ControlNet of a whole checkpoint, or of a file with only a ControlNet.

    Raises:
        UserError: As in `load_stable_diffusion`.
    """
    tensors = _controlnet_tensors(file)
    config = ldm_config.controlnet_config(tensors.shapes, tensors.where)
    part = layout.CONTROLNET["controlnet"]
    return _network(part, tensors, config, ldm_names.controlnet_table, dtype)


def controlnet_config(file: Path) -> dict[str, Any]:
    """Return the configuration of a file's ControlNet without reading its weights.

    Raises:
        UserError: As in `load_stable_diffusion`.
    """
    tensors = _controlnet_tensors(file)
    return ldm_config.controlnet_config(tensors.shapes, tensors.where)


def _controlnet_tensors(file: Path) -> _Tensors:
    stored = _stored(file)
    prefix = "" if HINT in stored else CONTROLNET
    if prefix:
        _check_known(stored, file)
    return _within(prefix, stored, file)


def _stored(file: Path) -> dict[str, StoredTensor]:
    """Return the position of every tensor in the file, by name."""
    if file.suffix == ".safetensors":
        return safetensors_io.stored_tensors(file)
    return torch_files.stored_tensors(file)


def _check_known(stored: Mapping[str, StoredTensor], file: Path) -> None:
    prefixes = (UNET, VAE, CLIP, OPEN_CLIP, CONTROLNET)
    unknown = [
        name
        for name in stored
        if not name.startswith(prefixes) and not _SKIPPED.fullmatch(name)
    ]
    if not unknown:
        return
    first, _, _ = unknown[0].partition(".")
    close = nearest(first, [prefix.partition(".")[0] for prefix in prefixes])
    raise UserError(
        f"{file}: {len(unknown)} unknown weights, e.g. '{unknown[0]}'. Expected the "
        f"original names of Stable Diffusion 1.x or 2.x, {', '.join(prefixes)}{close}. "
        "To load weights with diffusers' names, give their folder"
    )


def _within(prefix: str, stored: Mapping[str, StoredTensor], file: Path) -> _Tensors:
    """Return the tensors whose names have the prefix."""
    inside = {
        name.removeprefix(prefix): tensor
        for name, tensor in stored.items()
        if name.startswith(prefix) and not _SKIPPED.fullmatch(name)
    }
    if not inside:
        raise UserError(
            f"{file} contains no {prefix}*. Expected the original names of "
            + ("a ControlNet" if prefix == CONTROLNET else "a whole Stable Diffusion")
        )
    return _Tensors(prefix, inside, file)


def _text_encoder(
    stored: Mapping[str, StoredTensor], file: Path
) -> tuple[_Tensors, dict[str, Any], ldm_names.Table]:
    """Return a text encoder's tensors, configuration and table of names."""
    if not any(name.startswith(OPEN_CLIP) for name in stored):
        text = _within(CLIP, stored, file)
        return text, ldm_config.clip_config(text.shapes, text.where), {}
    text = _within(OPEN_CLIP, stored, file)
    config = ldm_config.open_clip_config(text.shapes, text.where)
    layers = config["num_hidden_layers"]
    used = _unfused(text.stored, f"transformer.resblocks.{layers}.")
    return (
        dataclasses.replace(text, stored=used),
        config,
        ldm_names.open_clip_table(layers),
    )


def _unfused(
    stored: Mapping[str, StoredTensor], unused: str
) -> dict[str, StoredTensor]:
    """Return the tensors with separate projections to queries, keys and values.

    Args:
        stored: Tensors of an OpenCLIP text encoder.
        unused: Prefix of names to omit.
    """
    apart = {}
    for name, tensor in stored.items():
        match = _FUSED.fullmatch(name)
        if name.startswith(unused):
            continue
        if match is None or not tensor.shape or tensor.strides is not None:
            apart[name] = tensor
            continue
        shape = (tensor.shape[0] // 3, *tensor.shape[1:])
        part = dataclasses.replace(tensor, shape=shape)
        for i, kind in enumerate("qkv"):
            start = tensor.start + i * part.size
            name = f"{match[1]}{kind}_proj.{match[2]}"
            apart[name] = dataclasses.replace(part, start=start)
    return apart


def _network(
    part: layout.Part,
    tensors: _Tensors,
    config: dict[str, Any],
    table_of: Callable[[Any], ldm_names.Table],
    dtype: np.dtype,
) -> Network:
    """Read a network whose configuration is known.

    Args:
        part: The network's description.
        tensors: Tensors of the network.
        config: Configuration of the network.
        table_of: Function from the network's module to the table of its names.
        dtype: Dtype of the result.
    """
    module = part.module.from_config(config, dtype=dtype)
    table = table_of(module)

    def naming(path: str) -> tuple[str, ...]:
        return tuple(ldm_names.renamed(name, table) for name in names.torch_names(path))

    params = diffusers_format.read_weights(
        tensors.stored, module.param_shapes(), dtype, tensors.where, naming
    )
    return Network(module, params, config)


def _scaling_factor(stored: Mapping[str, StoredTensor]) -> float | None:
    """Return the scaling factor of latents, if it was measured in training."""
    found = {name: stored[name] for name in ("scale_factor",) if name in stored}
    for name, value in safetensors_io.read_tensors(found):
        if value.size != 1 or not np.isfinite(value).all():
            raise UserError(
                f"{stored[name].file}: {name} is {value}. Expected one finite number"
            )
        return float(value.item())
    return None


def _tokenizer(file: Path, open_clip: bool, vocab_size: int) -> Any:
    beside = file.parent / layout.TOKENIZER
    if beside.is_dir():
        tokenizer = load_tokenizer(beside)
    else:
        try:
            tokenizer = find_tokenizer()
        except UserError as error:
            raise UserError(
                f"{file} contains no tokenizer. Copy Stable Diffusion's folder "
                f"'{layout.TOKENIZER}' beside it, or allow a download: {error}"
            ) from error
        if open_clip:
            tokenizer.pad_token = OPEN_CLIP_PADDING
    if len(tokenizer) > vocab_size:
        raise UserError(
            f"the tokenizer for {file} has {len(tokenizer)} tokens, but its text "
            f"encoder has {vocab_size}. Copy the tokenizer of this model to {beside}"
        )
    return tokenizer
