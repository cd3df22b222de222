"""Load weights with diffusers' Flax pipelines, if the last versions with Flax exist.

Only the weight trees of `FlaxStableDiffusionPipeline` and `FlaxControlNetModel` are
used. Their networks are not, because ours have the same trees and compute the same
numbers as torch. The trees are bit-identical to those that `diffusers_format` reads
from safetensors.
"""

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medjax import trees
from medjax.arrays import Params
from medjax.errors import UserError
from medjax.pretrained import layout, names
from medjax.pretrained.flax_files import readable_folder, shapes_of
from medjax.pretrained.layout import Part

# The first versions without Flax.
TOO_NEW = {"diffusers": (0, 40), "transformers": (5, 0)}


def read_params(
    folder: Path,
    parts: Mapping[str, Part],
    trees_of: Mapping[str, Params],
    dtype: np.dtype,
) -> dict[str, Params]:
    """Read the weights of a Stable Diffusion or a ControlNet.

    Args:
        folder: Folder in the diffusers layout, with weights in any of its formats.
        parts: `layout.STABLE_DIFFUSION` or `layout.CONTROLNET`.
        trees_of: Tree of the shapes that each network's module expects.
        dtype: Dtype of the result; stored weights are cast to it.

    Raises:
        UserError: If the required versions are not installed, if diffusers cannot load
            the folder, or if weights do not fit.
    """
    check_installed()
    with readable_folder(folder, parts, trees_of) as (readable, from_torch), quiet():
        try:
            loaded = _load(readable, parts, from_torch)
        except Exception as error:
            # The libraries can raise any error, so report its message.
            raise UserError(
                f"diffusers' Flax classes cannot load {folder}: {error}. Try "
                "route='safetensors'"
            ) from error
    result = {}
    for name, params in loaded.items():
        where = f"{name} of {folder}"
        names.check_tree(shapes_of(trees_of[name]), shapes_of(params), where)
        flat = trees.flatten(params)
        result[name] = trees.unflatten(
            {path: np.asarray(flat.pop(path), dtype) for path in list(flat)}
        )
    return result


def check_installed() -> None:
    """Raise UserError unless diffusers and transformers still have Flax."""
    found = {name: _version(name) for name in TOO_NEW}
    if any(v is None or _numbers(v) >= TOO_NEW[name] for name, v in found.items()):
        have = " and ".join(f"{name} {v or 'missing'}" for name, v in found.items())
        raise UserError(
            "route='flax-pipelines' requires the last versions with Flax, diffusers "
            f"0.39.0 and transformers 4.57.6. Got {have}; "
            "pip install \"medjax[flax-pipelines]\", or use route='safetensors'"
        )


def _version(library: str) -> str | None:
    if importlib.util.find_spec(library) is None:
        return None
    return importlib.metadata.version(library)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split(".")[:2])


def _load(folder: Path, parts: Mapping[str, Part], from_torch: bool) -> dict[str, Any]:
    import diffusers

    if parts is layout.CONTROLNET:
        _, params = diffusers.FlaxControlNetModel.from_pretrained(
            str(folder), from_pt=from_torch
        )
        return {"controlnet": params}
    # medjax reads tokenizer and schedule; some schedulers have no Flax class.
    unused = ("tokenizer", "scheduler", "safety_checker", "feature_extractor")
    _, params = diffusers.FlaxStableDiffusionPipeline.from_pretrained(
        str(folder), from_pt=from_torch, **dict.fromkeys(unused)
    )
    return {name: params[name] for name in parts}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the import messages and progress bars of diffusers and transformers."""
    import diffusers.utils.logging
    import transformers.utils.logging

    modules = (diffusers.utils.logging, transformers.utils.logging)
    before = [(m.get_verbosity(), m.is_progress_bar_enabled()) for m in modules]
    for module in modules:
        module.set_verbosity_error()
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module, (level, bar) in zip(modules, before, strict=True):
            module.set_verbosity(level)
            if bar:
                module.enable_progress_bar()
