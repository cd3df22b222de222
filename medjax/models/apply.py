"""Networks and their weights together."""

from typing import Any

import flax.linen as nn

from medjax import trees
from medjax.arrays import Params
from medjax.models import lora


def apply(module: nn.Module, params: Params, *inputs: Any, **options: Any) -> Any:
    """Return what a network makes of its inputs.

    Args:
        module: The network.
        params: Its parameters, and its adapters' beside them; see `models.lora`.
        inputs: Of its method.
        options: Of the same, and of `flax.linen.Module.apply`, as ``method``.
    """
    adapters, own = trees.split(params, lora.is_adapter)
    variables = {"params": own, **({lora.COLLECTION: adapters} if adapters else {})}
    return module.apply(variables, *inputs, **options)
