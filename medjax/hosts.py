"""Find and join the processes of a run on several hosts."""

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
    """The processes of a run. The first three are None on one host or on a cluster.

    Attributes:
        coordinator_address: ``HOST:PORT`` with a free port of the first host, which all
            hosts can reach.
        num_processes: Number of processes.
        process_id: Number of this process, from 0.
        detect: Whether to ask SLURM, Open MPI or the TPU's metadata if the first three
            are None.
        timeout_seconds: Longest wait for another host, at the start and for a heartbeat
            later.
    """

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    detect: bool = True
    timeout_seconds: int = 100

    def __post_init__(self) -> None:
        """Check that the first three fit together.

        Raises:
            UserError: If only some of them are set, or if they do not fit together.
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
                f"{' and '.join(missing)} missing: several hosts require all of "
                f"{', '.join(given)}; one host, SLURM, Open MPI and TPUs require none"
            )
        if count is not None and number is not None and not 0 <= number < count:
            raise UserError(
                f"--process_id={number} of --num_processes={count}: expected 0 to "
                f"{count - 1}"
            )
        address = self.coordinator_address
        if address is not None and not address.rpartition(":")[2].isdigit():
            raise UserError(
                f"--coordinator_address={address}: expected HOST:PORT, such as "
                "10.0.0.1:1234"
            )


def connect(hosts: Hosts) -> bool:
    """Join the other hosts; return whether other hosts exist.

    Raises:
        UserError: If they cannot be joined.
    """
    if hosts.coordinator_address is None:
        cluster = _detected() if hosts.detect else None
        if cluster is None:
            return False
        where: dict[str, Any] = {"cluster_detection_method": cluster}
        who = f"the processes of {cluster}"
    else:
        where = {
            "coordinator_address": hosts.coordinator_address,
            "num_processes": hosts.num_processes,
            "process_id": hosts.process_id,
            # If detected, a process of a SLURM job would see only one of its devices.
            "cluster_detection_method": "deactivate",
        }
        who = f"{hosts.num_processes} processes at {hosts.coordinator_address}"
    # Its handler of SIGTERM would replace ours.
    jax.config.update("jax_enable_preemption_service", False)
    if hosts.process_id == 0:
        _check_free(str(hosts.coordinator_address))
    seconds = hosts.timeout_seconds
    # Logged first, because jax ends this process if the other hosts do not come.
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
        UserError: If a cluster started several, which would all do the same work.
    """
    if _detected() is not None:
        raise UserError(
            f"{command} runs in one process, but several were started. Start one "
            "(with SLURM: srun --ntasks=1)"
        )


def _check_free(address: str) -> None:
    """Check that the port is free, because jax (0.10.2) would crash if it is not.

    Raises:
        UserError: If this process cannot listen on it.
    """
    try:
        socket.create_server(("", int(address.rpartition(":")[2]))).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--coordinator_address={address}: cannot listen on this port: {error}. "
            "Give another port"
        ) from error


def _detected() -> str | None:
    """Return jax's name of the cluster; None unless it started several processes."""
    cluster, processes = detected_cluster() or (None, 1)
    return cluster if processes > 1 else None
