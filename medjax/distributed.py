"""Several hosts: one run in several processes, each with its own devices.

Every host runs the same command. jax joins their devices to one mesh, and every step
needs all of them. So a host must inform the others of three things:

* It has failed. It writes this to jax's key-value store. A thread of every other host
  waits for that, because the main threads may be waiting on a device.
* It wants to stop: `Agreement`.
* It is about to train something else: `check_same`.

If a host dies without a message, jax notices the missing heartbeat or the broken
connection. It then ends the processes of the other hosts. Between CPUs, gloo may notice
first and end them.
"""

import itertools
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medjax.arrays import Array
from medjax.errors import Stopped, UserError
from medjax.hosts import Hosts, connect
from medjax.jax_private import key_value_store

logger = logging.getLogger(__name__)

LOST_EXIT_CODE = 1
_FAILURE = "medjax/failure"
_GATHERED = "medjax/gathered"
# Numbers the calls of `gather`. All hosts make the same calls in the same order.
_GATHERINGS = itertools.count()
_LONGEST_WAIT_MS = 10 * 24 * 3600 * 1000
# A host that fails in the same way at the same time should report that itself.
_SECONDS_TO_FAIL_TOO = 3.0


@contextmanager
def joined(hosts: Hosts) -> Iterator[None]:
    """Run the block as one of `hosts`, or alone if no other host exists.

    After a failure in the block, the processes of the other hosts end too. Hosts other
    than the first log only warnings and errors.

    Raises:
        UserError: If the other hosts cannot be joined.
    """
    if not connect(hosts) or jax.process_count() == 1:
        yield
        return
    if jax.process_index() != 0:
        logging.getLogger("medjax").setLevel(logging.WARNING)
    logger.info("%d hosts", jax.process_count())
    ending = threading.Lock()
    # A daemon thread, because it cannot be woken if the store is unreachable.
    listener = threading.Thread(target=_listen, args=(ending,), daemon=True)
    listener.start()
    failure = ""
    try:
        yield
    except Stopped:
        raise
    except (Exception, KeyboardInterrupt) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        failure = f"host {jax.process_index()} failed: {reason}"
        raise
    finally:
        if ending.acquire(blocking=False):
            _end(failure)
        # A thread that still waits in jax at exit would abort the process.
        listener.join()


def check_same(subject: str, facts: Mapping[str, Any]) -> None:
    """Check that all hosts pass the same facts. Wait for all hosts.

    Args:
        subject: Subject of the facts, for errors.
        facts: Values by name, which JSON can hold.

    Raises:
        UserError: Names the hosts that differ from the first, and the facts.
    """
    each = gather(dict(facts))
    found = [
        f"{key} is {theirs.get(key)!r} on host {host} and {each[0].get(key)!r} on "
        "host 0"
        for host, theirs in enumerate(each)
        for key in sorted(each[0].keys() | theirs.keys())
        if each[0].get(key) != theirs.get(key)
    ]
    if found:
        raise UserError(
            f"the hosts do not have the same {subject}: {'; '.join(found)}. Start the "
            "same command on all hosts, with the same data and weights"
        )


def gather(value: Any) -> list[Any]:
    """Return the value that each host passes, in their order. Wait for all hosts.

    A host may come hours after another: unlike a computation, this has no time limit.

    Args:
        value: A value that JSON can hold.
    """
    if jax.process_count() == 1:
        return [value]
    number, host, store = next(_GATHERINGS), jax.process_index(), key_value_store()
    store.key_value_set(f"{_GATHERED}/{number}/{host}", json.dumps(value))
    each = [
        json.loads(
            store.blocking_key_value_get(
                f"{_GATHERED}/{number}/{other}", _LONGEST_WAIT_MS
            )
        )
        for other in range(jax.process_count())
    ]
    # All hosts have read the value before, because they have passed the next one.
    if number:
        store.key_value_delete(f"{_GATHERED}/{number - 1}/{host}")
    return each


def wait_for_all() -> None:
    """Wait until all hosts have called this, however long that takes."""
    gather(None)


class Agreement:
    """The largest number that any host passes, the same on all hosts.

    Each call queues the computation behind the current training step. It returns the
    result of the previous call. So all hosts get the same number in the same call, with
    a delay of one call. Without this delay, the devices would be idle while the hosts
    wait. A single host gets its number at once, and nothing is computed.
    """

    def __init__(self) -> None:
        """Begin. Every host must do this, and must then call equally often."""
        self._pending: Array | None = None
        mesh = Mesh(np.asarray(jax.devices()), ("device",))
        self._each = NamedSharding(mesh, PartitionSpec("device"))
        self._largest = jax.jit(
            lambda numbers: numbers.max(),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )

    def largest(self, number: int) -> int:
        """Return the largest number that a host passed in the call before this one.

        The first call returns 0. A single host gets `number` at once.

        Args:
            number: Number of this host, at least 0.
        """
        if jax.process_count() == 1:
            return number
        before = self._pending
        numbers = np.full(jax.local_device_count(), number, np.int32)
        self._pending = self._largest(
            jax.make_array_from_process_local_data(self._each, numbers)
        )
        return 0 if before is None else int(before)


def _end(failure: str) -> None:
    """Send a failure, if any, to the other hosts; release this host's thread."""
    own = jax.process_index()
    messages = dict.fromkeys(range(jax.process_count()), failure) if failure else {}
    try:
        for host, message in (messages | {own: ""}).items():
            name = f"{_FAILURE}/{host}"
            key_value_store().key_value_set(name, message, allow_overwrite=True)
    except jax.errors.JaxRuntimeError as error:
        logger.warning("cannot reach the other hosts: %s", error)


def _listen(ending: threading.Lock) -> None:
    """Wait until a host reports a failure; then end this process.

    Args:
        ending: The thread that acquires it, this one or the main one, ends the process.
    """
    name = f"{_FAILURE}/{jax.process_index()}"
    try:
        failure = key_value_store().blocking_key_value_get(name, _LONGEST_WAIT_MS)
    except jax.errors.JaxRuntimeError as error:
        logger.warning("cannot reach the other hosts: %s", error)
        return
    if failure == "":
        return
    time.sleep(_SECONDS_TO_FAIL_TOO)
    if not ending.acquire(blocking=False):
        return
    sys.stderr.write(f"error: {failure}; so host {jax.process_index()} stops too\n")
    sys.stderr.flush()
    # All hosts wait for each other here, so that none considers another dead.
    jax.distributed.shutdown()
    # The main thread may wait for a device forever.
    os._exit(LOST_EXIT_CODE)
