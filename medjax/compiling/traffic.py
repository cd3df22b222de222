"""Bytes that a compiled program moves: from and to memory, and between chips.

XLA reads each operand of a fusion from memory and writes its result there, so the sum
of both sizes over all instructions outside fusions is the traffic. What only a slice
is read of or written to counts as that slice. As in the compiler's own count, arrays
that fit into a TPU's memory on the chip count, too.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator

from medjax.compiling.hlo import Computation, Instruction, Program
from medjax.compiling.operations import declared_cost

# These move nothing, or what others count.
_FREE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while"),
        *("conditional", "call", "after-all", "opt-barrier", "partition-id"),
        *("replica-id", "add-dependency", "domain", "iota", "async-start"),
    )
)
_SLICES = frozenset(("dynamic-slice", "slice", "gather"))
_COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
    *("collective-permute", "ragged-all-to-all", "collective-broadcast"),
)
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_COUNTED = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
_NAMED = re.compile(r"replica_groups=\w*\[([^\]]*)\] ?\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one chip moves in one call of a program.

    Attributes:
        once: Bytes of memory traffic with the body of each loop counted once.
        hbm: Bytes of memory traffic with each loop's iterations.
        links: Bytes sent to other chips, by kind of collective.
    """

    once: float
    hbm: float
    links: dict[str, float]

    @property
    def loops(self) -> float:
        """Ratio of `hbm` to `once`; 1 if `once` is 0."""
        return self.hbm / self.once if self.once else 1.0


def measure_traffic(program: Program) -> Traffic:
    """Count the bytes that a program moves."""
    once = hbm = 0.0
    links: defaultdict[str, float] = defaultdict(float)
    for computation, times in program.runs():
        own = sum(
            _bytes(program, computation, one)
            for one in computation.instructions.values()
        )
        once, hbm = once + own, hbm + own * times
        for kind, sent in _collectives(program, computation):
            links[kind] += sent * times
    return Traffic(once, hbm, dict(links))


def _collectives(
    program: Program, computation: Computation
) -> Iterator[tuple[str, float]]:
    """Yield the kind of each collective of a computation, and what a chip sends."""
    for one in computation.instructions.values():
        if one.opcode != "fusion":
            found = [sent_bytes(computation, one)]
        else:
            (name,) = one.called["calls"]
            inner = program.computations[name]
            found = [sent_bytes(inner, x) for x in inner.instructions.values()]
            if name.lstrip("%").startswith("all-reduce-scatter"):
                # A TPU's form of a reduce-scatter. Nothing is spread afterwards.
                found = [("reduce-scatter", sent / 2) for _, sent in found]
        yield from ((kind, sent) for kind, sent in found if sent)


def _bytes(program: Program, computation: Computation, one: Instruction) -> float:
    """Return the memory traffic of an instruction."""
    if one.opcode in _FREE or one.opcode.endswith("-done"):
        return 0
    operands = [
        computation.instructions[name]
        for name in one.operands
        if name in computation.instructions
    ]
    if (declared := declared_cost(one).get("bytes_accessed")) is not None:
        return declared
    if one.opcode == "fusion":
        (inner,) = one.called["calls"]
        return _of_fusion(program.computations[inner], one, operands)
    if one.opcode in _SLICES:
        return 2 * _size(one)
    if one.opcode == "dynamic-update-slice":
        return 2 * _size(operands[1])
    if one.opcode.endswith("-start"):
        # Its tuple holds the operands, too.
        return 2 * sum(map(_size, operands))
    return _size(one) + sum(map(_size, operands))


def _of_fusion(
    inner: Computation, one: Instruction, operands: list[Instruction]
) -> float:
    """Return a fusion's traffic: whole arrays, or the slices that it touches."""
    total = 0.0
    in_place = _updated_in_place(inner)
    for parameter, operand in zip(inner.parameters, operands, strict=False):
        users = [x for x in inner.instructions.values() if parameter in x.operands]
        if parameter in in_place:
            continue
        if users and all(
            x.opcode in _SLICES and x.operands[0] == parameter for x in users
        ):
            total += min(sum(x.bytes for x in users), _size(operand))
        else:
            total += _size(operand)
    written = sum(in_place.values())
    whole = sum(inner.instructions[name].bytes for name in in_place)
    return total + written + max(0.0, _size(one) - whole)


def _updated_in_place(inner: Computation) -> dict[str, float]:
    """Return the parameters that have a slice replaced, with its bytes."""
    found: dict[str, float] = {}
    for one in inner.instructions.values():
        if one.opcode != "dynamic-update-slice":
            continue
        target = inner.instructions.get(one.operands[0])
        while target is not None and target.opcode in ("bitcast", "copy"):
            target = inner.instructions.get(target.operands[0])
        if target is not None and target.opcode == "parameter":
            update = inner.instructions.get(one.operands[1])
            found[target.name] = update.bytes if update else 0.0
    return found


def _size(one: Instruction) -> float:
    return float(one.bytes)


def sent_bytes(computation: Computation, one: Instruction) -> tuple[str, float]:
    """Return the kind of collective that an instruction is, and what a chip sends.

    Rings send (n-1)/n of an array to gather or to reduce it over n chips, and both for
    an all-reduce.

    Args:
        computation: Where the instruction is.
        one: Any instruction. If it sends nothing, the kind is "".
    """
    kind = one.opcode.removesuffix("-start")
    if kind not in _COLLECTIVES:
        return "", 0.0
    operands = (computation.instructions.get(name) for name in one.operands)
    size = float(sum(operand.bytes for operand in operands if operand))
    if kind == "collective-permute":
        return kind, size
    count = group_size(one.attributes)
    if kind == "all-gather":
        return kind, size * (count - 1)
    part = size * (count - 1) / count
    return kind, 2 * part if kind == "all-reduce" else part


def group_size(attributes: str) -> int:
    """Return how many chips take part in a collective, by its attributes.

    ``{{0,1},{2,3}}`` lists the groups, ``[2,4]<=[8]`` has 2 of 4 chips, and
    ``mesh['a'=2,'b'=4] {'b'}`` names the axes that a group runs along.
    """
    if found := _LISTED.search(attributes):
        return len(found.group(1).split(","))
    if found := _COUNTED.search(attributes):
        return int(found.group(2))
    if found := _NAMED.search(attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found.group(1)))
        count = 1
        for axis in re.findall(r"'(\w+)'", found.group(2)):
            count *= int(sizes[axis])
        return count
    return 1
