"""LoRA adapters of a network: choose layers, set first values, apply and merge.

    W' = W + s A B,   s = α / r                                                    (1)

W, A and B are kernels of shapes (in, out), (in, r) and (r, out). B starts at zero, so
the network is unchanged at first. A starts uniform in ±1/√fan-in, which is Kaiming's
initialisation with a slope of √5.

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
"""Networks that can have adapters, configured by ``config.model.NETWORK_lora``."""

# Default layers: all projections of attention, as in the paper on LoRA.
_TARGETS = {
    "unet": ("to_q", "to_k", "to_v", "to_out_0"),
    "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj"),
}


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """LoRA adapters of one network. The keys have peft's names.

    Layers are named by the end of their path in medjax, in whole parts. Wildcards are
    allowed: ``to_q``, ``attn2/to_*``, ``mid_block/attentions_0/proj_in``.

    Attributes:
        rank: Rank r of the adapters, at least 1. None means no adapters; the other keys
            must then keep their defaults.
        alpha: Scale α of the adapters, above 0: the product of an adapter's two
            matrices is multiplied by α / r. None means α = r.
        dropout: Fraction of an adapter's inputs set to zero in training, in [0, 1).
        targets: Names of the dense or convolutional layers that get an adapter. None
            means all projections of attention.
        modules_to_save: Names of layers, or of single arrays of layers, whose weights
            train fully beside the adapters, such as ``conv_in`` or
            ``conv_in/kernel``.
    """

    rank: int | None = None
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the values, and that no other key is set if `rank` is None.

        Raises:
            UserError: If a check fails. The message starts with the name of the key.
        """
        check_least(self, rank=1)
        if self.alpha is not None and not self.alpha > 0:
            raise UserError(f"alpha={self.alpha}: expected a number above 0, or None")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout={self.dropout}: expected a fraction in [0, 1)")
        if self.rank is not None:
            return
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                raise UserError(
                    f"{field.name}={value}: rank is None, which means no adapters. "
                    f"Set a rank, or leave this at {field.default}"
                )

    @property
    def scale(self) -> float:
        """Scale s of eq. 1."""
        assert self.rank is not None
        return 1.0 if self.alpha is None else self.alpha / self.rank


NO_ADAPTERS = AdapterConfig()


def draw_adapters(
    network: str, params: Params, config: AdapterConfig, key: Key[Array, ""]
) -> Params:
    """Return new adapters for a network, float32.

    Args:
        network: Name of the network.
        params: The network's own weights, or only their shapes.
        config: Which layers get an adapter.
        key: Key for A.

    Raises:
        UserError: If a target is not a layer of the network, or also trains fully.
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
    """Return the paths of weights that train fully beside a network's adapters.

    Raises:
        UserError: If a name matches no weight of the network.
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
    """Return a network's weights, with the scale and dropout that its layers read.

    Args:
        params: The network's own weights and its adapters.
        config: Scale and dropout of the adapters.
        keys: One key per example, for dropout. None means no dropout.
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
    """Return a network's weights with its adapters merged into them (eq. 1).

    Args:
        params: The network's own weights and its adapters, NumPy arrays, float32.
        config: Scale of the adapters.
    """
    flat = trees.flatten(params)
    merged = {path: leaf for path, leaf in flat.items() if not lora.is_adapter(path)}
    for layer in _adapted_layers(flat):
        a, b = (flat[f"{layer}/{name}"] for name in (lora.A, lora.B))
        added = np.float32(config.scale) * (a @ b)
        merged[f"{layer}/kernel"] = merged[f"{layer}/kernel"] + added
    return trees.unflatten(merged)


def _adapted_layers(flat: Mapping[str, Any]) -> list[str]:
    """Return the paths of the layers with an adapter, in order."""
    return [p.removesuffix(f"/{lora.A}") for p in flat if p.endswith(f"/{lora.A}")]


def _target_shapes(
    network: str, params: Params, config: AdapterConfig
) -> dict[str, tuple[int, ...]]:
    """Return the kernel shape of each layer that gets an adapter, by path."""
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
            f"config.model.{network}_lora: {twice[0]} is in both targets and "
            "modules_to_save. Remove it from one of them"
        )
    return chosen


def _parts(path: str) -> list[str]:
    """Return a path, after the paths of everything that contains it."""
    parts = path.split("/")
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def _ends(path: str, name: str) -> bool:
    """Return whether a path ends in a name, which may have wildcards."""
    return fnmatch.fnmatchcase(path, name) or fnmatch.fnmatchcase(path, f"*/{name}")


def _unknown(network: str, field: str, name: str, known: Iterable[str]) -> UserError:
    names = sorted(set(known))
    hint = nearest(name, names) or f". Its layers end in {', '.join(names[:12])}, …"
    return UserError(
        f"config.model.{network}_lora.{field}: '{name}' is not a layer of the {network}"
        + hint
    )
