"""Adapters of a network: which layers get one, how it begins, what it comes to.

    W' = W + s A B,   s = α / r                                                    (1)

with W, A and B as kernels, (in, out), (in, r) and (r, out). B begins at zero, so a
network begins as it was; A is uniform within ±1/√fan-in, Kaiming's with a slope of √5.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, eq. 3;
peft's ``reset_lora_parameters`` for A.
"""

import dataclasses
import fnmatch
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Key

from medjax import trees
from medjax.arrays import Array, Params
from medjax.errors import UserError, check_least, nearest
from medjax.models import lora
from medjax.tasks.random_draws import split

NETWORKS = ("unet", "text_encoder")
"""What can have adapters; of each, ``config.model.NETWORK_lora`` says which."""

# Every projection of attention: what LoRA was made for.
_TARGETS = {
    "unet": ("to_q", "to_k", "to_v", "to_out_0"),
    "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj"),
}


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """The adapters of one network; names are peft's, but for paths, which are ours.

    A layer is named by the end of its path, in whole parts, perhaps with wildcards:
    ``to_q``, ``attn2/to_*``, ``mid_block/attentions_0/proj_in``.

    Attributes:
        rank: r of eq. 1; None for no adapters, and then all of this is as it stands.
        alpha: α of eq. 1; None for r.
        dropout: Fraction of an adapter's inputs that are zero in training, in [0, 1).
        targets: Layers that get one, dense or convolutional; None for all projections
            of attention.
        modules_to_save: Layers that train wholly beside them, or one array of a layer:
            ``conv_in``, ``conv_in/kernel``.
    """

    rank: int | None = None
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be, and settings of adapters that there are not.

        Raises:
            UserError: Starts with the name of the field.
        """
        check_least(self, rank=1)
        if self.alpha is not None and not self.alpha > 0:
            raise UserError(
                f"alpha is {self.alpha}, expected a number above 0, or None"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}, expected a fraction in [0, 1)")
        if self.rank is not None:
            return
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                raise UserError(
                    f"{field.name} is {value}, but rank is None, for no adapters; "
                    f"expected {field.default}, or a rank"
                )

    @property
    def scale(self) -> float:
        """S of eq. 1."""
        assert self.rank is not None
        return 1.0 if self.alpha is None else self.alpha / self.rank


NO_ADAPTERS = AdapterConfig()


def draw_adapters(
    network: str, params: Params, config: AdapterConfig, key: Key[Array, ""]
) -> Params:
    """Return new adapters for a network, float32.

    Args:
        network: Its name, for errors.
        params: Its own weights; shapes are enough.
        config: Which layers get one.
        key: For A.

    Raises:
        UserError: If a target is no layer of it, or trains wholly too.
    """
    seed = np.asarray(jax.random.key_data(key)).tolist()
    assert config.rank is not None
    drawn = {}
    for layer, shape in _target_shapes(network, params, config).items():
        path = zlib.crc32(f"{network}/{layer}".encode())
        random = np.random.default_rng([*seed, path])
        bound = np.prod(shape[:-1]) ** -0.5
        a = random.uniform(-bound, bound, (*shape[:-1], config.rank))
        drawn[f"{layer}/{lora.A}"] = a.astype(np.float32)
        drawn[f"{layer}/{lora.B}"] = np.zeros((config.rank, shape[-1]), np.float32)
    return trees.unflatten(drawn)


def saved_paths(network: str, params: Params, config: AdapterConfig) -> set[str]:
    """Return the paths of what trains wholly beside a network's adapters.

    Raises:
        UserError: If a name is of nothing that the network has.
    """
    paths = [*trees.flatten(params)]
    chosen = set()
    for name in config.modules_to_save:
        found = {path for path in paths if any(_ends(p, name) for p in _parts(path))}
        if not found:
            known = {part for path in paths for part in path.split("/")}
            raise _unknown(network, "modules_to_save", name, known)
        chosen |= found
    return chosen


def with_adapters(
    params: Params,
    config: AdapterConfig,
    keys: Key[Array, " b"] | None = None,
) -> Params:
    """Return a network's weights with its adapters as its layers read them.

    Args:
        params: Its own weights and its adapters'.
        config: Their scale and dropout.
        keys: One an example, for dropout; None for none.
    """
    flat = trees.flatten(params)
    layers = _adapted_layers(flat)
    ready: dict[str, Any] = {f"{layer}/{lora.SCALE}": config.scale for layer in layers}
    if keys is not None and config.dropout:
        for layer, own in zip(layers, split(keys, len(layers)), strict=True):
            ready[f"{layer}/{lora.KEYS}"] = own
            ready[f"{layer}/{lora.RATE}"] = config.dropout
    return trees.unflatten(flat | ready)


def merge_adapters(params: Params, config: AdapterConfig) -> Params:
    """Return a network's weights, with what its adapters come to in them (eq. 1).

    Args:
        params: Its own weights and its adapters', NumPy's, float32.
        config: Their scale.
    """
    flat = trees.flatten(params)
    merged = {path: leaf for path, leaf in flat.items() if not lora.is_adapter(path)}
    for layer in _adapted_layers(flat):
        a, b = (flat[f"{layer}/{name}"] for name in (lora.A, lora.B))
        added = np.float32(config.scale) * (a @ b)
        merged[f"{layer}/kernel"] = merged[f"{layer}/kernel"] + added
    return trees.unflatten(merged)


def _adapted_layers(flat: Mapping[str, Any]) -> list[str]:
    """Return the paths of layers with an adapter, in order."""
    return [p.removesuffix(f"/{lora.A}") for p in flat if p.endswith(f"/{lora.A}")]


def _target_shapes(
    network: str, params: Params, config: AdapterConfig
) -> dict[str, tuple[int, ...]]:
    """Return the kernel's shape of each layer that gets an adapter, by its path."""
    kernels = {
        path.removesuffix("/kernel"): leaf.shape
        for path, leaf in trees.flatten(params).items()
        if path.endswith("/kernel")
    }
    targets = _TARGETS[network] if config.targets is None else config.targets
    chosen: dict[str, tuple[int, ...]] = {}
    for target in targets:
        found = {p: shape for p, shape in kernels.items() if _ends(p, target)}
        if not found:
            raise _unknown(
                network, "targets", target, (p.split("/")[-1] for p in kernels)
            )
        chosen |= found
    saved = saved_paths(network, params, config)
    if twice := [path for path in chosen if f"{path}/kernel" in saved]:
        raise UserError(
            f"config.model.{network}_lora: {twice[0]} is among targets and "
            "modules_to_save; expected it in one of them"
        )
    return chosen


def _parts(path: str) -> list[str]:
    """Return a path, and those of all that it lies in."""
    parts = path.split("/")
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def _ends(path: str, name: str) -> bool:
    """Tell whether a path ends in a name, which may have wildcards."""
    return fnmatch.fnmatchcase(path, name) or fnmatch.fnmatchcase(path, f"*/{name}")


def _unknown(network: str, field: str, name: str, known: Iterable[str]) -> UserError:
    names = sorted(set(known))
    hint = nearest(name, names) or f"; its layers end in {', '.join(names[:12])}, …"
    return UserError(
        f"config.model.{network}_lora.{field}: '{name}' is no layer of the {network}"
        + hint
    )
