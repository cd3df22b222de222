"""Low-rank adapters (LoRA): what is added to a layer that itself stays as it is.

    y = W x + b + s B A d(x),   s = α / r                                          (1)

with A of r rows, B of r columns, and d a dropout. Of a convolution, A is one with the
same kernel and stride, and B one of 1 × 1.

A layer of ours adds this where the variable collection ``lora`` has arrays at its path,
``module.apply({"params": base, "lora": adapters}, …)``: ``lora_a`` and ``lora_b``,
which are A and B, and ``lora_scale``, s; in training perhaps ``lora_keys``, one an
example, and ``lora_rate``, of its dropout. In `Params` they lie beside the kernel, and
their names tell them from it.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, eq. 3.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from medjax.arrays import Array
from medjax.models import contractions

COLLECTION = "lora"
A, B, SCALE, KEYS, RATE = (
    f"{COLLECTION}_{name}" for name in ("a", "b", "scale", "keys", "rate")
)


def is_adapter(path: str) -> bool:
    """Tell whether what lies at a path is part of an adapter."""
    return path.rpartition("/")[2].startswith(f"{COLLECTION}_")


def adapted(
    layer: nn.Module,
    x: Float[Array, "b ..."],
    y: Float[Array, "b ..."],
    product: Callable[[Array, Array], Array],
) -> Float[Array, "b ..."]:
    """Return a layer's output with its adapter's (eq. 1), where it has one.

    Args:
        layer: While it is applied.
        x: Its input, in the dtype to compute in; the first axis is the example.
        y: Its output without.
        product: From an input and a kernel to what that makes of it, of any width.
    """
    if not layer.has_variable(COLLECTION, A):
        return y

    def own(name: str) -> Any:
        return layer.get_variable(COLLECTION, name)

    if own(KEYS) is not None:
        x = dropped_out(x, own(KEYS), own(RATE))
    low = product(x, jnp.asarray(own(A), x.dtype))
    # Scaled in float32, where nothing is rounded yet.
    up = jnp.asarray(own(SCALE) * own(B), x.dtype)
    return y + contractions.dot_general(low, up, None)


def dropped_out(
    x: Float[Array, "b ..."], keys: Key[Array, " b"], rate: Float[Array, ""] | float
) -> Float[Array, "b ..."]:
    """Return `x` with a fraction of its values zero, the rest as much larger.

    Args:
        x: Values.
        keys: One an example.
        rate: The fraction, in [0, 1).
    """
    draw = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:]))
    return jnp.where(draw(keys) < rate, 0, x / (1 - rate)).astype(x.dtype)
