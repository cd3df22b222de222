"""Run several hosts on one machine: processes that communicate over loopback."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def start(
    arguments: Sequence[object], hosts: int = 2, devices: int = 4, timeout: int = 60
) -> list[subprocess.Popen[str]]:
    """Start ``python arguments…`` on each host, with the flags that join the hosts.

    ``{host}`` in an argument becomes the number of the host.
    """
    flags = [f"--coordinator_address={free_address()}", f"--num_processes={hosts}"]
    flags += [f"--host_timeout={timeout}"]
    return [
        start_one(
            [
                *(str(argument).replace("{host}", str(host)) for argument in arguments),
                *flags,
                f"--process_id={host}",
            ],
            devices=devices,
        )
        for host in range(hosts)
    ]


def free_address() -> str:
    """Return a HOST:PORT of this machine with a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start_one(
    arguments: Sequence[object], variables: Mapping[str, str] = {}, devices: int = 4
) -> subprocess.Popen[str]:
    """Start ``python arguments…`` with this many fake devices."""
    environment = {
        "JAX_NUM_CPU_DEVICES": str(devices),
        # Compiling takes most of the time, and every host compiles.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | environment | dict(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(
    processes: Sequence[subprocess.Popen[str]], seconds: float = 600
) -> list[tuple[int, str, str]]:
    """Return (exit code, stdout, stderr) of each host; leave none running."""
    try:
        outputs = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        (process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]
