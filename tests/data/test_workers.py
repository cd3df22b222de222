"""Worker processes live and die with their main process alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

MAIN = """
import sys
from medjax.data.config import ControlDataConfig
from medjax.data.phantoms import PhantomsConfig
from medjax.data.pipeline import make_batches, open_dataset

class Tokenizer:
    pad_token_id = 0
    def __call__(self, text, **_):
        return {"input_ids": [1, 2]}

phantoms = PhantomsConfig(count=4)
config = ControlDataConfig(image_size=16, batch_size=2, phantoms=phantoms, workers=2)
batches = make_batches(open_dataset(config, "train"), Tokenizer(), config)
for _ in range(int(sys.argv[1])):
    next(batches)
    print("a batch", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def start():
    """Start a main process that makes a batch a line, in a group of its own."""
    started = []

    def start(batches: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN, str(batches)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the ids of the worker processes; the resource tracker is none."""
    children = Path(f"/proc/{process.pid}/task").glob("*/children")
    ids = [int(number) for file in children for number in file.read_text().split()]
    return [number for number in ids if "spawn_main" in command_of(number)]


def command_of(number: int) -> str:
    try:
        return Path(f"/proc/{number}/cmdline").read_text()
    except OSError:
        return ""


def wait_until(condition, seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not (reached := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return bool(reached)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("number", "born"),
    [
        (signal.SIGINT, False),
        pytest.param(signal.SIGINT, True, marks=pytest.mark.release),
        pytest.param(signal.SIGTERM, False, marks=pytest.mark.release),
        pytest.param(signal.SIGTERM, True, marks=pytest.mark.release),
    ],
)
def test_what_asks_the_main_process_to_stop_leaves_the_workers_alone(
    start, number, born
):
    process = start(9)
    if born:
        process.stdout.readline()
    assert wait_until(lambda: len(workers_of(process)) == 2)
    for worker in workers_of(process):
        os.kill(worker, number)
    for _ in range(9 - born):
        process.stdin.write("\n")
    process.stdin.close()
    assert process.wait(timeout=60) == 0, process.stderr.read()
    assert process.stdout.read().count("a batch") == 9 - born


@pytest.mark.ci
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_main_process(start, number):
    process = start(9)
    process.stdout.readline()
    workers = workers_of(process)
    assert len(workers) == 2
    process.send_signal(number)
    assert process.wait(timeout=60) == -number
    assert wait_until(lambda: not any(map(command_of, workers)))
