"""Networks and their weights together."""

from typing import Any

import flax.linen as nn

from medjax.arrays import Params


def apply(module: nn.Module, params: Params, *inputs: Any, **options: Any) -> Any:
    """Return what a network makes of its inputs.

    Args:
        module: The network.
        params: Its parameters.
        inputs: Of its method.
        options: Of the same, and of `flax.linen.Module.apply`, as ``method``.
    """
    return module.apply({"params": params}, *inputs, **options)
