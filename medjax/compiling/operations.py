"""FLOPs of a compiled program, counted as XLA counts them, with each loop's iterations.

A multiplication with its addition is 2, in products and convolutions, with padding and
dilation left out. An elementwise operation or a reduction is 1 for each number, except
roots, powers and exponentials, which count as nothing. A Pallas kernel counts as it
declares. Source: XLA's `HloCostAnalysis`.
"""

import math
import re

from medjax.compiling.hlo import Computation, Instruction, Program
from medjax.program_costs import product_pairs

_ELEMENTWISE = frozenset(
    (
        *("add", "subtract", "multiply", "divide", "maximum", "minimum", "negate"),
        *("abs", "compare", "select", "and", "or", "xor", "not", "convert", "sign"),
        *("clamp", "floor", "ceil", "remainder", "shift-left", "round-nearest-even"),
        *("shift-right-logical", "shift-right-arithmetic", "is-finite"),
    )
)
_KERNEL = 'custom_call_target="tpu_custom_call"'
_DECLARED = re.compile(r'"cost_estimate":\{([^}]*)\}')
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_GROUPS = re.compile(r"batch_group_count=(\d+)")


def count_operations(program: Program) -> float:
    """Return the FLOPs of one call of a program."""
    return sum(
        times * _of_computation(program, computation)
        for computation, times in program.runs()
    )


def count_kernels(program: Program) -> int:
    """Return how many Pallas kernels one call of a TPU program calls."""
    return sum(
        times * is_kernel(one)
        for computation, times in program.runs()
        for one in computation.instructions.values()
    )


def is_kernel(one: Instruction) -> bool:
    """Return whether an instruction calls a Pallas kernel of a TPU."""
    return one.opcode == "custom-call" and _KERNEL in one.attributes


def declared_cost(one: Instruction) -> dict[str, float]:
    """Return what a Pallas kernel declares: ``flops``, ``bytes_accessed``.

    Empty for other instructions, and for a kernel that declares nothing.
    """
    if not is_kernel(one):
        return {}
    declared = _DECLARED.search(one.attributes)
    pairs = re.findall(r'"(\w+)":"(\d+)"', declared[1]) if declared else []
    return {name: float(value) for name, value in pairs}


def _of_computation(program: Program, computation: Computation) -> float:
    return sum(
        _of_instruction(program, computation, one)
        for one in computation.instructions.values()
    )


def _of_instruction(
    program: Program, computation: Computation, one: Instruction
) -> float:
    if one.opcode == "fusion":
        (inner,) = one.called["calls"]
        return _of_computation(program, program.computations[inner])
    if one.opcode == "convolution":
        return _of_convolution(computation, one)
    if one.opcode == "dot":
        contracted = _CONTRACTED.search(one.attributes)
        axes = contracted[1].split(",") if contracted and contracted[1] else []
        left = computation.instructions[one.operands[0]].types[0].shape
        return 2.0 * one.elements * math.prod(left[int(axis)] for axis in axes)
    if one.opcode in ("reduce", "reduce-window"):
        known = (computation.instructions.get(name) for name in one.operands)
        read = sum(operand.elements for operand in known if operand)
        return max(0.0, read - one.elements)
    if one.opcode in _ELEMENTWISE:
        return one.elements
    return declared_cost(one).get("flops", 0.0)


def _of_convolution(computation: Computation, one: Instruction) -> float:
    """Count a convolution, as which a TPU also computes every matrix product."""
    labels, window = _LABELS.search(one.attributes), _WINDOW.search(one.attributes)
    image, kernel = (computation.instructions[name] for name in one.operands[:2])
    if labels is None:
        return 0.0
    sizes = [
        dict(zip(names, operand.types[0].shape, strict=True))
        for names, operand in zip(labels.groups(), (image, kernel, one), strict=True)
    ]
    of_image, of_kernel, of_output = sizes
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    pairs = 1
    for axis in sorted(name for name in of_kernel if name.isdigit()):
        place = int(axis)
        stride, grow, spread = (
            int(_along(fields, name, place, "1"))
            for name in ("stride", "lhs_dilate", "rhs_dilate")
        )
        low = int(_along(fields, "pad", place, "0_0").split("_")[0])
        pairs *= product_pairs(
            *(of_image[axis], of_kernel[axis], of_output[axis]),
            *(stride, low, grow, spread),
        )
    groups = _GROUPS.search(one.attributes)
    batch = of_output["b"] / (int(groups[1]) if groups else 1)
    return 2.0 * batch * of_output["f"] * of_kernel["i"] * pairs


def _along(fields: dict[str, str], name: str, place: int, default: str) -> str:
    """Return a window's field along one axis: ``3`` of ``size=3x5``."""
    return fields[name].split("x")[place] if name in fields else default
