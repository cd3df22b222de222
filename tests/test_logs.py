"""Log lines are shown, and a closed pipe does not end the program."""

import io
import logging
import subprocess
import sys

import pytest

from medjax.logs import BarFriendlyHandler, ProgressBar, duration


@pytest.fixture
def log():
    """A logger that writes like the commands."""
    logger, handler = logging.Logger("a run"), BarFriendlyHandler()
    logger.addHandler(handler)
    return logger


class Unread(io.StringIO):
    """A pipe whose reader has closed it."""

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
    """A thread that fails at the end of the program is not reported."""
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


def test_long_work_without_a_terminal_has_a_line_a_minute(caplog):
    now = [0.0]
    with (
        caplog.at_level(logging.INFO, logger="medjax"),
        ProgressBar(
            "reading", 100, "images", done=40, terminal=False, clock=lambda: now[0]
        ) as bar,
    ):
        for _ in range(15):
            now[0] += 12
            bar.update(4)
    # No line is logged at the end.
    assert caplog.messages == [
        "reading: 60 of 100 images · 2:00 left",
        "reading: 80 of 100 images · 1:00 left",
    ]


def test_on_a_terminal_work_has_a_bar_which_disappears(capsys, caplog):
    with (
        caplog.at_level(logging.INFO, logger="medjax"),
        ProgressBar("reading", 100, "images", terminal=True) as bar,
    ):
        bar.update(100)
    shown = capsys.readouterr().err
    assert "reading" in shown and "0/100" in shown
    assert shown.rstrip(" ").endswith("\r")
    assert not caplog.messages


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (59.6, "1:00"), (272, "4:32"), (3872, "1:04:32")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
