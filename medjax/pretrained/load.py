"""Load and save a Stable Diffusion, a ControlNet or an autoencoder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import jax.numpy as jnp
import numpy as np

from medjax.blank import blank_tree, wants_blank
from medjax.diffusion.schedule import make_schedule
from medjax.errors import UserError, nearest
from medjax.pretrained import (
    diffusers_format,
    flax_pipelines,
    layout,
    published,
    single_file,
)
from medjax.pretrained.layout import Part
from medjax.pretrained.networks import Network, StableDiffusion
from medjax.pretrained.sources import (
    hub_id,
    local_file,
    local_folder,
    local_place,
    read_json,
)
from medjax.pretrained.tokenizer import load_tokenizer
from medjax.pretrained.unet_2d_format import check_captioned

T = TypeVar("T")

Route = Literal["auto", "flax-pipelines", "safetensors"]


def load_stable_diffusion(
    source: str | Path,
    dtype: Any = jnp.float32,
    route: str = "auto",
    controlnet: bool = False,
) -> StableDiffusion:
    """Load a Stable Diffusion 1.x or 2.x.

    Args:
        source: A folder in the diffusers layout, an id on the Hugging Face hub, or a
            file with the original names, which `single_file` describes.
        dtype: Floating dtype of the weights and of the computation.
        route: "safetensors", "flax-pipelines" (diffusers' Flax pipelines, which require
            the extra of that name), or "auto". "auto" reads safetensors if they exist,
            and uses the Flax pipelines if not. For a file, the route must not be
            "flax-pipelines".
        controlnet: Whether to load the ControlNet of a pipeline or file, if it has one.

    Raises:
        UserError: If the folder, id or file does not exist, if weights are missing,
            unexpected or of a wrong shape, if the folder contains another kind of
            model, or if the route is not available.
    """
    dtype = _floating(dtype)
    check_captioned(local_place(source))
    if (file := _single_file(source, route)) is not None:
        return single_file.load_stable_diffusion(file, dtype, controlnet)
    if known := _published(published.published_base, source, dtype):
        return known
    parts = layout.STABLE_DIFFUSION
    wanted = dict(parts)
    if controlnet:
        wanted["controlnet"] = layout.PIPELINE_CONTROLNET
    shared = [
        layout.MODEL_INDEX,
        f"{layout.TOKENIZER}/*",
        f"{layout.SCHEDULER}/{layout.SCHEDULER_CONFIG}",
    ]
    folder = _folder(source, wanted, shared, route)
    scheduler = read_json(folder / layout.SCHEDULER / layout.SCHEDULER_CONFIG)
    networks: Any = _networks(folder, parts, dtype, route)
    return StableDiffusion(
        **networks,
        tokenizer=load_tokenizer(folder / layout.TOKENIZER),
        schedule=make_schedule(scheduler),
        controlnet=_pipeline_controlnet(folder, dtype, route) if controlnet else None,
    )


def load_controlnet(
    source: str | Path, dtype: Any = jnp.float32, route: str = "auto"
) -> Network:
    """Load a ControlNet; arguments and errors as in `load_stable_diffusion`."""
    dtype = _floating(dtype)
    if (file := _single_file(source, route)) is not None:
        return single_file.load_controlnet(file, dtype)
    if known := _published(published.published_controlnet, source, dtype):
        return known
    folder = _folder(source, layout.CONTROLNET, [], route)
    return _networks(folder, layout.CONTROLNET, dtype, route)["controlnet"]


def load_autoencoder(source: str | Path, dtype: Any = jnp.float32) -> Network:
    """Load a KL autoencoder from a folder or hub id of it alone, or from a whole model.

    Args:
        source: A folder, hub id or file, as in `load_stable_diffusion`. A file must
            contain a whole model.
        dtype: Floating dtype of the weights and of the computation.

    Raises:
        UserError: As in `load_stable_diffusion`.
    """
    dtype = _floating(dtype)
    if (file := _single_file(source, "auto")) is not None:
        return single_file.load_stable_diffusion(file, dtype, False).vae
    if known := _published(published.published_autoencoder, source, dtype):
        return known
    inside = layout.STABLE_DIFFUSION["vae"]
    both = (layout.AUTOENCODER["vae"], inside)

    def lies_in(folder: Path) -> list[Part]:
        if wants_blank():
            return [p for p in both if (folder / p.inside(layout.CONFIG)).is_file()]
        return [part for part in both if part.weights_in(folder / part.folder)]

    configs = [part.inside(layout.CONFIG) for part in both]
    attempts = [
        [*configs, *(name for part in both for name in part.patterns(variant))]
        for variant in layout.VARIANTS
    ]
    folder = local_folder(source, attempts, lambda folder: bool(lies_in(folder)))
    part = (lies_in(folder) or [inside])[0]
    home = folder / part.folder
    return _networks(home, layout.AUTOENCODER, dtype, "safetensors")["vae"]


def _published(
    find: Callable[[str, np.dtype], T | None], source: str | Path, dtype: np.dtype
) -> T | None:
    """Return blank weights that need no download, where weights are to be blank."""
    name = hub_id(str(source)) if wants_blank() else None
    return find(name, dtype) if name else None


def load_controlnet_config(
    source: str | Path, route: str = "auto"
) -> Mapping[str, Any]:
    """Return a ControlNet's configuration without reading or downloading its weights.

    Raises:
        UserError: If the folder, id or file does not exist.
    """
    if (file := _single_file(source, route)) is not None:
        return single_file.controlnet_config(file)
    folder = local_folder(source, [[layout.CONFIG]], lambda _: True)
    return read_json(folder / layout.CONFIG)


def save_stable_diffusion(
    sd: StableDiffusion, folder: str | Path, dtype: Any = None
) -> None:
    """Write a folder that current PyTorch diffusers loads.

    Args:
        sd: The model, which is written with its ControlNet if it has one.
        folder: Folder to write to; created if missing.
        dtype: Dtype of the stored weights: float32, float16 or bfloat16. None keeps
            their dtype.

    Raises:
        UserError: If weights do not fit a configuration, or if `dtype` cannot hold
            them.
    """
    stored = None if dtype is None else _floating(dtype)
    diffusers_format.save_stable_diffusion(sd, Path(folder), stored)


def save_controlnet(network: Network, folder: str | Path, dtype: Any = None) -> None:
    """Write a ControlNet alone; arguments and errors as in `save_stable_diffusion`."""
    _save_alone(network, folder, layout.CONTROLNET["controlnet"], dtype)


def save_autoencoder(network: Network, folder: str | Path, dtype: Any = None) -> None:
    """Write a KL autoencoder alone; arguments and errors as in `save_controlnet`."""
    _save_alone(network, folder, layout.AUTOENCODER["vae"], dtype)


def _save_alone(network: Network, folder: str | Path, part: Part, dtype: Any) -> None:
    stored = None if dtype is None else _floating(dtype)
    diffusers_format.save_network(network, Path(folder), part, stored)


def _pipeline_controlnet(folder: Path, dtype: np.dtype, route: str) -> Network | None:
    """Return the ControlNet that a pipeline's index names, or None."""
    index = folder / layout.MODEL_INDEX
    named = read_json(index).get("controlnet") if index.is_file() else None
    kind = named[-1] if isinstance(named, list) and named else None
    if kind is None:
        return None
    part = layout.PIPELINE_CONTROLNET
    if kind != part.torch_class:
        raise UserError(f"{index}: controlnet is {kind}. Expected {part.torch_class}")
    home = folder / part.folder
    return _networks(home, layout.CONTROLNET, dtype, route)["controlnet"]


def _floating(dtype: Any) -> np.dtype:
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, np.floating):
        raise UserError(
            f"dtype={dtype}: expected a floating-point dtype such as bfloat16"
        )
    return dtype


def _single_file(source: str | Path, route: str) -> Path | None:
    """Check the route; return the file, or None for a folder or id."""
    if route not in get_args(Route):
        raise UserError(
            f"route='{route}': expected one of {', '.join(get_args(Route))}"
            + nearest(route, get_args(Route))
        )
    file = local_file(source)
    if file is not None and route == "flax-pipelines":
        raise UserError(
            f"'{source}' is a file, which the Flax pipelines cannot read. Use "
            "route='auto'"
        )
    return file


def _folder(
    source: str | Path, parts: Mapping[str, Part], shared: list[str], route: str
) -> Path:
    """Return the local folder; from the hub, download only what the route needs."""
    configs = [*shared, *(part.inside(layout.CONFIG) for part in parts.values())]
    if wants_blank():
        return local_folder(source, [configs], lambda _: True)
    safetensors = [
        [name for part in parts.values() for name in part.patterns(variant)]
        for variant in layout.VARIANTS
    ]
    flax = [
        [part.inside(part.flax_file) for part in parts.values()],
        [part.inside(part.torch_file) for part in parts.values()],
    ]
    attempts = {
        "safetensors": safetensors,
        "flax-pipelines": [*flax, *safetensors],
        "auto": [*safetensors, *flax],
    }[route]

    def enough(folder: Path) -> bool:
        # A network without a configuration file has no weights either.
        there = [
            p for p in parts.values() if (folder / p.inside(layout.CONFIG)).is_file()
        ]
        return all(_has_weights(folder, part, route) for part in there)

    return local_folder(source, [configs + weights for weights in attempts], enough)


def _has_weights(folder: Path, part: Part, route: str) -> bool:
    home = folder / part.folder
    flax = any((home / name).is_file() for name in (part.flax_file, part.torch_file))
    return part.weights_in(home) is not None or (flax and route != "safetensors")


def _networks(
    folder: Path, parts: Mapping[str, Part], dtype: np.dtype, route: str
) -> dict[str, Network]:
    homes = {name: folder / part.folder for name, part in parts.items()}
    configs = {name: read_json(home / layout.CONFIG) for name, home in homes.items()}
    modules = {
        name: part.module.from_config(configs[name], dtype=dtype)
        for name, part in parts.items()
    }
    shapes = {name: module.param_shapes() for name, module in modules.items()}
    if wants_blank():
        params = {name: blank_tree(shapes[name], dtype) for name in parts}
        return {n: Network(modules[n], params[n], configs[n]) for n in parts}
    if route == "auto":
        have = [part.weights_in(homes[name]) for name, part in parts.items()]
        route = "flax-pipelines" if None in have else "safetensors"
    if route == "safetensors":
        params = {
            name: diffusers_format.read_params(homes[name], part, shapes[name], dtype)
            for name, part in parts.items()
        }
    else:
        params = flax_pipelines.read_params(folder, parts, shapes, dtype)
    return {name: Network(modules[name], params[name], configs[name]) for name in parts}
