"""Initialise the parameters of a network, leaf by leaf, from their shapes.

Flax's own `init` compiles one random generator per leaf. For a small network, that
takes longer than its training. This module traces only shapes. The random numbers come
from NumPy and are the same on every machine. The path of a leaf seeds its generator.

Kernels are normal with variance 1/fan-in (LeCun et al., "Efficient BackProp", 1998,
section 4.6). Embeddings are normal with standard deviation 0.02. Scales are 1, and all
other parameters are 0.
"""

import functools
import zlib
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float

from medjax import trees
from medjax.arrays import Array, Params
from medjax.blank import blank_tree, wants_blank

_EMBEDDING_DEVIATION = 0.02


def param_shapes(module: nn.Module, *inputs: Any, **options: Any) -> Params:
    """Return the tree of the module's parameters as `jax.ShapeDtypeStruct`s.

    Args:
        module: The network. Its fields are hashable, so that it is traced only once.
        inputs: Arrays or None. Only their shapes and dtypes matter.
        options: Further arguments of the module, hashable.
    """
    kinds = tuple(
        None if x is None else jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs
    )
    return trees.unflatten(dict(_shapes(module, kinds, tuple(options.items()))))


@functools.cache
def _shapes(
    module: nn.Module,
    kinds: tuple[jax.ShapeDtypeStruct | None, ...],
    options: tuple[tuple[str, Any], ...],
) -> tuple[tuple[str, jax.ShapeDtypeStruct], ...]:
    """Return the path and shape of each parameter."""

    def init(*inputs: Any) -> Any:
        return module.init(jax.random.key(0), *inputs, **dict(options))

    return tuple(trees.flatten(jax.eval_shape(init, *kinds)["params"]).items())


def draw_params(shapes: Params, key: Array) -> Params:
    """Return random float32 parameters of these shapes."""
    if wants_blank():
        return blank_tree(shapes, np.float32)
    seed = np.asarray(jax.random.key_data(key)).tolist()
    return trees.unflatten(
        {path: _draw(path, s.shape, seed) for path, s in trees.flatten(shapes).items()}
    )


def _draw(
    path: str, shape: tuple[int, ...], seed: list[int]
) -> Float[np.ndarray, "..."]:
    name = path.rpartition("/")[2]
    if name in ("kernel", "embedding"):
        random = np.random.default_rng([*seed, zlib.crc32(path.encode())])
        fan_in = float(np.prod(shape[:-1]))
        deviation = fan_in**-0.5 if name == "kernel" else _EMBEDDING_DEVIATION
        return random.standard_normal(shape, np.float32) * np.float32(deviation)
    return np.full(shape, float(name == "scale"), np.float32)
