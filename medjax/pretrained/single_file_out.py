"""A ControlNet to one file with the original names, which web UIs read.

Such a file has no configuration; readers take what the shapes do not show to be as in
the original code (see `ldm_config`), so a network that is otherwise is refused.
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

# Fields that say how to compute, not what.
_NOT_OF_THE_FILE = ("dtype", "remat", "name", "parent")
_NEEDS_ONE = (
    "a file with the original names has no configuration, and this ControlNet needs one"
)
_EXPECTED = "expected one of Stable Diffusion's kind, or --format=controlnet"


def save_controlnet_file(
    network: Network, file: str | Path, dtype: np.dtype | None = None
) -> None:
    """Write the weights as ``control_model.*`` to a safetensors file.

    Args:
        network: A ControlNet.
        file: To write to; its folder exists.
        dtype: What weights are stored as; None for what they are.

    Raises:
        UserError: If the network is none that such a file can describe, or `dtype`
            cannot hold its weights.
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
    """Check that the shapes alone give the network back."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    try:
        read = ControlNet.from_config(ldm_config.controlnet_config(shapes, where))
    except UserError as error:
        raise UserError(f"{_NEEDS_ONE}: {error}; {_EXPECTED}") from error
    levels = len(module.block_out_channels)
    wrong = [
        f"{name}={getattr(module, name)} (readers take {getattr(read, name)})"
        for name in ControlNet.__dataclass_fields__
        if name not in _NOT_OF_THE_FILE
        and not _alike(getattr(module, name), getattr(read, name), levels)
    ]
    if wrong:
        raise UserError(f"{_NEEDS_ONE}: {', '.join(wrong)}; {_EXPECTED}")


def _alike(own: Any, read: Any, levels: int) -> bool:
    """Compare two values of a field, one of which may be given a level."""
    if isinstance(own, tuple) != isinstance(read, tuple):
        return per_level(own, levels) == per_level(read, levels)
    return own == read
