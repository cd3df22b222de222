"""What a program computes, counted with its loops.

The compiler counts the body of a loop once, however often it runs. So its figures are
multiplied by the ratio of two counts of the traced program: with each loop's number of
iterations, and without. Matrix products and convolutions decide both.

A GPU's compiler does not count what it leaves to cuBLAS and cuDNN, which is almost all.
There, the count of the traced program stands for the compiler's.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jax.extend.core import Literal, jaxprs_in_params

# Matrix products in cuDNN's attention, by the name of its primitive in jax: S and O;
# and for the gradient S, dV, dP, dQ and dK.
_CUDNN_PRODUCTS = {"dot_product_attention_fwd": 2, "dot_product_attention_bwd": 5}


@dataclasses.dataclass(frozen=True)
class Count:
    """Operations of a program.

    Attributes:
        once: FLOPs with the body of each loop counted once.
        flops: FLOPs with each loop's iterations.
    """

    once: float = 0.0
    flops: float = 0.0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.once + other.once, self.flops + other.flops)

    @property
    def loops(self) -> float:
        """How many times the compiler's count the whole is."""
        return self.flops / self.once if self.once else 1.0


def program_flops(traced: Any, platform: str, by_compiler: float) -> float:
    """Return the FLOPs of one call of a program.

    Args:
        traced: Result of ``jax.jit(…).trace(…)``.
        platform: Where it runs: "cpu", "gpu" or "tpu".
        by_compiler: The compiler's count. It counts the body of a loop once, so this
            function multiplies it by the number of iterations.
    """
    count = count_flops(traced, platform)
    return count.flops if platform == "gpu" else by_compiler * count.loops


def count_flops(traced: Any, platform: str) -> Count:
    """Count the FLOPs of matrix products and convolutions of a traced program.

    A multiplication with its addition is 2. A Pallas kernel counts as it declares, and
    cuDNN's attention as its products. Of several branches, that of the platform or the
    largest counts. A loop without a known end counts as one iteration.

    Args:
        traced: Result of ``jax.jit(…).trace(…)``, or a jaxpr.
        platform: Where it runs: "cpu", "gpu" or "tpu".
    """
    return _of_jaxpr(getattr(traced, "jaxpr", traced), platform)


def _of_jaxpr(jaxpr: Any, platform: str, used: Sequence[bool] = ()) -> Count:
    """Count what the used results need; without a flag for each, all are used.

    The compiler drops the rest. So a product's derivative may trace the product and
    both its gradients, and use one gradient.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    if len(used) != len(jaxpr.outvars):
        used = [True] * len(jaxpr.outvars)
    needed = set(_variables(itertools.compress(jaxpr.outvars, used)))
    count = Count()
    for eqn in reversed(jaxpr.eqns):
        results = [var in needed for var in eqn.outvars]
        if any(results) or eqn.effects:
            needed.update(_variables(eqn.invars))
            count += _of_equation(eqn, platform, results)
    return count


def _variables(values: Iterable[Any]) -> Iterator[Any]:
    return (value for value in values if not isinstance(value, Literal))


def _of_equation(eqn: Any, platform: str, used: Sequence[bool]) -> Count:
    name = eqn.primitive.name
    if name == "pallas_call":
        declared = eqn.params["cost_estimate"]
        flops = float(declared.flops) if declared else 0.0
        return Count(flops, flops)
    if name == "dot_general":
        flops = _of_product(eqn)
        return Count(flops, flops)
    if name == "conv_general_dilated":
        flops = _of_convolution(eqn)
        return Count(flops, flops)
    if (attention := name.removesuffix("_wrapper")) in _CUDNN_PRODUCTS:
        flops = _CUDNN_PRODUCTS[attention] * _of_attention_product(eqn)
        return Count(flops, flops)
    if name == "cond":
        return _of_branches(eqn, platform, used)
    # The results of a loop's body are also its next arguments.
    whole = name in ("scan", "while")
    programs = jaxprs_in_params(eqn.params)
    inner = sum(
        (_of_jaxpr(one, platform, () if whole else used) for one in programs), Count()
    )
    if name == "scan":
        return Count(inner.once, inner.flops * eqn.params["length"])
    if name == "shard_map":
        # Inside are the shapes of one device, outside those of all.
        devices = math.prod(eqn.params["mesh"].shape.values())
        return Count(inner.once * devices, inner.flops * devices)
    return inner


def _of_branches(eqn: Any, platform: str, used: Sequence[bool]) -> Count:
    """Count the branch that the platform takes, or else the largest."""
    branches = eqn.params["branches"]
    # Of `jax.lax.platform_dependent`: names of platforms, None for all others.
    named = eqn.params.get("branches_platforms")
    if named:
        names = {"gpu": ("cuda", "rocm")}.get(platform, (platform,))
        taken = [
            branch
            for branch, those in zip(branches, named, strict=True)
            if those is None or set(those) & set(names)
        ]
        return _of_jaxpr(taken[0], platform, used)
    counts = [_of_jaxpr(one, platform, used) for one in branches]
    return max(counts, key=lambda one: one.flops)


def _of_product(eqn: Any) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    inner = math.prod(left[axis] for axis in contracted)
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * inner


def _of_attention_product(eqn: Any) -> float:
    """Count one product of all queries, b n heads d, with all keys, b l heads d."""
    query, key = (one.aval.shape for one in eqn.invars[:2])
    return 2.0 * math.prod(query) * key[1]


def _of_convolution(eqn: Any) -> float:
    """Count products with real pixels, not those with padding or dilation."""
    params, (image, kernel) = eqn.params, (one.aval.shape for one in eqn.invars)
    output, numbers = eqn.outvars[0].aval.shape, params["dimension_numbers"]
    lhs, rhs, out = (spec[2:] for spec in numbers)
    pairs = 1
    for axis in range(len(lhs)):
        pairs *= product_pairs(
            image[lhs[axis]],
            kernel[rhs[axis]],
            output[out[axis]],
            params["window_strides"][axis],
            params["padding"][axis][0],
            params["lhs_dilation"][axis],
            params["rhs_dilation"][axis],
        )
    batch, features = (output[numbers.out_spec[axis]] for axis in (0, 1))
    inputs = kernel[numbers.rhs_spec[1]]
    return 2.0 * batch * features * inputs * pairs / params["batch_group_count"]


def product_pairs(
    size: int, kernel: int, out: int, stride: int, low: int, grow: int, spread: int
) -> int:
    """Count the pairs of an output and a kernel's pixel that meet an input's pixel.

    Args:
        size: Of the input, along one axis.
        kernel: Of the kernel.
        out: Of the output.
        stride: Between outputs.
        low: Padding before the input.
        grow: Dilation of the input.
        spread: Dilation of the kernel.
    """
    reach = (size - 1) * grow
    places = (i * stride + k * spread - low for i in range(out) for k in range(kernel))
    return sum(0 <= place <= reach and place % grow == 0 for place in places)
