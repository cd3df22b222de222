"""What is logged is shown, and whoever stops listening ends nothing."""

import io
import logging
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
