"""Compile a program, and read what the compiler says of it: FLOPs, bytes, memory.

Figures are of one chip and one call. They are kept by the hash of the lowered program,
because a large one compiles for half an hour.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import re
import time
from pathlib import Path
from typing import Any

from medjax import storage
from medjax.compiling.hlo import parse_program
from medjax.compiling.run_programs import RunProgram
from medjax.compiling.topologies import Topology
from medjax.compiling.traffic import Traffic, measure_traffic
from medjax.errors import UserError
from medjax.logs import duration
from medjax.models.attention_cost import extra_cost
from medjax.program_costs import count_flops

logger = logging.getLogger(__name__)

# Changes whenever figures are computed in another way.
_FORMAT = 2
# Of what XLA says when a program does not fit a TPU's memory.
_USED = re.compile(r"Used ([\d.]+)([KMGT]?)i?B? of ([\d.]+)([KMGT]?)i?B? hbm")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Figures:
    """What the compiler says of one call of a program, a chip.

    Attributes:
        flops: FLOPs, with each loop's iterations; None if the program does not fit.
        hbm_bytes: Memory traffic, likewise.
        link_bytes: Bytes sent to other chips, by kind of collective; None if the
            compiled program cannot be read.
        argument_bytes: Arguments in memory, as the chip pads them.
        output_bytes: Results that are not arguments updated in place.
        temporary_bytes: The most that is alive between: activations, gradients.
        needed_bytes: All memory that the program needs, if it does not fit; None if it
            compiles.
        compile_seconds: How long the compiler took.
    """

    flops: float | None
    hbm_bytes: float | None
    link_bytes: dict[str, float] | None
    argument_bytes: float
    output_bytes: float
    temporary_bytes: float
    needed_bytes: float | None
    compile_seconds: float

    @property
    def peak_bytes(self) -> float:
        """All memory that one call needs."""
        if self.needed_bytes is not None:
            return self.needed_bytes
        return self.argument_bytes + self.output_bytes + self.temporary_bytes


def compile_program(program: RunProgram, topology: Topology, cache: Path) -> Figures:
    """Return the figures of a program, from the cache if it was compiled before.

    Args:
        program: What to compile.
        topology: What for.
        cache: Folder of kept figures.

    Raises:
        UserError: If the compiler refuses the program.
    """
    traced = program.function.trace(*program.arguments)
    lowered = _lower(traced, topology)
    name = hashlib.sha256(
        f"{_FORMAT};{topology.name};{topology.compiler};{lowered.as_text()}".encode()
    ).hexdigest()
    file = cache / f"{name[:32]}.json"
    if file.is_file():
        logger.info("%s: figures from %s", program.name, file)
        return Figures(**json.loads(file.read_text(encoding="utf-8")))
    logger.info(
        "compiling the %s for %s; a full-size one takes many minutes",
        program.name,
        topology.name,
    )
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except Exception as error:
        seconds = time.monotonic() - start
        figures = _too_large(error, seconds)
        if figures is None:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"the {program.name} cannot be compiled for {topology.name}: {reason}"
            ) from error
    else:
        seconds = time.monotonic() - start
        figures = _figures(compiled, traced, topology.platform, seconds)
    logger.info("compiled the %s in %s", program.name, duration(seconds))
    storage.make_folder(cache)
    storage.write_text(file, json.dumps(dataclasses.asdict(figures), indent=1))
    return figures


def _lower(traced: Any, topology: Topology) -> Any:
    """Lower a traced program; a TPU that is not there has to be named."""
    if topology.platform == "tpu":
        return traced.lower(lowering_platforms=("tpu",))
    return traced.lower()


def _figures(compiled: Any, traced: Any, platform: str, seconds: float) -> Figures:
    cost = compiled.cost_analysis() or {}
    cost = cost[0] if isinstance(cost, list) else cost
    memory = compiled.memory_analysis()
    count = count_flops(traced, platform)
    # Splash attention, on TPUs alone, declares neither.
    flops, read_again = extra_cost(traced.jaxpr) if platform == "tpu" else (0, 0)
    traffic = _traffic(compiled)
    loops = traffic.loops if traffic else count.loops
    return Figures(
        flops=cost.get("flops", 0.0) * count.loops + flops,
        hbm_bytes=cost.get("bytes accessed", 0.0) * loops + read_again,
        link_bytes=traffic.links if traffic else None,
        argument_bytes=float(memory.argument_size_in_bytes),
        output_bytes=float(memory.output_size_in_bytes - memory.alias_size_in_bytes),
        temporary_bytes=float(memory.temp_size_in_bytes),
        needed_bytes=None,
        compile_seconds=round(seconds, 1),
    )


def _traffic(compiled: Any) -> Traffic | None:
    """Return what the compiled text shows; None if it cannot be had or read."""
    try:
        return measure_traffic(parse_program(compiled.as_text()))
    except Exception as error:
        logger.warning(
            "the compiled program cannot be read (%s): traffic between chips is "
            "unknown, and memory traffic is multiplied by the loops of the FLOPs",
            " ".join(str(error).split())[:200],
        )
        return None


def _too_large(error: Exception, seconds: float) -> Figures | None:
    """Return how much memory a program lacks, if the compiler refused it for that."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "memory" not in text.lower():
        return None
    found = _USED.search(text)
    if found is None:
        return None
    amount, unit, _, _ = found.groups()
    return Figures(
        flops=None,
        hbm_bytes=None,
        link_bytes=None,
        argument_bytes=0.0,
        output_bytes=0.0,
        temporary_bytes=0.0,
        needed_bytes=float(amount) * _UNITS[unit],
        compile_seconds=round(seconds, 1),
    )


@functools.cache
def figures_folder() -> Path:
    """Return the folder of kept figures in the user's cache."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "medjax" / "preflight"
