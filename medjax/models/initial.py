"""First parameters, drawn leaf by leaf from their shapes.

Flax's own `init` unrolls one generator a leaf into a program that takes longer to
compile than to train a small network. Here only shapes are traced; the numbers are
NumPy's, the same on every machine, each leaf's from its own path.

Kernels are normal with variance 1/fan-in (LeCun et al., "Efficient BackProp", 1998,
section 4.6), embeddings normal with deviation 0.02, scales one, everything else zero.
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

_EMBEDDING_DEVIATION = 0.02


def param_shapes(module: nn.Module, *inputs: Any, **options: Any) -> Params:
    """Return the tree of the module's parameters as `jax.ShapeDtypeStruct`s.

    Args:
        module: Its fields are hashable, so that its shapes are traced only once.
        inputs: Arrays or None. Only their shapes and types matter.
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
    """Return float32 parameters of these shapes."""
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
