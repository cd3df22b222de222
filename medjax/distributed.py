"""Several hosts: one run in several processes, each with its own devices.

Every host runs the same program on the same config; jax joins their devices to one
mesh. What only one of them knows, that it was asked to stop, the others must hear of,
for each update needs all of them.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medjax.arrays import Array


class Agreement:
    """The largest of the numbers that the hosts give, the same on each of them.

    Waiting for the others at every update would leave the devices idle. So a call
    starts to find out, queued behind the update dispatched before it, and returns what
    the call before it started: all hosts hear the same at the same call, one late. A
    single host hears at once, and nothing is computed.
    """

    def __init__(self) -> None:
        """Begin; every host must, and then call as often as the others."""
        self._pending: Array | None = None
        mesh = Mesh(np.asarray(jax.devices()), ("device",))
        self._each = NamedSharding(mesh, PartitionSpec("device"))
        self._largest = jax.jit(
            lambda numbers: numbers.max(),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )

    def largest(self, number: int) -> int:
        """Return the largest number that a host gave in the call before this one.

        Args:
            number: This host's, at least 0. The call before the first gave 0.
        """
        if jax.process_count() == 1:
            return number
        before = self._pending
        numbers = np.full(jax.local_device_count(), number, np.int32)
        self._pending = self._largest(
            jax.make_array_from_process_local_data(self._each, numbers)
        )
        return 0 if before is None else int(before)
