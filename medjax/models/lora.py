"""Apply low-rank adapters (LoRA), which add a term to the output of a frozen layer.

    y = W x + b + s B A d(x),   s = α / r                                          (1)

A has r rows, B has r columns, and d is a dropout. For a convolution, A is a convolution
with the same kernel size and stride, and B is a 1 × 1 convolution.

Our layers add this term if the variable collection ``lora`` has arrays at their path:
``module.apply({"params": base, "lora": adapters}, …)``. The arrays are ``lora_a`` (A),
``lora_b`` (B) and ``lora_scale`` (s). With dropout, training adds ``lora_keys``, one
per example, and ``lora_rate``. In `Params` they are next to the kernel, and their names
distinguish them from it.

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
    """Return whether the array at a path is part of an adapter."""
    return path.rpartition("/")[2].startswith(f"{COLLECTION}_")


def adapted(
    layer: nn.Module,
    x: Float[Array, "b ..."],
    y: Float[Array, "b ..."],
    product: Callable[[Array, Array], Array],
    reorder: Callable[[Array], Array],
) -> Float[Array, "b ..."]:
    """Return a layer's output with the term of its adapter (eq. 1), if it has one.

    Args:
        layer: The layer, while it is applied.
        x: Input of the layer, in the dtype of the computation. The first axis is the
            example.
        y: Output of the layer without its adapter.
        product: Returns the layer's product of an input and a kernel with any number of
            output channels.
        reorder: Reorders the output channels of an array as in `y`.
    """
    if not layer.has_variable(COLLECTION, A):
        return y

    def own(name: str) -> Any:
        return layer.get_variable(COLLECTION, name)

    if own(KEYS) is not None:
        x = dropped_out(x, own(KEYS), own(RATE))
    low = product(x, jnp.asarray(own(A), x.dtype))
    # Scale in float32, before the conversion to the dtype of `x` rounds.
    up = jnp.asarray(own(SCALE) * reorder(own(B)), x.dtype)
    return y + contractions.dot_general(low, up, None)


def dropped_out(
    x: Float[Array, "b ..."], keys: Key[Array, " b"], rate: Float[Array, ""] | float
) -> Float[Array, "b ..."]:
    """Return `x` with dropout: some values become 0, the others are scaled up.

    Args:
        x: Values.
        keys: Random key of each example.
        rate: Probability of 0, in [0, 1). The others are divided by 1 − rate.
    """
    draw = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:]))
    return jnp.where(draw(keys) < rate, 0, x / (1 - rate)).astype(x.dtype)
