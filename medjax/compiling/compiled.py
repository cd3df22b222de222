"""Compile a program, and read what the compiler says of it: FLOPs, bytes, memory.

Figures are of one chip and one call. They are kept by the hash of the lowered program,
because a large one compiles for minutes.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medjax import storage
from medjax.compiling.hlo import parse_program
from medjax.compiling.operations import count_kernels, count_operations
from medjax.compiling.plan import Plan, plan_program, read_sizes
from medjax.compiling.process import call_in_process
from medjax.compiling.run_programs import RunProgram
from medjax.compiling.topologies import LOCAL, Topology, find_topology
from medjax.compiling.traffic import Traffic, measure_traffic
from medjax.errors import UserError
from medjax.logs import duration
from medjax.models.attention_cost import extra_cost
from medjax.program_costs import count_flops, program_flops

logger = logging.getLogger(__name__)

# Changes whenever figures are computed in another way.
_FORMAT = 5
# Of what XLA says when a program does not fit a TPU's memory.
_USED = re.compile(r"Used ([\d.]+)([KMGT]?)i?B? of ([\d.]+)([KMGT]?)i?B? hbm")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Figures:
    """Figures of one call of a program, on one chip.

    Attributes:
        flops: FLOPs, with each loop's iterations; None if the program does not fit.
        hbm_bytes: Bytes of memory traffic, with each loop's iterations.
        link_bytes: Bytes sent to other chips, by kind of collective; None if the
            compiled program cannot be read.
        argument_bytes: Arguments in memory, as the chip pads them.
        output_bytes: Bytes of results, without arguments updated in place.
        temporary_bytes: Peak bytes of temporaries: activations, gradients.
        kernels: Calls of Pallas kernels in a TPU program, as of fused attention.
        needed_bytes: All memory that the program needs, if it does not fit; None if it
            compiles.
        compile_seconds: Time of the compilation, in seconds.
    """

    flops: float | None
    hbm_bytes: float | None
    link_bytes: dict[str, float] | None
    argument_bytes: float
    output_bytes: float
    temporary_bytes: float
    kernels: int = 0
    needed_bytes: float | None = None
    compile_seconds: float = 0.0

    @property
    def peak_bytes(self) -> float:
        """All memory that one call needs."""
        if self.needed_bytes is not None:
            return self.needed_bytes
        return self.argument_bytes + self.output_bytes + self.temporary_bytes


def compile_program(
    make: Callable[[Topology], RunProgram], topology: Topology, cache: Path
) -> Figures:
    """Return the figures of a program, from the cache if it was compiled before.

    A TPU's compiler runs in a process of its own, because only the end of a process
    stops it before it generates code.

    Args:
        make: Returns the program for a topology. It can be pickled.
        topology: Devices to compile for.
        cache: Folder with the figures of earlier calls.

    Raises:
        UserError: If the compiler refuses the program.
    """
    if topology.name == LOCAL:
        return _compile(make(topology), topology, cache, None)
    with storage.temporary_folder() as folder:
        return call_in_process(_compile_for, make, topology.name, cache, folder)


def _compile_for(
    make: Callable[[Topology], RunProgram], name: str, cache: Path, folder: Path
) -> Figures:
    topology = find_topology(name)
    return _compile(make(topology), topology, cache, folder)


def _compile(
    program: RunProgram, topology: Topology, cache: Path, folder: Path | None
) -> Figures:
    """Compile a program whole, or up to its plan if a folder for the plan is given."""
    traced = program.function.trace(*program.arguments)
    lowered = _lower(traced, topology)
    name = hashlib.sha256(
        f"{_FORMAT};{topology.name};{topology.compiler};{lowered.as_text()}".encode()
    ).hexdigest()
    file = cache / f"{name[:32]}.json"
    if file.is_file():
        logger.info("%s: figures from %s", program.name, file)
        return Figures(**json.loads(file.read_text(encoding="utf-8")))
    logger.info("compiling the %s for %s", program.name, topology.name)
    start = time.monotonic()
    found: Any
    try:
        found = lowered.compile() if folder is None else plan_program(lowered, folder)
    except Exception as error:
        needed = _needed_bytes(error, folder)
        if needed is None:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"the {program.name} cannot be compiled for {topology.name}: {reason}"
            ) from error
        figures = Figures(None, None, None, 0.0, 0.0, 0.0, needed_bytes=needed)
    else:
        figures = (
            _of_compiled(found, traced, topology.platform)
            if folder is None
            else _of_plan(found, traced)
        )
    seconds = time.monotonic() - start
    figures = dataclasses.replace(figures, compile_seconds=round(seconds, 1))
    logger.info("compiled the %s in %s", program.name, duration(seconds))
    storage.make_folder(cache)
    storage.write_text(file, json.dumps(dataclasses.asdict(figures), indent=1))
    return figures


def _lower(traced: Any, topology: Topology) -> Any:
    """Lower a traced program. The platform is named, because the TPU may be missing."""
    if topology.platform == "tpu":
        return traced.lower(lowering_platforms=("tpu",))
    return traced.lower()


def _of_plan(plan: Plan, traced: Any) -> Figures:
    """Read a TPU program, in which every operation is visible."""
    program = parse_program(plan.text)
    traffic = measure_traffic(program)
    # Splash attention declares neither.
    flops, read_again = extra_cost(traced.jaxpr)
    return Figures(
        flops=count_operations(program) + flops,
        hbm_bytes=traffic.hbm + read_again,
        link_bytes=traffic.links,
        argument_bytes=plan.argument_bytes,
        output_bytes=plan.output_bytes,
        temporary_bytes=plan.temporary_bytes,
        kernels=count_kernels(program),
    )


def _of_compiled(compiled: Any, traced: Any, platform: str) -> Figures:
    """Ask the compiler, which counts the body of each loop once."""
    cost = compiled.cost_analysis() or {}
    cost = cost[0] if isinstance(cost, list) else cost
    memory = compiled.memory_analysis()
    count = count_flops(traced, platform)
    traffic = _traffic(compiled.as_text())
    loops = traffic.loops if traffic else count.loops
    # Splash attention, on TPUs alone, declares neither.
    flops, read_again = extra_cost(traced.jaxpr) if platform == "tpu" else (0, 0)
    return Figures(
        flops=program_flops(traced, platform, cost.get("flops", 0.0)) + flops,
        hbm_bytes=cost.get("bytes accessed", 0.0) * loops + read_again,
        link_bytes=traffic.links if traffic else None,
        argument_bytes=float(memory.argument_size_in_bytes),
        output_bytes=float(memory.output_size_in_bytes - memory.alias_size_in_bytes),
        temporary_bytes=float(memory.temp_size_in_bytes),
    )


def _traffic(text: str) -> Traffic | None:
    """Return what the compiled text shows; None if it cannot be read."""
    try:
        return measure_traffic(parse_program(text))
    except Exception as error:
        logger.warning(
            "the compiled program cannot be read (%s): traffic between chips is "
            "unknown, and memory traffic is multiplied by the loops of the FLOPs",
            " ".join(str(error).split())[:200],
        )
        return None


def _needed_bytes(error: Exception, folder: Path | None) -> float | None:
    """Return how much memory a program needs, if the compiler refused it for that.

    A TPU's compiler writes its list of allocations before it refuses a program.
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "memory" not in text.lower():
        return None
    if folder is not None and (sizes := read_sizes(folder)) is not None:
        return sum(sizes)
    found = _USED.search(text)
    return None if found is None else float(found[1]) * _UNITS[found[2]]


@functools.cache
def figures_folder() -> Path:
    """Return the folder of kept figures in the user's cache."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "medjax" / "preflight"
