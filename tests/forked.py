"""Commands in processes of their own that need not import everything anew.

They are forked from a process that has imported what takes long, and from there on are
what `python -m medjax.…` is. jax's devices come after the fork.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.commands import REPOSITORY

_SECONDS = 120
_server = multiprocessing.get_context("forkserver")
# Not the commands, which define their flags when they are run.
_server.set_forkserver_preload(
    [
        "medjax.training.two_stages",
        "medjax.sampling.image_files",
        "medjax.exporting.write",
    ]
)


def medjax(
    command: str, *arguments: str, env: Mapping[str, str]
) -> subprocess.CompletedProcess:
    """Run ``python -m medjax.<command>`` in an environment."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = _server.Process(
            target=_run, args=(command, arguments, dict(env), out, err)
        )
        process.start()
        process.join(_SECONDS)
        process.kill()
        assert process.exitcode is not None, f"{command} {arguments} takes too long"
        return subprocess.CompletedProcess(
            [command, *arguments], process.exitcode, out.read_text(), err.read_text()
        )


def _run(
    command: str, arguments: tuple[str, ...], env: dict[str, str], out: Path, err: Path
) -> None:
    os.environ.clear()
    os.environ.update(env)
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream.fileno())
    os.chdir(REPOSITORY)
    sys.argv = ["", *arguments]
    runpy.run_module(f"medjax.{command}", run_name="__main__", alter_sys=True)
