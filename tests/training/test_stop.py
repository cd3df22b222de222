"""Signals ask a run to stop, once; a second one stops it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from medjax.training.stop import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request_and_the_old_handlers_come_back(number):
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop.made
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert stop.made
        assert stop.signal == number
    assert signal.getsignal(number) is before


def test_other_threads_leave_the_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run():
        with stop_on_signals() as stop:
            seen.append((stop.made, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_the_second_signal_stops_at_once():
    script = """
import os, signal
from medjax.training.stop import stop_on_signals
with stop_on_signals():
    os.kill(os.getpid(), signal.SIGTERM)
    print("alive", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still alive", flush=True)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "alive\n"
    assert done.returncode == -signal.SIGTERM
