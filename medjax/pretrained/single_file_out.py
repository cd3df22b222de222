"""Write a ControlNet to one file with the original names, for web UIs.

Such a file has no configuration. Readers infer it from the shapes, and assume the
values of the original code for everything else (see `ldm_config`). A network with other
values cannot be written.
"""

from pathlib import Path
from typing import Any

import numpy as np

from medjax.errors import UserError
from medjax.models.configs import per_level
from medjax.models.controlnet import ControlNet
from medjax.pretrained import diffusers_format, layout, ldm_config, ldm_names
from medjax.pretrained.networks import Network
from medjax.pretrained.safetensors_io import write_tensors
from medjax.pretrained.single_file import CONTROLNET

# Fields about how to compute, which the file does not describe.
_NOT_OF_THE_FILE = ("attention", "dtype", "remat", "name", "parent")
_NEEDS_ONE = (
    "a file with the original names has no configuration, and this ControlNet requires "
    "one"
)
_EXPECTED = "Use a ControlNet like Stable Diffusion's, or --format=controlnet"


def save_controlnet_file(
    network: Network, file: str | Path, dtype: np.dtype | None = None
) -> None:
    """Write the weights as ``control_model.*`` to a safetensors file.

    Args:
        network: A ControlNet.
        file: File to write; its folder must exist.
        dtype: Dtype of the stored weights. None keeps their dtype.

    Raises:
        UserError: If such a file cannot describe the network, or if `dtype` cannot hold
            its weights.
    """
    part = layout.CONTROLNET["controlnet"]
    module = ControlNet.from_config(network.config)
    table = ldm_names.controlnet_table(module)
    tensors = {
        ldm_names.renamed(name, table): tensor
        for name, tensor in diffusers_format.torch_tensors(network, part).items()
    }
    _check_described(module, tensors, str(file))
    named = {CONTROLNET + name: tensor for name, tensor in tensors.items()}
    write_tensors(Path(file), named, dtype)


def _check_described(module: ControlNet, tensors: dict[str, Any], where: str) -> None:
    """Check that the shapes alone determine the network."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    try:
        read = ControlNet.from_config(ldm_config.controlnet_config(shapes, where))
    except UserError as error:
        raise UserError(f"{_NEEDS_ONE}: {error}. {_EXPECTED}") from error
    levels = len(module.block_out_channels)
    wrong = [
        f"{name}={getattr(module, name)} (readers assume {getattr(read, name)})"
        for name in ControlNet.__dataclass_fields__
        if name not in _NOT_OF_THE_FILE
        and not _alike(getattr(module, name), getattr(read, name), levels)
    ]
    if wrong:
        raise UserError(f"{_NEEDS_ONE}: {', '.join(wrong)}. {_EXPECTED}")


def _alike(own: Any, read: Any, levels: int) -> bool:
    """Compare two values of a field; one of them may have one value per level."""
    if isinstance(own, tuple) != isinstance(read, tuple):
        return per_level(own, levels) == per_level(read, levels)
    return own == read
