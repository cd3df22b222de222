"""Apply networks to inputs, with their adapters."""

from typing import Any

import flax.linen as nn

from medjax import trees
from medjax.arrays import Params
from medjax.models import lora


def apply(module: nn.Module, params: Params, *inputs: Any, **options: Any) -> Any:
    """Return the output of a network.

    Args:
        module: The network.
        params: Its parameters, which may include adapters; see `models.lora`.
        inputs: Positional arguments of its method.
        options: Keyword arguments of its method and of `flax.linen.Module.apply`, such
            as ``method``.
    """
    adapters, own = trees.split(params, lora.is_adapter)
    variables = {"params": own, **({lora.COLLECTION: adapters} if adapters else {})}
    return module.apply(variables, *inputs, **options)
