"""Networks from and to safetensors in the diffusers layout; no torch, no diffusers.

What is written, current PyTorch diffusers and transformers load, with nothing missing
and nothing left over.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from medjax import storage, trees
from medjax.arrays import Params
from medjax.errors import UserError
from medjax.pretrained import layout, names
from medjax.pretrained.layout import Part
from medjax.pretrained.networks import Network, StableDiffusion
from medjax.pretrained.safetensors_io import (
    StoredTensor,
    read_tensors,
    stored_tensors,
    write_tensors,
)
from medjax.pretrained.tokenizer import save_tokenizer

logger = logging.getLogger(__name__)

# The release whose files ours are like; diffusers reads it to mend older ones.
DIFFUSERS_VERSION = "0.39.0"
# By whether there is a ControlNet.
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionControlNetPipeline")
# Of a schedule that came without the name of a diffusers class.
DEFAULT_SCHEDULER = "DDIMScheduler"


def read_params(home: Path, part: Part, shapes: Params, dtype: np.dtype) -> Params:
    """Read one network's weights from safetensors.

    Args:
        home: The folder that it lies in.
        part: Which network it is.
        shapes: The tree that its module expects.
        dtype: Of the result, whatever is stored.

    Raises:
        UserError: If there is no such file, or weights do not fit `shapes`.
    """
    file = part.weights_in(home)
    if file is None:
        raise UserError(f"{home / part.stem}.safetensors is missing")
    return read_weights(stored_tensors(file), shapes, dtype, str(file))


def read_weights(
    stored: Mapping[str, StoredTensor],
    shapes: Params,
    dtype: np.dtype,
    where: str,
    naming: Callable[[str], tuple[str, ...]] = names.torch_names,
) -> Params:
    """Read one network's weights, each of which is asked for and none left over.

    Args:
        stored: Every tensor that there is of it, by name.
        shapes: The tree that its module expects.
        dtype: Of the result, whatever is stored.
        where: What the weights are and where they lie, for the error.
        naming: From a path to the names that its weight may have.

    Raises:
        UserError: If weights do not fit `shapes`.
    """
    expected = {path: leaf.shape for path, leaf in trees.flatten(shapes).items()}
    got = {name: tensor.shape for name, tensor in stored.items()}
    found = names.match(expected, got, where, naming)
    paths = {name: path for path, name in found.items()}
    flat = {}
    for name, array in read_tensors({name: stored[name] for name in paths}):
        path = paths[name]
        leaf = names.from_torch(path, expected[path], array)
        # One copy at most, contiguous; the stored layout is freed at once.
        flat[path] = leaf.astype(dtype, order="C", copy=False)
    logger.info("read %d weights from %s", len(flat), where)
    return trees.unflatten(dict(sorted(flat.items())))


def save_network(
    network: Network, folder: Path, part: Part, dtype: np.dtype | None = None
) -> None:
    """Write ``config.json`` and the weights of one network, in torch's names.

    Args:
        network: With its weights.
        folder: Of the whole that the network is a part of.
        part: Which network it is.
        dtype: What weights are stored as; None for what they are.

    Raises:
        UserError: If the weights are not those that the configuration describes, or
            `dtype` cannot hold them.
    """
    target = folder / part.folder
    tensors = torch_tensors(network, part)
    stored = dtype or next(iter(tensors.values())).dtype
    write_tensors(target / f"{part.stem}.safetensors", tensors, dtype)
    config = _torch_config(network, part, stored)
    storage.write_json(target / layout.CONFIG, config, sort_keys=True)


def torch_tensors(network: Network, part: Part) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Return a network's weights by torch's names and in torch's layout: views.

    Raises:
        UserError: If the weights are not those that the configuration describes.
    """
    arrays = {p: np.asarray(leaf) for p, leaf in trees.flatten(network.params).items()}
    expected = trees.flatten(part.module.from_config(network.config).param_shapes())
    names.check_tree(
        {path: leaf.shape for path, leaf in expected.items()},
        {path: leaf.shape for path, leaf in arrays.items()},
        f"{part.torch_class} to save",
    )
    return {names.torch_names(p)[0]: names.to_torch(p, a) for p, a in arrays.items()}


def save_stable_diffusion(
    sd: StableDiffusion, folder: Path, dtype: np.dtype | None = None
) -> None:
    """Write a whole Stable Diffusion, with its ControlNet where it has one.

    ``model_index.json`` comes last. Arguments and errors are `save_network`'s.
    """
    parts = dict(layout.STABLE_DIFFUSION)
    if sd.controlnet is not None:
        parts["controlnet"] = layout.PIPELINE_CONTROLNET
    for name, part in parts.items():
        save_network(getattr(sd, name), folder, part, dtype)
    save_tokenizer(sd.tokenizer, folder / layout.TOKENIZER)
    scheduler = {
        "_class_name": DEFAULT_SCHEDULER,
        "_diffusers_version": DIFFUSERS_VERSION,
        **sd.schedule.config,
    }
    file = folder / layout.SCHEDULER / layout.SCHEDULER_CONFIG
    storage.write_json(file, scheduler, sort_keys=True)
    index: dict[str, Any] = {
        "_class_name": PIPELINES["controlnet" in parts],
        "_diffusers_version": DIFFUSERS_VERSION,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    for name, part in parts.items():
        index[name] = [part.library, part.torch_class]
    storage.write_json(folder / layout.MODEL_INDEX, index, sort_keys=True)


def _torch_config(network: Network, part: Part, stored: np.dtype) -> dict[str, Any]:
    """Return the network's configuration, as its torch class writes it."""
    config = dict(network.config)
    if part.library == "diffusers":
        config["_class_name"] = part.torch_class
        config.setdefault("_diffusers_version", DIFFUSERS_VERSION)
        return config
    config["architectures"] = [part.torch_class]
    config.setdefault("model_type", "clip_text_model")
    # transformers 5 loads in the dtype that stands here, older ones say torch_dtype.
    for key in ("dtype", "torch_dtype"):
        if key in config:
            config[key] = str(stored)
    return config
