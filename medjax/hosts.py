"""Which processes take part in a run on several hosts, and how they find each other."""

import dataclasses
import logging
import socket
from typing import Any

import jax

from medjax.errors import UserError
from medjax.jax_private import detected_cluster

logger = logging.getLogger(__name__)


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


def connect(hosts: Hosts) -> bool:
    """Join the other hosts; return whether there are any.

    Raises:
        UserError: If they do not come.
    """
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


def refuse_several(command: str) -> None:
    """Check that this process is the only one that was started.

    Raises:
        UserError: If it is one of several of a cluster, which would all do the same.
    """
    if _detected() is not None:
        raise UserError(
            f"{command} runs in one process, and several were started here; start one "
            "(with SLURM: srun --ntasks=1)"
        )


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
    cluster, processes = detected_cluster() or (None, 1)
    return cluster if processes > 1 else None
