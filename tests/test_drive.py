"""A run on Google Drive, as Colab mounts it: no locks, and slow renames."""

import csv
import signal
import subprocess
import sys
import time

import pytest

from tests.commands import REPOSITORY, medjax

# What Drive's mount answers differently, before the command starts.
ON_DRIVE = """
import errno, fcntl, os, runpy, sys, time

def refuse(*_):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

def slowed(call):
    def slow(*arguments, **options):
        time.sleep(0.3)
        return call(*arguments, **options)
    return slow

fcntl.flock = fcntl.lockf = refuse
os.rename, os.replace = slowed(os.rename), slowed(os.replace)
runpy.run_module("medjax.train", run_name="__main__", alter_sys=True)
"""


def arguments(workdir):
    return (
        "--config=tests/tiny_unconditional.py",
        f"--workdir={workdir}",
        "--config.train.steps=40",
        "--config.train.checkpoint_every=5",
    )


def losses(workdir):
    with (workdir / "metrics.csv").open() as file:
        return [(row["step"], row["train/loss"]) for row in csv.DictReader(file)]


@pytest.mark.release
def test_a_run_on_drive_that_is_killed_continues_as_if_it_had_not(tmp_path):
    done = medjax("train", *arguments(tmp_path / "local"))
    assert done.returncode == 0, done.stderr
    drive = tmp_path / "drive"
    command = [sys.executable, "-c", ON_DRIVE, *arguments(drive)]
    first = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE)
    limit = time.monotonic() + 300
    while not (drive / "checkpoints" / "10").is_dir() and time.monotonic() < limit:
        assert first.poll() is None, first.stderr.read().decode()
        time.sleep(0.05)
    assert (drive / "checkpoints" / "10").is_dir(), "no checkpoint in five minutes"
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert losses(drive) != losses(tmp_path / "local")
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stderr
    assert losses(drive) == losses(tmp_path / "local")
