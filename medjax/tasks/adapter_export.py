"""Express adapters, and layers that trained fully beside them, as low-rank changes.

A change Δ of a kernel (…, in, out), where (…, in) has n numbers, can be written exactly
as a low-rank change of rank min(n, out):

    Δ = I Δ,   where A is the identity,   or   Δ = Δ I,   where B is the identity   (1)
"""

import numpy as np
from jaxtyping import Float

from medjax import trees
from medjax.arrays import Params
from medjax.models.lora import A, B, is_adapter
from medjax.pretrained import Adapters, LowRank
from medjax.tasks.adapters import AdapterConfig


def low_rank_changes(base: Params, trained: Params, config: AdapterConfig) -> Adapters:
    """Return the changes of a network's weights by training.

    Args:
        base: Weights of the network before training, float32.
        trained: Adapters, and weights that trained fully, float32.
        config: Config of the adapters.
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
    """Return the change of a kernel as low rank (eq. 1), with the smaller identity."""
    *fan_in, out = change.shape
    count = int(np.prod(fan_in))
    if count <= out:
        a = np.eye(count, dtype=np.float32).reshape(*fan_in, count)
        return LowRank(a, change.reshape(count, out), float(count))
    return LowRank(change, np.eye(out, dtype=np.float32), float(out))
