"""What is logged is shown, and whoever stops listening ends nothing."""

import io
import logging
import subprocess
import sys

import pytest

from medjax.logs import BarFriendlyHandler


@pytest.fixture
def log():
    """A logger that writes as the commands do."""
    logger, handler = logging.Logger("a run"), BarFriendlyHandler()
    logger.addHandler(handler)
    return logger


class Unread(io.StringIO):
    """A pipe whose reader is gone."""

    def write(self, text):
        raise BrokenPipeError(text)


def test_a_line_is_written(log, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    log.info("step %d", 3)
    assert sys.stderr.getvalue() == "step 3\n"


def test_a_run_goes_on_when_nobody_reads_its_log(log, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Unread())
    log.info("step %d", 3)


def test_only_a_thread_that_fails_while_the_program_runs_is_told_of():
    """One that is left behind at its end fails at nothing."""
    script = """
import atexit, threading
from medjax import logs

logs.set_up(debug=False)
ended = threading.Event()

def fail():
    raise OSError("no room")

def outlive():
    ended.wait()
    raise OSError("handle is closed")

def end():
    ended.set()
    left.join()

first = threading.Thread(target=fail)
left = threading.Thread(target=outlive, daemon=True)
first.start()
left.start()
first.join()
atexit.register(end)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0
    assert "has failed: no room" in run.stderr
    assert "handle is closed" not in run.stderr
