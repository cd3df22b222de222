"""Write networks for ``modeling.py``: one file of weights, and a configuration.

The configuration says which class of ``modeling.py`` a network has, with its arguments.
Names of weights are those of diffusers where it has the network, so that its classes
load them, too. Convolutions that enlarge need a turn by 180 degrees: Flax slides their
kernel over the stretched input, torch applies the transpose of a convolution.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from medjax import storage, trees
from medjax.arrays import Params
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.models.conv_unet import ConvUNet
from medjax.models.unet_2d import UNet2D
from medjax.models.vq_vae import VQVAE
from medjax.pretrained import names
from medjax.pretrained.modeling_file import modeling_file
from medjax.pretrained.safetensors_io import write_tensors

WEIGHTS, CODE, CONFIG = "model.safetensors", "modeling.py", "config.json"
# Fields of modules that do not change the results.
_LEFT_OUT = (
    *("parent", "name", "dtype", "remat", "attention"),
    # Diffusion without captions normalises latents by their own mean and deviation.
    "scaling_factor",
)
_AVERAGES = {"mean": "running_mean", "var": "running_var"}
_LEVEL = re.compile(r"^(down|up)_(\d+)_")
# A VQ-VAE's middle is a list of lists of one block.
_MIDDLE = re.compile(r"^(mid_block_\d+)_0$")
_ENLARGES = re.compile(r"(^|/)up_\d+_conv/kernel$")


@dataclasses.dataclass(frozen=True, eq=False)
class TorchNetwork:
    """A network for ``modeling.py``.

    Attributes:
        config: Name of the class, under ``class``, and its arguments. An argument can
            be the configuration of another network.
        tensors: Weights in torch's layout, by name.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Shaped[np.ndarray, "..."]]

    def prefixed(self, prefix: str) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Return the weights with the name of an attribute before their names."""
        return {f"{prefix}.{name}": x for name, x in self.tensors.items()}


def unet_for_torch(
    module: UNet2D | ConvUNet, params: Params, batch_stats: Params
) -> TorchNetwork:
    """Return a U-Net for ``modeling.py``.

    Args:
        module: The network.
        params: Its weights.
        batch_stats: Its running averages; {} if it has none.
    """
    flat = trees.flatten(params) | trees.flatten(batch_stats)
    return TorchNetwork(_fields(module), _tensors(flat))


def autoencoder_for_torch(
    module: VQVAE | AutoencoderKL, weights: Params
) -> TorchNetwork:
    """Return an autoencoder for ``modeling.py``.

    Args:
        module: The network.
        weights: Parameters ``network``, and ``codebook`` (k d) of a VQ-VAE.
    """
    config, tensors = _fields(module), _tensors(trees.flatten(weights["network"]))
    if isinstance(module, VQVAE):
        codebook = np.asarray(weights["codebook"])
        config["codebook_size"] = len(codebook)
        tensors["codebook.weight"] = codebook
    return TorchNetwork(config, tensors)


def save_for_torch(network: TorchNetwork, folder: Path, dtype: np.dtype) -> None:
    """Write weights, configuration and ``modeling.py``.

    Args:
        network: The network.
        folder: An empty folder.
        dtype: Dtype of the stored weights.

    Raises:
        UserError: If `dtype` cannot hold the weights.
    """
    write_tensors(folder / WEIGHTS, network.tensors, dtype)
    storage.write_json(folder / CONFIG, network.config, sort_keys=True)
    storage.write_text(folder / CODE, modeling_file(_classes(network.config)))


def torch_name(path: str) -> str:
    """Return the name in ``modeling.py`` of a leaf.

    >>> torch_name("down_0_block_1/norm1/mean")
    'down.0.block.1.norm1.running_mean'
    """
    *parents, leaf = map(_renamed, path.split("/"))
    if leaf not in _AVERAGES:
        return names.torch_names("/".join([*parents, leaf]))[0]
    layer = names.torch_names("/".join([*parents, "bias"]))[0].removesuffix("bias")
    return layer + _AVERAGES[leaf]


def _renamed(part: str) -> str:
    return _MIDDLE.sub(r"\1", _LEVEL.sub(r"\1_\2/", part))


def _tensors(flat: Mapping[str, Any]) -> dict[str, Shaped[np.ndarray, "..."]]:
    tensors = {}
    for path, leaf in flat.items():
        array = np.asarray(leaf)
        if _ENLARGES.search(path):
            array = array[::-1, ::-1].transpose(2, 3, 0, 1)
        else:
            array = names.to_torch(path, array)
        tensors[torch_name(path)] = array
    return tensors


def _fields(module: Any) -> dict[str, Any]:
    fields = {
        field.name: vars(module)[field.name]
        for field in dataclasses.fields(module)
        if field.name not in _LEFT_OUT
    }
    return {"class": type(module).__name__, **fields}


def _classes(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of all classes in a configuration."""
    if "class" in config:
        yield config["class"]
    for value in config.values():
        if isinstance(value, Mapping):
            yield from _classes(value)
