"""What a block keeps for its gradient, and what it computes again.

``none``
    Everything is kept: the fastest, if it fits.
``attention``
    Each block keeps its input and, on a TPU, the results of its fused attention, which
    would be the most work to compute again. The rest is computed again.
``full``
    Each block keeps its input only.
"""

from typing import Literal, TypeVar

import flax.linen as nn
import jax

from medjax.models.attention_splash import KEPT

M = TypeVar("M", bound=type[nn.Module])

POLICIES = ("none", "attention", "full")
Policy = Literal["none", "attention", "full"]


def rematerialized(block: M, policy: Policy) -> M:
    """Return a module's class that keeps for its gradient what the policy says.

    Args:
        block: Class of the module.
        policy: One of `POLICIES`.

    Raises:
        ValueError: If it is none of them.
    """
    if policy not in POLICIES:
        raise ValueError(f"remat={policy!r}: expected one of {', '.join(POLICIES)}")
    if policy == "none":
        return block
    if policy == "full":
        return nn.remat(block)
    return nn.remat(block, policy=jax.checkpoint_policies.save_only_these_names(KEPT))
