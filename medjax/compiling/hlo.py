"""Read a compiled program's HLO text: its computations, and what each calls how often.

    %fusion.3 = bf16[8,64]{1,0:T(8,128)} fusion(%a, %b), kind=kLoop, calls=%fused.1

Source: openxla.org/xla/operation_semantics; the syntax is that of XLA's `HloParser`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

# Bits of an element. Types that are not listed, as tokens, have no size.
BITS = {
    **dict.fromkeys(("pred", "s8", "u8"), 8),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 16),
    **dict.fromkeys(("s32", "u32", "f32"), 32),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 64),
    **dict.fromkeys(("s4", "u4", "f4e2m1fn"), 4),
    "c128": 128,
}
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([\d,]*)(?::T\(([\d,]+)\))?)?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
# A TPU's sparse cores run some computations.
_END = re.compile(r"^\}(, execution_thread=\"\w+\")?$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPERAND = re.compile(r"%([\w.\-]+)")
_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(
    r"(condition|body|calls|to_apply|branch_computations|called_computations|"
    r"true_computation|false_computation)="
    r"(?:%([\w.\-]+)|\{([^}]*)\})"
)


@dataclasses.dataclass(frozen=True)
class ArrayType:
    """An array in a program.

    Attributes:
        dtype: HLO's name of its type, ``bf16``.
        shape: Its shape.
        order: Its axes in memory, the fastest first; empty if unknown.
        tile: What a TPU pads the fastest axes to multiples of, the fastest last.
    """

    dtype: str
    shape: tuple[int, ...]
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Its size in memory, with the padding of its tiles."""
        bits = BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else 0)
        sizes = [self.shape[axis] for axis in self.order] or [*self.shape]
        for place, multiple in enumerate(reversed(self.tile)):
            if place == len(sizes):
                sizes.append(1)
            sizes[place] = -(-sizes[place] // multiple) * multiple
        return -(-math.prod(sizes) * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: Its name.
        opcode: What it does, ``fusion``.
        types: The arrays that it gives, several for a tuple.
        operands: Names of those that it takes.
        attributes: The rest of its line.
        argument: Content of its brackets, as the value of a constant.
    """

    name: str
    opcode: str
    types: tuple[ArrayType, ...]
    operands: tuple[str, ...]
    attributes: str
    argument: str

    @functools.cached_property
    def called(self) -> dict[str, tuple[str, ...]]:
        """Names of the computations that it calls, by role (``body``, ``calls``)."""
        return {
            role: (one,) if one else tuple(_OPERAND.findall(several))
            for role, one, several in _CALLED.findall(self.attributes)
        }

    @property
    def elements(self) -> int:
        """How many numbers it gives."""
        return sum(one.elements for one in self.types)

    @property
    def bytes(self) -> int:
        """Size of all arrays that it gives."""
        return sum(one.bytes for one in self.types)


@dataclasses.dataclass(frozen=True)
class Computation:
    """A list of instructions, in their order.

    Attributes:
        name: Its name.
        instructions: By name.
        root: Name of the last, whose value is the computation's.
    """

    name: str
    instructions: Mapping[str, Instruction]
    root: str

    @property
    def parameters(self) -> list[str]:
        """Names of its parameters, in their order."""
        found = [x for x in self.instructions.values() if x.opcode == "parameter"]
        return [x.name for x in sorted(found, key=lambda x: int(x.argument))]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        computations: By name.
        entry: Name of the one that runs.
    """

    computations: Mapping[str, Computation]
    entry: str

    def runs(self) -> Iterator[tuple[Computation, int]]:
        """Yield each computation outside fusions, with how often it runs."""
        yield from self._runs(self.entry, 1)

    def _runs(self, name: str, times: int) -> Iterator[tuple[Computation, int]]:
        computation = self.computations[name]
        yield computation, times
        for one in computation.instructions.values():
            if one.opcode == "while":
                (body,), rounds = one.called["body"], self.rounds(one)
                yield from self._runs(body, times * rounds)
            elif one.opcode == "conditional":
                # The largest, as the compiler counts; they are short in our programs.
                branches = [b for names in one.called.values() for b in names]
                longest = max(
                    branches, key=lambda b: len(self.computations[b].instructions)
                )
                yield from self._runs(longest, times)
            elif one.opcode in ("call", "async-start"):
                for names in one.called.values():
                    for inner in names:
                        yield from self._runs(inner, times)

    def rounds(self, loop: Instruction) -> int:
        """Return how often a loop's body runs; 1 where that is unknown.

        The CPU's compiler writes it down. On a TPU the condition compares with it.
        """
        if known := _KNOWN.search(loop.attributes):
            return int(known.group(1))
        (condition,) = loop.called["condition"]
        constants = [
            int(one.argument)
            for one in self.computations[condition].instructions.values()
            if one.opcode == "constant" and one.argument.isdigit()
        ]
        return max(constants, default=1) or 1


def parse_program(text: str) -> Program:
    """Read the text of a compiled program.

    Raises:
        ValueError: If it has no entry.
    """
    computations: dict[str, Computation] = {}
    entry, name, root = "", "", ""
    inside: dict[str, Instruction] = {}
    for line in _whole_lines(text):
        if head := _HEAD.match(line):
            name, inside, root = head.group(2), {}, ""
            entry = name if head.group(1) else entry
        elif name and _END.match(line):
            computations[name] = Computation(name, inside, root)
            name = ""
        elif name and (found := _NAME.match(line)):
            one = _instruction(found.group(2), line[found.end() :])
            inside[one.name] = one
            root = one.name if found.group(1) else root
    if entry not in computations:
        raise ValueError("the text has no ENTRY computation")
    return Program(computations, entry)


def _whole_lines(text: str) -> Iterator[str]:
    """Yield lines; an attribute of a kernel that fills several is part of the first."""
    whole = ""
    for line in text.splitlines():
        starts = line.startswith((" ", "%", "ENTRY ")) or _END.match(line)
        if whole and not starts:
            whole += line
            continue
        yield whole
        whole = line
    yield whole


def _instruction(name: str, rest: str) -> Instruction:
    """Read what follows ``%name =``."""
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    types, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    inner = rest[len(opcode) + 1 : close]
    return Instruction(
        name=name,
        opcode=opcode,
        types=array_types(types),
        operands=tuple(_OPERAND.findall(inner)),
        attributes=rest[close + 1 :],
        argument=inner,
    )


def array_types(text: str) -> tuple[ArrayType, ...]:
    """Read the arrays of a type, which may be a tuple."""
    return tuple(
        ArrayType(dtype, _integers(shape), _integers(order), _integers(tile))
        for dtype, shape, order, tile in _ARRAY.findall(text)
    )


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number.lstrip("<=")) for number in text.split(",") if number)


def _closing(text: str, start: int) -> int:
    """Return the place of the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    raise ValueError(f"a bracket is not closed: {text[:80]}")
