"""A run that is killed at any time ends like an uninterrupted one."""

import csv
import dataclasses
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest

from medjax import trees
from tests.commands import REPOSITORY
from tests.test_full_disk import can_mount

STEPS = 240
# Steps of the small run that represents the others in `.ci/run`.
FEW_STEPS = 60
KILLS = 30
EVERY = 5
STOPPED = 75
# A smaller demo with everything that a run does: validation, samples, checkpoints.
ARGUMENTS = (
    f"--config.train.checkpoint_every={EVERY}",
    "--config.train.log_every=1",
    "--config.data.image_size=16",
    "--config.data.batch_size=2",
    "--config.data.phantoms.count=24",
    "--config.eval.every=40",
    "--config.eval.examples=4",
    "--config.eval.sample_every=100",
    "--config.eval.samples=2",
    "--config.eval.sampler_steps=2",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir, the command that trains in it, and the folder of compiled programs."""

    workdir: Path
    compiled: Path
    steps: int = STEPS
    config: str = "tests/tiny_demo.py"

    def start(self, *more: str, before: tuple[str, ...] = ()) -> subprocess.Popen:
        """Start or resume the run in its own process group."""
        command = [sys.executable, "-m", "medjax.train", f"--workdir={self.workdir}"]
        config = f"--config={self.config}"
        steps = f"--config.train.steps={self.steps}"
        settings = {
            "JAX_COMPILATION_CACHE_DIR": str(self.compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_NUM_CPU_DEVICES": "1",
        }
        return subprocess.Popen(
            [*before, *command, config, *ARGUMENTS, steps, *more],
            cwd=REPOSITORY,
            env=os.environ | settings,
            stdout=subprocess.DEVNULL,
            stderr=(self.workdir.parent / "log").open("a"),
            start_new_session=True,
        )

    def log(self) -> str:
        return (self.workdir.parent / "log").read_text()

    def rows(self) -> dict[int, dict[str, str]]:
        path = self.workdir / "metrics.csv"
        if not path.is_file():
            return {}
        with path.open() as file:
            whole = [row for row in csv.DictReader(file) if row["step"].isdigit()]
        return {int(row["step"]): row for row in whole}

    def saved(self) -> list[int]:
        folder = self.workdir / "checkpoints"
        return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())

    def state(self) -> dict[str, np.ndarray]:
        path = self.workdir / "checkpoints" / str(self.steps) / "state"
        return trees.flatten(ocp.StandardCheckpointer().restore(path))

    def wait_for_step(self, process: subprocess.Popen, step: int) -> None:
        """Wait until this process, not an earlier one, has done the step."""
        metrics, start = self.workdir / "metrics.csv", time.time()
        while process.poll() is None:
            own = metrics.is_file() and metrics.stat().st_mtime > start
            if own and max(self.rows(), default=0) >= step:
                return
            time.sleep(0.01)


def assert_ended_as(run: Run, reference: Run) -> None:
    """Compare losses and weights, bit for bit."""
    ours, theirs = run.rows(), reference.rows()
    assert list(ours) == list(theirs) == list(range(1, run.steps + 1))
    for name in ("train/loss", "train/grad_norm", "train/learning_rate", "val/loss"):
        assert [r[name] for r in ours.values()] == [r[name] for r in theirs.values()]
    got, expected = run.state(), reference.state()
    assert got.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(got[path], array, err_msg=path)


def finished(folder: Path, *more: Any) -> Run:
    """Return a run to its end, with more fields of `Run`."""
    folder.mkdir(exist_ok=True)
    run = Run(folder / "run", folder / "compiled", *more)
    assert run.start().wait() == 0, run.log()
    return run


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Run:
    return finished(tmp_path_factory.mktemp("reference"))


@pytest.fixture
def run(tmp_path, reference) -> Run:
    return Run(tmp_path / "run", reference.compiled)


@pytest.mark.ci
def test_one_kill_and_one_request_to_stop(tmp_path):
    small = (FEW_STEPS, "tests/tiny_unconditional.py")
    reference = finished(tmp_path / "reference", *small)
    run = Run(tmp_path / "run", reference.compiled, *small)
    for number, code in (
        (signal.SIGKILL, -signal.SIGKILL),
        (signal.SIGTERM, STOPPED),
    ):
        process = run.start()
        # Two checkpoints later, at least one of the two is complete.
        run.wait_for_step(process, max(run.saved(), default=0) + 2 * EVERY + 2)
        os.killpg(process.pid, number)
        assert process.wait(timeout=60) == code, run.log()
    assert 0 < max(run.saved()) < FEW_STEPS
    assert run.start().wait() == 0, run.log()
    assert run.log().count("resuming after step") == 2
    assert_ended_as(run, reference)


@pytest.mark.release
def test_kills_at_any_moment(run, reference):
    random_ = random.Random(0)
    for number in range(KILLS):
        process = run.start()
        try:
            if number % 5 == 0:
                # While it starts: importing, loading, restoring.
                time.sleep(random_.uniform(0, 10))
            else:
                before = max(run.saved(), default=0)
                run.wait_for_step(process, before + random_.randint(1, 12))
                time.sleep(random_.uniform(0, 0.3))
            assert process.poll() is None, run.log()
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        # The steps since the last checkpoint are lost, or since the one before it if
        # the last one was being written.
        seen = max(run.rows(), default=0)
        assert max(run.saved(), default=0) >= seen - 2 * EVERY, run.log()
    assert max(run.saved()) < STEPS
    assert run.start().wait() == 0, run.log()
    assert_ended_as(run, reference)
    assert "damaged" not in run.log()


@pytest.mark.release
def test_asked_to_stop(run, reference):
    """The data workers receive the signal too."""
    random_ = random.Random(1)
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGTERM)
    for count, number in enumerate(signals, 1):
        process = run.start("--config.data.workers=2")
        run.wait_for_step(process, max(run.saved(), default=0) + random_.randint(2, 90))
        seen = max(run.rows())
        os.killpg(process.pid, number)
        assert process.wait(timeout=60) == STOPPED, run.log()
        assert max(run.saved()) == max(run.rows()) in range(seen, seen + 3)
        # multiprocessing may log a later line, about a batch that grain left in memory.
        said = [line for line in run.log().splitlines() if line.startswith("stopped:")]
        assert said[-1].startswith(f"stopped: {signal.Signals(number).name} at step")
        assert len(said) == count
    assert "Traceback" not in run.log()
    assert run.start().wait() == 0, run.log()
    assert_ended_as(run, reference)


@pytest.mark.release
def test_the_newest_checkpoint_is_damaged(run, reference):
    shutil.copytree(reference.workdir, run.workdir)
    newest = run.workdir / "checkpoints" / str(STEPS)
    largest = max(newest.rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert run.start().wait() == 0
    assert f"{newest} is damaged" in run.log()
    assert_ended_as(run, reference)


def fill_by_disk(run: Run, size: int) -> None:
    """Train on a disk with space for 2.5 checkpoints; keep the files that it leaves."""
    kept = run.workdir.with_name("kept")
    run.workdir.mkdir()
    script = (
        f"mount -t tmpfs -o size={int(2.5 * size)} none {run.workdir} && "
        f'{{ "$@"; code=$?; cp -r {run.workdir} {kept}; exit $code; }}'
    )
    before = ("unshare", "-Urm", "sh", "-c", script, "sh")
    assert run.start("--config.train.keep_last=9", before=before).wait() == 2
    run.workdir.rmdir()
    kept.rename(run.workdir)


def fill_by_limit(run: Run, size: int) -> None:
    """Train; after the second checkpoint, limit files to a quarter of its size."""
    process = run.start("--config.train.keep_last=9")
    while process.poll() is None and len(run.saved()) < 2:
        time.sleep(0.001)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size // 4, size // 4))
    assert process.wait() == 2


@pytest.mark.release
@pytest.mark.parametrize(
    "fill", [fill_by_limit, fill_by_disk] if can_mount() else [fill_by_limit]
)
def test_a_disk_that_fills_up_while_saving(fill, run, reference):
    """Earlier checkpoints stay complete, and the run resumes if the disk has space."""
    last = reference.workdir / "checkpoints" / str(STEPS)
    fill(run, sum(path.stat().st_size for path in last.rglob("*")))
    saved = run.saved()
    assert len(saved) >= 2
    error = run.log().splitlines()[-1]
    assert error.startswith("error: cannot write checkpoint ")
    assert "No space left on device" in error or "File too large" in error
    assert f"newest complete checkpoint: step {saved[-1]}" in error
    assert "Traceback" not in run.log()
    process = run.start("--config.train.keep_last=9")
    run.wait_for_step(process, saved[-1] + 1)
    assert f"resuming after step {saved[-1]} of" in run.log()
    assert process.wait() == 0, run.log()
    assert_ended_as(run, reference)
