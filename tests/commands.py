"""Run commands as a user types them, each in its own process."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def medjax(
    command: str, *arguments: str, before: tuple[str, ...] = (), **options
) -> subprocess.CompletedProcess:
    """Run ``python -m medjax.<command>``, with `before` in front of it."""
    return subprocess.run(
        [*before, sys.executable, "-m", f"medjax.{command}", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def files(folder: Path) -> dict[Path, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in paths}


def one_line(done: subprocess.CompletedProcess) -> str:
    """Return the one line of the error; check that no traceback is shown."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    last = done.stderr.splitlines()[-1]
    assert (done.stdout + done.stderr).count("error: ") == last.count("error: ") == 1
    assert last.startswith("error: ")
    return last
