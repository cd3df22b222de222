"""Several hosts: one run in several processes, each with its own devices.

Every host runs the same command; jax joins their devices to one mesh, and every update
needs all of them. So what only one host knows, the others must hear of:

* that it has failed: it says so in jax's key-value store, which a thread of every other
  host listens to, since their main threads may be waiting for it on a device;
* that it wants to stop: `Agreement`;
* that it is about to train something else: `check_same`.

A host that dies without a word is noticed by jax, from its missing heartbeat or the
broken connection, and jax then ends the processes of the others; between CPUs, gloo may
be the first to notice and end them.
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
# All hosts check the same subjects in the same order, some of them again.
_CHECKS = itertools.count()
_LONGEST_WAIT_MS = 10 * 24 * 3600 * 1000
# A host that fails in the same way at the same time shall tell of it itself.
_SECONDS_TO_FAIL_TOO = 3.0


@contextmanager
def joined(hosts: Hosts) -> Iterator[None]:
    """Run what is inside as one of `hosts`; alone where there are no others.

    A failure inside is told to the other hosts, whose processes then end too. Only the
    first host logs what is not a warning.

    Raises:
        UserError: If the other hosts do not come.
    """
    if not connect(hosts) or jax.process_count() == 1:
        yield
        return
    if jax.process_index() != 0:
        logging.getLogger("medjax").setLevel(logging.WARNING)
    logger.info("%d hosts", jax.process_count())
    ending = threading.Lock()
    # A daemon, for where the store is out of reach.
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
        # A thread that still waited in jax when Python ends would abort the process.
        listener.join()


def check_same(subject: str, facts: Mapping[str, Any]) -> None:
    """Check that every host gives the same facts; waits for all of them.

    Args:
        subject: What they are about.
        facts: JSON-able, by name.

    Raises:
        UserError: Names the hosts that differ from the first, and in what.
    """
    if jax.process_count() == 1:
        return
    folder = f"medjax/check/{next(_CHECKS)}"
    store = key_value_store()
    store.key_value_set(f"{folder}/{jax.process_index()}", json.dumps(facts))
    first: dict[str, Any] = {}
    found = []
    for host in range(jax.process_count()):
        text = store.blocking_key_value_get(f"{folder}/{host}", _LONGEST_WAIT_MS)
        theirs = json.loads(text)
        first = first or theirs
        for key in sorted(first.keys() | theirs.keys()):
            if first.get(key) != theirs.get(key):
                found.append(
                    f"{key} is {theirs.get(key)!r} on host {host} and "
                    f"{first.get(key)!r} on host 0"
                )
    if found:
        raise UserError(
            f"the hosts do not have the same {subject}: {'; '.join(found)}. Start the "
            "same command on all of them, on the same data and weights"
        )


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


def _end(failure: str) -> None:
    """Tell the other hosts of a failure, if there is one; release this one's thread."""
    own = jax.process_index()
    messages = dict.fromkeys(range(jax.process_count()), failure) if failure else {}
    try:
        for host, message in (messages | {own: ""}).items():
            name = f"{_FAILURE}/{host}"
            key_value_store().key_value_set(name, message, allow_overwrite=True)
    except jax.errors.JaxRuntimeError as error:
        logger.warning("cannot reach the other hosts: %s", error)


def _listen(ending: threading.Lock) -> None:
    """Wait until a host tells that it has failed; then end this process.

    Args:
        ending: Who gets it, this thread or the main one, ends the process.
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
    sys.stderr.write(f"error: {failure}; so this host, {jax.process_index()}, stops\n")
    sys.stderr.flush()
    # The two meet here, so that neither takes the other for dead.
    jax.distributed.shutdown()
    # The main thread may never come back from a device.
    os._exit(LOST_EXIT_CODE)
