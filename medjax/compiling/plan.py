"""What a TPU's compiler has decided before it generates code: program and memory.

Generating code takes over 95% of the compiler's time, more than an hour for a full-size
step. No figure depends on it. So the compiler writes down its plan (XLA's option
``xla_dump_to``), and the caller does not wait for more. The plan is two files: the
program after all optimizations, as HLO, and the list of its allocations:

    allocation 3: size 6553600, page 0, parameter 3, shape |f32[1280,1280]| at …:
    allocation 95: size 26214400, page 0, maybe-live-out:
    allocation 117: size 86442016, page 0, preallocated-temp:
"""

import dataclasses
import re
import threading
from pathlib import Path
from typing import Any

_PROGRAM = "*.after_optimizations_after_buffer_assignment.txt"
_ALLOCATIONS = "*.after_optimizations-buffer-assignment.txt"
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+), (.*):$", re.MULTILINE)
# Between two looks at the folder.
_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Plan:
    """A program as the compiler will generate it.

    Attributes:
        text: The program, as HLO.
        argument_bytes: Its arguments in memory, padded.
        output_bytes: Its results that are not arguments updated in place.
        temporary_bytes: The most memory that it needs beside both.
    """

    text: str
    argument_bytes: float
    output_bytes: float
    temporary_bytes: float


def plan_program(lowered: Any, folder: Path) -> Plan:
    """Return the compiler's plan; a thread of the compiler may still run then.

    Args:
        lowered: Result of ``lower(lowering_platforms=("tpu",))``.
        folder: An empty folder for what the compiler writes.

    Raises:
        Exception: What the compiler raised, if it refuses the program.
        RuntimeError: If it ended without a plan.
    """
    failures: list[Exception] = []

    def compile_to_the_end() -> None:
        try:
            lowered.compile(compiler_options={"xla_dump_to": str(folder)})
        except Exception as error:
            failures.append(error)

    compiling = threading.Thread(target=compile_to_the_end, daemon=True)
    compiling.start()
    plan = None
    while plan is None and compiling.is_alive():
        compiling.join(_SECONDS)
        plan = read_plan(folder)
    if failures:
        raise failures[0]
    if plan is None:
        raise RuntimeError(f"the compiler wrote no plan into {folder}")
    return plan


def read_plan(folder: Path) -> Plan | None:
    """Read the files of a plan; None while one is missing or not complete."""
    # The compiler writes the list of allocations first.
    programs, sizes = sorted(folder.glob(_PROGRAM)), read_sizes(folder)
    if not programs or sizes is None:
        return None
    text = programs[0].read_text(encoding="utf-8")
    # The entry is the last computation, and a line with a bracket alone ends it.
    if "\nENTRY " not in text or not text.rstrip().endswith("\n}"):
        return None
    return Plan(text, *sizes)


def read_sizes(folder: Path) -> tuple[float, float, float] | None:
    """Return the bytes of arguments, results and temporaries; None if not written.

    Args:
        folder: What the compiler writes into.
    """
    lists = sorted(folder.glob(_ALLOCATIONS))
    if not lists:
        return None
    argument = output = temporary = 0.0
    for size, about in _ALLOCATION.findall(lists[0].read_text(encoding="utf-8")):
        # Other colors are other memories, such as the one on the chip.
        if "thread-local" in about or "color" in about:
            continue
        if "parameter" in about:
            argument += int(size)
        elif "maybe-live-out" in about or "output shape" in about:
            output += int(size)
        else:
            temporary += int(size)
    return argument, output, temporary
