"""Chips to compile for: those of a TPU topology, without a TPU, or this machine's.

    v5e:2x4   eight v5e chips        v6e:1   one chip
    v5p:2x2x1 four v5p chips         local   the devices of this machine

A TPU's compiler is in the package libtpu, which compiles without a TPU.
"""

import dataclasses
import importlib.metadata
import os
import re
from pathlib import Path

import jax

from medjax.chips import CHIPS, Chip, find_chip, silence_libtpu
from medjax.errors import UserError, nearest

LOCAL = "local"
# What libtpu (0.0.52) knows, by generation: the smallest topology and what may follow.
_FLAT = ("1", "1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    *("1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    *("8x8x16", "8x16x16"),
)
SHAPES = {"v5e": _FLAT, "v6e": _FLAT, "v5p": _CUBES, "v4": _CUBES}
_WHOLE_HOST = {"v5e": "2x2", "v6e": "2x2", "v5p": "2x2x1", "v4": "2x2x1"}
# Without these libtpu asks Google's servers where it runs, and locks out others.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # It logs what it misses here to stderr.
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
        name: As the user wrote it.
        devices: jax's devices.
        chip: Peak figures of one device. None if they are unknown.
        platform: jax's name of the platform, ``tpu``.
        compiler: Name and version of the compiler, as results depend on it.
    """

    name: str
    devices: tuple[jax.Device, ...]
    chip: Chip | None
    platform: str
    compiler: str


def known_topologies() -> list[str]:
    """Return the names of all topologies."""
    return [LOCAL, *(f"{kind}:{shape}" for kind in SHAPES for shape in SHAPES[kind])]


def prepare_environment(name: str) -> None:
    """Set what libtpu reads from the environment. To be called before jax starts.

    Args:
        name: A topology; ``local`` needs nothing.
    """
    if name == LOCAL:
        return
    silence_libtpu()
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # libtpu ends the process at a flag that it does not know, such as one for GPUs.
    os.environ.pop("XLA_FLAGS", None)
    # A TPU or GPU of this machine is not needed, and may be in use.
    jax.config.update("jax_platforms", "cpu")


def find_topology(name: str) -> Topology:
    """Return the devices of a topology.

    Raises:
        UserError: If the name is unknown, or libtpu is missing or does not start.
    """
    if name == LOCAL:
        devices = tuple(jax.devices())
        chip = find_chip(devices[0].device_kind)
        kind = devices[0].platform
        return Topology(name, devices, chip, kind, f"jaxlib {_version('jaxlib')}")
    check_topology(name)
    prepare_environment(name)
    library = _libtpu()
    # jax would import the package, which a folder called libtpu can shadow.
    os.environ.setdefault("TPU_LIBRARY_PATH", str(library))
    kind, _, shape = name.partition(":")
    one = shape == "1"
    described = f"{kind}:{_WHOLE_HOST[kind] if one else shape}"
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(described, "tpu")
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--topology={name}: libtpu {_version('libtpu')} does not describe it: "
            f"{reason}. Known topologies: {', '.join(known_topologies())}"
        ) from error
    devices = tuple(found.devices[:1] if one else found.devices)
    return Topology(
        name, devices, CHIPS[kind], "tpu", f"libtpu {_version('libtpu') or 'unknown'}"
    )


def check_topology(name: str) -> None:
    """Check a topology's name, without jax.

    Raises:
        UserError: If it is unknown; it names the nearest.
    """
    known = known_topologies()
    if name in known:
        return
    kind, colon, shape = name.partition(":")
    hint = nearest(name, known)
    if kind in SHAPES and not colon:
        hint = f"; did you mean '{kind}:1'?"
    elif kind in SHAPES and re.fullmatch(r"\d+(x\d+)*", shape):
        count = _chips(shape)
        closest = min(SHAPES[kind], key=lambda one: (abs(_chips(one) - count), one))
        hint = f"; did you mean '{kind}:{closest}'?"
    generations = ", ".join(f"{one}:{SHAPES[one][1]}" for one in SHAPES)
    raise UserError(
        f"--topology={name}: unknown topology{hint or '.'} Expected a TPU generation "
        f"and its shape ({generations} …), v6e:1 for one chip, or local for this "
        "machine"
    )


def _chips(shape: str) -> int:
    count = 1
    for side in shape.split("x"):
        count *= int(side)
    return count


def _libtpu() -> Path:
    """Return the file of the TPU's compiler.

    Raises:
        UserError: If the package libtpu is not installed.
    """
    if given := os.environ.get("TPU_LIBRARY_PATH"):
        return Path(given)
    try:
        package = importlib.metadata.distribution("libtpu")
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            "compiling for a TPU needs the package libtpu, which is not installed: "
            "pip install --no-deps libtpu==0.0.52 (Linux on x86-64; licensed under the "
            "Google Cloud Platform Terms of Service). --topology=local compiles for "
            "this machine without it"
        ) from error
    return Path(str(package.locate_file("libtpu/libtpu.so")))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
