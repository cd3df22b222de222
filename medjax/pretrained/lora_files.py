"""Write adapters as safetensors for diffusers and web UIs, without torch or peft.

    W' = W + α/r B A                                                               (1)

with B (out, r) and A (r, in), or the kernels of convolutions. For example, the layer
``mid_block/attentions_0/proj_in`` of the U-Net becomes

* for diffusers, ``unet.mid_block.attentions.0.proj_in.lora_A.weight`` and
  ``….lora_B.weight``. B includes the factor α/r, because peft assumes α = r if a file
  does not give α;
* for web UIs, with the names of kohya-ss, ``….lora_down.weight``, ``….lora_up.weight``
  and ``….alpha`` of ``lora_unet_mid_block_attentions_0_proj_in``.

Source: diffusers' ``loaders/lora_base.py`` (``LORA_ADAPTER_METADATA_KEY``) and peft's
``LoraConfig``; kohya-ss/sd-scripts' ``networks/lora.py``.
"""

import collections
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from medjax.pretrained import names
from medjax.pretrained.networks import Adapters, LowRank
from medjax.pretrained.safetensors_io import write_tensors

_METADATA = "lora_adapter_metadata"
_KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te"}
# transformers 5 omits this prefix.
_TEXT_PREFIX = "text_model."

Tensors = dict[str, Shaped[np.ndarray, "..."]]


def save_diffusers_lora(
    adapters: Mapping[str, Adapters], file: Path, dtype: np.dtype | None = None
) -> None:
    """Write a file for diffusers' ``load_lora_weights``.

    Args:
        adapters: Adapters by name of the network.
        file: File to write; its folder must exist.
        dtype: Dtype of the stored weights. None keeps their dtype.

    Raises:
        UserError: If `dtype` cannot hold a weight.
    """
    tensors: Tensors = {}
    about: dict[str, Any] = {}
    for network, own in adapters.items():
        for path, layer in own.layers.items():
            name = f"{network}.{_torch_name(path)}"
            down, up = _torch_weights(layer)
            up = up * np.asarray(layer.alpha / layer.rank, up.dtype)
            tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        config = _peft_config(own)
        about |= {f"{network}.{key}": value for key, value in config.items()}
    write_tensors(file, tensors, dtype, {_METADATA: json.dumps(about, sort_keys=True)})


def save_kohya_lora(
    adapters: Mapping[str, Adapters], file: Path, dtype: np.dtype | None = None
) -> None:
    """Write a file for web UIs; arguments and errors as in `save_diffusers_lora`."""
    tensors: Tensors = {}
    for network, own in adapters.items():
        for path, layer in own.layers.items():
            name = f"{_KOHYA[network]}_{_torch_name(path).replace('.', '_')}"
            down, up = _torch_weights(layer)
            tensors[f"{name}.lora_down.weight"] = down
            tensors[f"{name}.lora_up.weight"] = up
            tensors[f"{name}.alpha"] = np.array(layer.alpha, np.float32)
    write_tensors(file, tensors, dtype)


def _torch_name(path: str) -> str:
    return names.torch_names(f"{path}/kernel")[0].removesuffix(".weight")


def _torch_weights(
    layer: LowRank,
) -> tuple[Shaped[np.ndarray, "r ..."], Shaped[np.ndarray, "o ..."]]:
    """Return A and B in torch's layout."""
    up = layer.b if layer.a.ndim == 2 else layer.b[None, None]
    return names.to_torch("a/kernel", layer.a), names.to_torch("b/kernel", up)


def _peft_config(adapters: Adapters) -> dict[str, Any]:
    """Return the fields of peft's ``LoraConfig``.

    ``r`` is the most common rank, and the patterns list the layers with another rank.
    Layers are named by their unique suffixes.
    """
    layers = {
        _torch_name(path).removeprefix(_TEXT_PREFIX): layer
        for path, layer in adapters.layers.items()
    }
    common = collections.Counter(one.rank for one in layers.values())
    (rank, _), *_ = common.most_common(1)
    others = {n: layer.rank for n, layer in layers.items() if layer.rank != rank}
    return {
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(layers),
        "rank_pattern": others,
        "alpha_pattern": others,
    }
