"""What adapters, and layers that trained wholly beside them, come to as low rank.

A kernel of any layer, (…, in, out) with n numbers to sum over, changed by Δ, is a
low-rank change of rank min(n, out), without an error:

    Δ = I Δ   with A the identity, or   Δ = Δ I   with B the identity              (1)
"""

import numpy as np
from jaxtyping import Float

from medjax import trees
from medjax.arrays import Params
from medjax.models.lora import A, B, is_adapter
from medjax.pretrained import Adapters, LowRank
from medjax.tasks.adapters import AdapterConfig


def low_rank_changes(base: Params, trained: Params, config: AdapterConfig) -> Adapters:
    """Return what training changed of a network.

    Args:
        base: Its weights before, float32.
        trained: Adapters, and what trained wholly, float32.
        config: Of the adapters.
    """
    before, after = trees.flatten(base), trees.flatten(trained)
    layers, rest = {}, []
    for path, leaf in after.items():
        layer, _, name = path.rpartition("/")
        if name == A:
            alpha = config.scale * leaf.shape[-1]
            layers[layer] = LowRank(leaf, after[f"{layer}/{B}"], alpha)
        elif not is_adapter(path) and (change := leaf - before[path]).any():
            if name == "kernel":
                layers[layer] = exact(change)
            else:
                rest.append(path)
    return Adapters(layers, tuple(rest))


def exact(change: Float[np.ndarray, "... i o"]) -> LowRank:
    """Return a kernel's change as low rank (eq. 1), by the smaller identity."""
    *fan_in, out = change.shape
    count = int(np.prod(fan_in))
    if count <= out:
        a = np.eye(count, dtype=np.float32).reshape(*fan_in, count)
        return LowRank(a, change.reshape(count, out), float(count))
    return LowRank(change, np.eye(out, dtype=np.float32), float(out))
