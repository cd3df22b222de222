"""Whether a run fits hardware, and what its programs cost there, by the compiler.

Times are a roofline: the longest of arithmetic, memory traffic and traffic between
chips, each at the chip's peak. Nothing real is faster, and little comes near it.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import get_args, get_type_hints

from medjax import meshes
from medjax.chips import Chip
from medjax.compiling.compiled import Figures, compile_program
from medjax.compiling.run_programs import (
    PROGRAMS,
    STEP,
    RunPrograms,
    bytes_per_chip,
    run_program,
    run_programs,
)
from medjax.compiling.topologies import Topology
from medjax.errors import UserError
from medjax.runs.config import RunConfig

logger = logging.getLogger(__name__)

# How often a largest batch may turn out too large when it is verified.
_ATTEMPTS = 3


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One program on one chip.

    Attributes:
        figures: Figures of the compiler.
        images: Images that one call takes, on all chips together.
        chips: Number of chips.
        chip: Its peak figures. None if they are unknown.
        resident_bytes: What else is in memory meanwhile: all of the training state
            that is not among the program's arguments.
    """

    figures: Figures
    images: int
    chips: int
    chip: Chip | None
    resident_bytes: float

    @property
    def seconds(self) -> dict[str, float]:
        """Time of each resource at its peak; empty without peaks or figures."""
        chip, figures = self.chip, self.figures
        if chip is None or figures.flops is None or figures.hbm_bytes is None:
            return {}
        links = sum((figures.link_bytes or {}).values())
        return {
            "arithmetic": figures.flops / (chip.tflops * 1e12),
            "memory traffic": figures.hbm_bytes / (chip.hbm_gb_s * 1e9),
            "traffic between chips": links / (chip.link_gb_s * 1e9),
        }

    @property
    def roofline(self) -> float | None:
        """Seconds of one call, at least; None if unknown."""
        return max(self.seconds.values(), default=None)

    @property
    def bound(self) -> str | None:
        """What takes the longest; None if unknown."""
        seconds = self.seconds
        return max(seconds, key=lambda name: seconds[name]) if seconds else None

    @property
    def images_per_second(self) -> float | None:
        """Images of one chip in a second, at most; None if unknown."""
        seconds = self.roofline
        return self.images / seconds / self.chips if seconds else None

    @property
    def memory_bytes(self) -> float:
        """All memory in use while it runs."""
        return self.figures.peak_bytes + self.resident_bytes

    @property
    def fits(self) -> bool | None:
        """Whether the chip has that much; None if its memory is unknown."""
        if self.figures.needed_bytes is not None:
            return False
        return (
            None if self.chip is None else self.memory_bytes <= self.chip.hbm_gb * 1e9
        )


@dataclasses.dataclass(frozen=True)
class Preflight:
    """Results of a preflight.

    Attributes:
        topology: Chips that the figures are for.
        estimates: Estimate of each program, by its name.
        memory: Bytes a chip, by part of the training state.
        remat: The config's, or the least with which the step fits; None if none does.
        largest_batch: The largest ``data.batch_size`` with that remat, or with the
            most if that is None; None if not asked for, or none fits.
    """

    topology: Topology
    estimates: Mapping[str, Estimate]
    memory: Mapping[str, int]
    remat: str | None
    largest_batch: int | None

    @property
    def fits(self) -> bool | None:
        """Whether all programs fit; None if the chip's memory is unknown."""
        answers = {one.fits for one in self.estimates.values()}
        if False in answers:
            return False
        return None if None in answers else True


def preflight(
    config: RunConfig,
    topology: Topology,
    cache: Path,
    names: tuple[str, ...] = PROGRAMS,
    max_batch: bool = False,
) -> Preflight:
    """Compile a run's programs, and say what they need.

    Args:
        config: Config of the run.
        topology: Devices to compile for.
        cache: Folder with the figures of earlier calls.
        names: Names of the programs to compile.
        max_batch: Whether to look for the least remat and the largest batch too, which
            compiles the step several times.

    Raises:
        UserError: If the run cannot start with this config on these chips.
    """
    ready = run_programs(config, topology.devices)
    estimates = {
        name: _estimate(config, ready, name, topology, cache) for name in names
    }
    fits = estimates[STEP].fits if STEP in estimates else None
    remat = None if fits is False else remat_of(config)
    largest = None
    if max_batch:
        found = least_remat(config, topology, cache)
        remat = None if found is None else remat_of(found)
        # If none fits at this batch, a smaller batch may fit with the most.
        most = with_remat(config, (remat_choices(config) or (None,))[-1])
        largest = largest_batch(found or most, topology, cache)
    memory = {part: bytes_per_chip(tree) for part, tree in ready.parts.items()}
    return Preflight(topology, estimates, memory, remat, largest)


def estimate_step(config: RunConfig, topology: Topology, cache: Path) -> Estimate:
    """Compile a run's step alone; see `preflight`."""
    ready = run_programs(config, topology.devices)
    return _estimate(config, ready, STEP, topology, cache)


def _estimate(
    config: RunConfig, ready: RunPrograms, name: str, topology: Topology, cache: Path
) -> Estimate:
    program = ready.programs[name]
    make = functools.partial(run_program, config, name)
    figures = compile_program(make, topology, cache)
    held = sum(bytes_per_chip(ready.parts[part]) for part in ready.parts)
    own = bytes_per_chip(program.arguments)
    resident = 0.0 if name == STEP else max(0.0, held - own)
    chips = len(topology.devices)
    return Estimate(figures, program.images, chips, topology.chip, resident)


def remat_choices(config: RunConfig) -> tuple[str, ...]:
    """Return the values of ``model.remat``, from the least; none if there is no key."""
    return get_args(get_type_hints(type(config.model)).get("remat"))


def remat_of(config: RunConfig) -> str | None:
    """Return a config's remat; None for a model without."""
    return vars(config.model).get("remat")


def with_remat(config: RunConfig, value: str | None) -> RunConfig:
    """Return a config with another ``model.remat``; None changes nothing."""
    if value is None:
        return config
    model = dataclasses.replace(config.model, remat=value)
    return dataclasses.replace(config, model=model)


def with_batch(config: RunConfig, size: int) -> RunConfig:
    """Return a config with another ``data.batch_size``."""
    data = dataclasses.replace(config.data, batch_size=size)
    return dataclasses.replace(config, data=data)


def least_remat(config: RunConfig, topology: Topology, cache: Path) -> RunConfig | None:
    """Return the config with the least remat whose step fits; None if none does.

    Raises:
        UserError: If the chip's memory is unknown.
    """
    if topology.chip is None:
        kind = topology.devices[0].device_kind
        raise UserError(
            f"--max_batch: the memory of '{kind}' is unknown; expected a TPU topology "
            "or a known GPU"
        )
    for value in remat_choices(config) or (None,):
        tried = with_remat(config, value)
        if estimate_step(tried, topology, cache).fits:
            return tried
    return None


def largest_batch(config: RunConfig, topology: Topology, cache: Path) -> int | None:
    """Return the largest ``data.batch_size`` whose step fits.

    Memory grows with the batch along a line, which two batches give. One more compile
    verifies its answer; if it is too large, a smaller one is tried.

    Args:
        config: Config of the run.
        topology: Devices to compile for.
        cache: Folder with the figures of earlier calls.
    """
    assert topology.chip is not None
    mesh = meshes.make_mesh(config.mesh, topology.devices)
    unit = config.train.gradient_accumulation_steps * meshes.batch_shards(mesh)
    first = config.data.batch_size
    second = first // 2 // unit * unit if first >= 2 * unit else 2 * first
    capacity = topology.chip.hbm_gb * 1e9
    sizes = {
        size: estimate_step(with_batch(config, size), topology, cache)
        for size in (first, second)
    }
    fitting = [size for size, one in sizes.items() if one.fits]
    line = {size: one.memory_bytes for size, one in sizes.items()}
    size = largest_on_line(line, capacity, unit)
    for _ in range(_ATTEMPTS):
        if size in sizes or size <= max(fitting, default=0):
            break
        logger.info("largest batch by a line through %s: %d", sorted(line), size)
        if estimate_step(with_batch(config, size), topology, cache).fits:
            return size
        size = (size * 15 // 16) // unit * unit
    return max(fitting, default=None)


def largest_on_line(line: Mapping[int, float], capacity: float, unit: int) -> int:
    """Return the largest multiple of `unit` below `capacity` on a line.

    Args:
        line: Bytes at two batches.
        capacity: Bytes of a chip.
        unit: What a batch is a multiple of.
    """
    (low, least), (high, most) = sorted(line.items())
    slope = (most - least) / (high - low)
    if slope <= 0:
        return high
    return max(unit, math.floor((capacity - least) / slope + low) // unit * unit)
