"""TPU slices as Google's platforms name them, by the topologies of preflight.

Sources:

* cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus: machine types of GKE,
  chips of each machine, values of ``cloud.google.com/gke-tpu-accelerator``.
* cloud.google.com/tpu/docs/v4, v5e, v5p, v6e: types of the Cloud TPU API. They count
  chips for v5e and v6e, and TensorCores, two for each chip, for v4 and v5p.
* cloud.google.com/tpu/docs/runtimes: versions of the software for JAX.
* github.com/AI-Hypercomputer/xpk, src/xpk/core/system_characteristics.py: the same
  table for GKE, in code.

A slice of 2x4 can be one machine of eight chips, or two machines of four. Here it is
one.
"""

import dataclasses
import math

from medjax.compiling.topologies import LOCAL, SHAPES, check_topology
from medjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Generation:
    """A TPU generation.

    Attributes:
        accelerator: Value of GKE's label ``cloud.google.com/gke-tpu-accelerator``.
        machine: Machine type without its number of chips.
        cloud_type: Prefix of the type in the Cloud TPU API.
        cores: Number that this type counts for each chip.
        runtime: Version of the software of a Cloud TPU VM.
    """

    accelerator: str
    machine: str
    cloud_type: str
    cores: int
    runtime: str


GENERATIONS = {
    "v4": Generation("tpu-v4-podslice", "ct4p-hightpu", "v4", 2, "tpu-ubuntu2204-base"),
    "v5e": Generation(
        *("tpu-v5-lite-podslice", "ct5lp-hightpu", "v5litepod", 1),
        "v2-alpha-tpuv5-lite",
    ),
    "v5p": Generation("tpu-v5p-slice", "ct5p-hightpu", "v5p", 2, "v2-alpha-tpuv5"),
    "v6e": Generation("tpu-v6e-slice", "ct6e-standard", "v6e", 1, "v2-alpha-tpuv6e"),
}
# Chips of one machine, where this is not four.
_ONE_MACHINE = {"1x1": 1, "2x4": 8}
_USUAL_CHIPS = 4


@dataclasses.dataclass(frozen=True)
class Slice:
    """One TPU slice.

    Attributes:
        name: The topology as the user wrote it, ``v6e:4x4``.
        shape: Its shape, ``4x4``.
        chips: Number of chips.
        chips_per_host: Number of chips of each machine.
        generation: Its generation.
    """

    name: str
    shape: str
    chips: int
    chips_per_host: int
    generation: Generation

    @property
    def hosts(self) -> int:
        """Number of machines."""
        return self.chips // self.chips_per_host

    @property
    def machine_type(self) -> str:
        """Machine type of each host in GKE and Compute Engine."""
        return f"{self.generation.machine}-{self.chips_per_host}t"

    @property
    def accelerator_type(self) -> str:
        """Type in the Cloud TPU API."""
        return f"{self.generation.cloud_type}-{self.chips * self.generation.cores}"


def find_slice(name: str) -> Slice:
    """Return the slice of a topology.

    Args:
        name: As for ``medjax preflight --topology``, ``v6e:4x4``.

    Raises:
        UserError: If the topology is unknown, or nobody rents it.
    """
    check_topology(name)
    if name == LOCAL:
        raise UserError(f"--topology={name}: expected a TPU to rent, such as v6e:2x4")
    kind, _, shape = name.partition(":")
    flat = SHAPES[kind][1] == "1x1"
    if shape == "1" and not flat:
        raise UserError(
            f"--topology={name}: {kind} is rented by machines of four chips: "
            f"{kind}:2x2x1"
        )
    shape = "1x1" if shape == "1" else shape
    chips = math.prod(map(int, shape.split("x")))
    per_host = _ONE_MACHINE.get(shape, _USUAL_CHIPS) if flat else _USUAL_CHIPS
    return Slice(name, shape, chips, per_host, GENERATIONS[kind])
