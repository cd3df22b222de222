"""Read and write networks as safetensors in the diffusers layout, without torch.

Current PyTorch diffusers and transformers load the written files, with no missing and
no unexpected weights. This module requires neither.
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

# The diffusers release that our files follow; diffusers uses it to convert older files.
DIFFUSERS_VERSION = "0.39.0"
# Indexed by whether the model has a ControlNet.
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionControlNetPipeline")
# Class of a schedule that does not name a diffusers class.
DEFAULT_SCHEDULER = "DDIMScheduler"


def read_params(home: Path, part: Part, shapes: Params, dtype: np.dtype) -> Params:
    """Read one network's weights from safetensors.

    Args:
        home: Folder of the network.
        part: The network's description.
        shapes: Tree of the shapes that its module expects.
        dtype: Dtype of the result; stored weights are cast to it.

    Raises:
        UserError: If the file is missing, or if weights do not fit `shapes`.
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
    """Read one network's weights and check that none is missing or unexpected.

    Args:
        stored: All stored tensors of the network, by name.
        shapes: Tree of the shapes that its module expects.
        dtype: Dtype of the result; stored weights are cast to it.
        where: Name and location of the weights, for error messages.
        naming: Function from a path to the possible names of its weight.

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
        # At most one contiguous copy; the stored layout is freed at once.
        flat[path] = leaf.astype(dtype, order="C", copy=False)
    logger.info("read %d weights from %s", len(flat), where)
    return trees.unflatten(dict(sorted(flat.items())))


def save_network(
    network: Network, folder: Path, part: Part, dtype: np.dtype | None = None
) -> None:
    """Write ``config.json`` and the weights of one network with PyTorch's names.

    Args:
        network: The network and its weights.
        folder: Folder of the whole model that contains the network.
        part: The network's description.
        dtype: Dtype of the stored weights. None keeps their dtype.

    Raises:
        UserError: If the weights do not fit the configuration, or if `dtype` cannot
            hold them.
    """
    target = folder / part.folder
    tensors = torch_tensors(network, part)
    stored = dtype or next(iter(tensors.values())).dtype
    write_tensors(target / f"{part.stem}.safetensors", tensors, dtype)
    config = _torch_config(network, part, stored)
    storage.write_json(target / layout.CONFIG, config, sort_keys=True)


def torch_tensors(network: Network, part: Part) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Return views of a network's weights in PyTorch's layout, by PyTorch's names.

    Raises:
        UserError: If the weights do not fit the configuration.
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
    """Write a whole Stable Diffusion, with its ControlNet if it has one.

    ``model_index.json`` is written last. Arguments and errors are the same
    as for `save_network`.
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
    """Return the network's configuration as its torch class would write it."""
    config = dict(network.config)
    if part.library == "diffusers":
        config["_class_name"] = part.torch_class
        config.setdefault("_diffusers_version", DIFFUSERS_VERSION)
        return config
    config["architectures"] = [part.torch_class]
    config.setdefault("model_type", "clip_text_model")
    # transformers 5 loads in this dtype; older versions call the key torch_dtype.
    for key in ("dtype", "torch_dtype"):
        if key in config:
            config[key] = str(stored)
    return config
