"""Several hosts: one run in several processes, each with its own devices.

Every host runs the same command; jax joins their devices to one mesh, and every update
needs all of them. So what only one host knows, the others must hear of:

* that it has failed: it says so in jax's key-value store, which a thread of every other
  host listens to, since their main threads may be waiting for it on a device;
* that it wants to stop: `Agreement`;
* that it is about to train something else: `check_same`.

A host that dies without a word is noticed by jax, from its missing heartbeat or the
broken connection, and jax then ends the processes of the others.
"""

import dataclasses
import json
import logging
import os
import socket
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

logger = logging.getLogger(__name__)

LOST_EXIT_CODE = 1
# jax's names of the environments that say by themselves who takes part. Kubernetes' is
# left out: it asks a server, and fails wherever a pod is no job.
_CLUSTERS = ("slurm", "ompi", "gcetpu", "gketpu")
_FAILURE = "medjax/failure"
_LONGEST_WAIT_MS = 10 * 24 * 3600 * 1000
# A host that fails in the same way at the same time shall tell of it itself.
_SECONDS_TO_FAIL_TOO = 3.0


@dataclasses.dataclass(frozen=True)
class Hosts:
    """Which processes take part; all None where the cluster says so by itself.

    Attributes:
        coordinator_address: ``HOST:PORT`` on the first host, free, seen by all.
        num_processes: How many.
        process_id: Which of them this is, from 0.
        detect: Whether to ask SLURM, Open MPI or the TPU's metadata where all are None.
        timeout_seconds: How long to wait for another host, at first and for a sign of
            life later on.
    """

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    detect: bool = True
    timeout_seconds: int = 100

    def __post_init__(self) -> None:
        """Refuse half an answer.

        Raises:
            UserError: If not all or none of the three are given, or do not go together.
        """
        count, number = self.num_processes, self.process_id
        given = {
            "--coordinator_address": self.coordinator_address,
            "--num_processes": count,
            "--process_id": number,
        }
        missing = [flag for flag, value in given.items() if value is None]
        if missing and len(missing) < len(given):
            raise UserError(
                f"{' and '.join(missing)} missing: a run on several hosts needs "
                f"{', '.join(given)}, or none of them on one host, SLURM or TPUs"
            )
        if count is not None and number is not None and not 0 <= number < count:
            raise UserError(
                f"--process_id={number} of --num_processes={count}; expected 0 to "
                f"{count - 1}"
            )
        address = self.coordinator_address
        if address is not None and not address.rpartition(":")[2].isdigit():
            raise UserError(
                f"--coordinator_address={address}: expected HOST:PORT, as in "
                "10.0.0.1:1234"
            )


@contextmanager
def joined(hosts: Hosts) -> Iterator[None]:
    """Run what is inside as one of `hosts`; alone where there are no others.

    A failure inside is told to the other hosts, whose processes then end too. Only the
    first host logs what is not a warning.

    Raises:
        UserError: If the other hosts do not come.
    """
    if not _connect(hosts) or jax.process_count() == 1:
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
        subject: What they are about; another one at each call.
        facts: JSON-able, by name.

    Raises:
        UserError: Names the hosts that differ from the first, and in what.
    """
    if jax.process_count() == 1:
        return
    folder = f"medjax/{subject}"
    _store().key_value_set(f"{folder}/{jax.process_index()}", json.dumps(facts))
    first: dict[str, Any] = {}
    found = []
    for host in range(jax.process_count()):
        text = _store().blocking_key_value_get(f"{folder}/{host}", _LONGEST_WAIT_MS)
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


def wait_for_all(place: str) -> None:
    """Wait until every host has come to `place`, another one at each call."""
    if jax.process_count() > 1:
        _store().wait_at_barrier(f"medjax/{place}", _LONGEST_WAIT_MS)


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


def _connect(hosts: Hosts) -> bool:
    """Join the others, if there are any."""
    if hosts.coordinator_address is None:
        cluster = _detected() if hosts.detect else None
        if cluster is None:
            return False
        where: dict[str, Any] = {"cluster_detection_method": cluster}
        who = f"the processes that {cluster} tells of"
    else:
        where = {
            "coordinator_address": hosts.coordinator_address,
            "num_processes": hosts.num_processes,
            "process_id": hosts.process_id,
            # Else a SLURM job's process would see one of its devices only.
            "cluster_detection_method": "deactivate",
        }
        who = f"{hosts.num_processes} processes at {hosts.coordinator_address}"
    # Its handler of SIGTERM would stand in the way of ours.
    jax.config.update("jax_enable_preemption_service", False)
    if hosts.process_id == 0:
        _check_free(str(hosts.coordinator_address))
    seconds = hosts.timeout_seconds
    # Where they do not come, jax ends this process; so it is said before.
    logger.info("waiting for %s, at most %d s", who, seconds)
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=seconds,
            shutdown_timeout_seconds=seconds,
        )
    except RuntimeError as error:
        raise UserError(f"cannot join {who}: {str(error).splitlines()[0]}") from error
    return True


def _check_free(address: str) -> None:
    """Check that the port can be listened at, where jax (0.10.2) would crash.

    Raises:
        UserError: If it cannot.
    """
    try:
        socket.create_server(("", int(address.rpartition(":")[2]))).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--coordinator_address={address}: cannot listen there: {error}; give "
            "another port"
        ) from error


def _detected() -> str | None:
    """Return jax's name of the cluster, if this process is one of several in it."""
    from jax._src.clusters import ClusterEnv

    for cluster in ClusterEnv._cluster_types:
        if cluster.name in _CLUSTERS and cluster.is_env_present():
            return cluster.name if cluster.get_process_count() > 1 else None
    return None


def _store() -> Any:
    """Return the client of jax's key-value store, as jax's own libraries use it."""
    from jax._src.distributed import global_state

    return global_state.client


def _end(failure: str) -> None:
    """Tell the other hosts of a failure, if there is one; release this one's thread."""
    own = jax.process_index()
    messages = dict.fromkeys(range(jax.process_count()), failure) if failure else {}
    try:
        for host, message in (messages | {own: ""}).items():
            name = f"{_FAILURE}/{host}"
            _store().key_value_set(name, message, allow_overwrite=True)
    except jax.errors.JaxRuntimeError as error:
        logger.warning("cannot reach the other hosts: %s", error)


def _listen(ending: threading.Lock) -> None:
    """Wait until a host tells that it has failed; then end this process.

    Args:
        ending: Who gets it, this thread or the main one, ends the process.
    """
    name = f"{_FAILURE}/{jax.process_index()}"
    try:
        failure = _store().blocking_key_value_get(name, _LONGEST_WAIT_MS)
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
