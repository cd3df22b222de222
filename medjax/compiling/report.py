"""What preflight found, as lines to read and as JSON."""

from collections.abc import Mapping
from typing import Any

from medjax.compiling.preflight import Estimate, Preflight
from medjax.compiling.run_programs import STEP
from medjax.runs.config import RunConfig

_GB = 1e9
# Bytes. Smaller parts of the memory, such as metrics, are not worth a place.
_LEAST_SHOWN = 1e5


def to_json(found: Preflight, config: RunConfig, price: float | None) -> dict[str, Any]:
    """Return the fields of ``--json``; figures are of one chip, GB are 10⁹ bytes.

    Args:
        found: Results of the preflight.
        config: Config of the run.
        price: Price of one chip for an hour. None if it was not given.
    """
    return {
        "topology": found.topology.name,
        "chips": len(found.topology.devices),
        "chip": found.topology.devices[0].device_kind,
        "compiler": found.topology.compiler,
        "fits": found.fits,
        "memory_gb": {part: size / _GB for part, size in found.memory.items()},
        **{name: _program_json(one) for name, one in found.estimates.items()},
        "largest_batch": found.largest_batch,
        "remat": found.remat,
        "hours": hours(found, config),
        "price": _price(found, config, price),
    }


def _program_json(one: Estimate) -> dict[str, Any]:
    figures = one.figures
    return {
        "images": one.images,
        "tflop": _scaled(figures.flops, 1e12),
        "hbm_gb": _scaled(figures.hbm_bytes, _GB),
        "link_gb": _links(one),
        "arguments_gb": figures.argument_bytes / _GB,
        "temporaries_gb": figures.temporary_bytes / _GB,
        "memory_gb": one.memory_bytes / _GB,
        "kernels": figures.kernels,
        "fits": one.fits,
        "roofline_s": one.roofline,
        "images_per_second": one.images_per_second,
        "bound": one.bound,
    }


def hours(found: Preflight, config: RunConfig) -> float | None:
    """Return the hours of all training steps at the roofline, validation left out."""
    step = found.estimates.get(STEP)
    seconds = None if step is None else step.roofline
    return None if seconds is None else config.train.steps * seconds / 3600


def _price(found: Preflight, config: RunConfig, price: float | None) -> float | None:
    """Return what those hours cost; None without a price."""
    time = hours(found, config)
    if price is None or time is None:
        return None
    return price * time * len(found.topology.devices)


def to_lines(found: Preflight, config: RunConfig, price: float | None) -> list[str]:
    """Return what to print; arguments as for `to_json`."""
    topology = found.topology
    count, chip = len(topology.devices), topology.chip
    kind = chip.name if chip else topology.devices[0].device_kind
    lines = [
        f"{config.task}, {config.data.image_size}², batch {config.data.batch_size}, on "
        f"{count} × {kind} ({topology.compiler}); figures are of one chip"
    ]
    if chip:
        lines.append(
            f"peaks: {chip.tflops:g} TFLOP/s, {chip.hbm_gb_s:g} GB/s of memory, "
            f"{chip.link_gb_s:g} GB/s to other chips, {chip.hbm_gb:g} GB"
        )
    parts = " + ".join(f"{part} {_gb(size)}" for part, size in found.memory.items())
    lines.append(f"memory in training: {parts}")
    for name, one in found.estimates.items():
        lines += _program_lines(name, one)
    lines.append(_verdict(found))
    time = hours(found, config)
    if time is not None:
        cost = _price(found, config, price)
        paid = "" if cost is None else f", {cost:.2f} at {price:g} per chip and hour"
        lines.append(
            f"estimate: {config.train.steps} steps take at least {time:.2g} h{paid} "
            "(validation, sampling and input left out)"
        )
    return lines


def _program_lines(name: str, one: Estimate) -> list[str]:
    figures = one.figures
    if figures.needed_bytes is not None:
        return [f"{name}: needs {_gb(figures.needed_bytes)}, does not fit"]
    assert figures.flops is not None and figures.hbm_bytes is not None
    links = _links(one)
    between = "unknown" if links is None else f"{sum(links.values()):.3g} GB"
    memory = {
        "arguments": figures.argument_bytes,
        "activations and other temporaries": figures.temporary_bytes,
        "results": figures.output_bytes,
        "rest of the training state": one.resident_bytes,
    }
    parts = " + ".join(
        f"{part} {_gb(size)}" for part, size in memory.items() if size >= _LEAST_SHOWN
    )
    lines = [
        f"{name}: {figures.flops / 1e12:.3g} TFLOP, memory traffic "
        f"{_gb(figures.hbm_bytes)}, between chips {between}",
        f"    memory {_gb(one.memory_bytes)}: {parts}",
    ]
    if figures.kernels:
        lines.append(f"    fused kernels: {figures.kernels} calls")
    if one.roofline and one.images_per_second:
        lines.append(
            f"    estimate: at least {one.roofline:.3g} s for {one.images} images, at "
            f"most {one.images_per_second:.3g} images/s a chip; bound by {one.bound}"
        )
    return lines


def _verdict(found: Preflight) -> str:
    said = {True: "fits", False: "does not fit", None: "fits or not: unknown"}
    parts = [said[found.fits]]
    if found.remat is not None:
        parts.append(f"remat {found.remat}")
    if found.largest_batch is not None:
        parts.append(f"largest batch {found.largest_batch}")
    return ", ".join(parts)


def _links(one: Estimate) -> Mapping[str, float] | None:
    links = one.figures.link_bytes
    return None if links is None else {kind: x / _GB for kind, x in links.items()}


def _gb(size: float) -> str:
    return f"{size / _GB:.3g} GB" if size >= 1e8 or not size else f"{size / 1e6:.3g} MB"


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit
