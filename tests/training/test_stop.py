"""A signal, the deadline, patience or another host stops a run."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from medjax.training import stop as stop_module
from medjax.training.stop import StopDecision, StopRequest, Verdict, stop_on_signals


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


def asked():
    request = StopRequest()
    request.signal = signal.SIGTERM
    return request


class Clock:
    def __init__(self):
        self.now = 50.0

    def __call__(self):
        return self.now


def test_nothing_stops_a_run_before_its_last_step():
    stop = StopDecision(StopRequest(), steps=3)
    assert stop.at_start(exhausted=False) is Verdict.CONTINUE
    verdicts = [stop.after_update(step, exhausted=False) for step in (1, 2, 3)]
    assert verdicts == [Verdict.CONTINUE, Verdict.CONTINUE, Verdict.DONE]


def test_the_deadline_counts_from_the_beginning_and_only_after_updates():
    clock = Clock()
    stop = StopDecision(StopRequest(), 9, max_hours=0.5, clock=clock)
    clock.now += 1800
    assert stop.after_update(1, exhausted=False) is Verdict.CONTINUE
    clock.now += 1
    assert stop.at_start(exhausted=False) is Verdict.CONTINUE
    assert stop.after_update(2, exhausted=False) is Verdict.TIME_IS_UP


@pytest.mark.parametrize("exhausted", [False, True])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("signalled", [False, True])
@pytest.mark.parametrize("step", [8, 9])
def test_of_several_reasons_the_most_urgent_counts(exhausted, late, signalled, step):
    clock = Clock()
    request = asked() if signalled else StopRequest()
    stop = StopDecision(request, 9, max_hours=1.0, clock=clock)
    clock.now += 3601 if late else 0
    expected = Verdict.CONTINUE
    if exhausted:
        expected = Verdict.NO_IMPROVEMENT
    if late:
        expected = Verdict.TIME_IS_UP
    if signalled:
        expected = Verdict.ASKED_TO_STOP
    if step == 9:
        expected = Verdict.DONE
    assert stop.after_update(step, exhausted) is expected


def test_everything_is_evaluated_at_the_end_but_not_for_one_who_waits():
    ends = {verdict for verdict in Verdict if verdict.ends_evaluated}
    assert ends == {Verdict.NO_IMPROVEMENT, Verdict.TIME_IS_UP, Verdict.DONE}


def test_an_evaluation_hears_signals_alone():
    assert StopDecision(asked(), 9).in_evaluation()
    clock = Clock()
    stop = StopDecision(StopRequest(), 9, max_hours=1.0, clock=clock)
    clock.now += 7200
    assert not stop.in_evaluation()


class Hosts:
    """An `Agreement` between this host and another host with its own numbers.

    As on several hosts, a call returns the largest number of the call before it.
    """

    made: list["Hosts"]

    def __init__(self):
        self.others, self.pending, self.calls = [], 0, 0
        self.made.append(self)

    def largest(self, number):
        other = self.others[self.calls] if self.calls < len(self.others) else 0
        heard, self.pending = self.pending, max(number, other)
        self.calls += 1
        return heard


@pytest.fixture
def hosts(monkeypatch):
    """The agreements that a decision makes: for training and for evaluations."""
    monkeypatch.setattr(stop_module.distributed, "Agreement", Hosts)
    monkeypatch.setattr(Hosts, "made", [], raising=False)
    return Hosts


def test_another_host_is_heard_at_once_at_the_start_and_then_one_update_late(hosts):
    stop = StopDecision(StopRequest(), steps=9)
    training, evaluation = hosts.made
    training.others = [3, 0, 0, 0, 1, 0, 0, 2, 0]
    assert stop.at_start(exhausted=False) is Verdict.ASKED_TO_STOP
    assert not stop.any_host(False)
    assert training.calls == 4
    verdicts = [stop.after_update(step, exhausted=False) for step in range(1, 6)]
    assert verdicts == [
        Verdict.CONTINUE,
        Verdict.NO_IMPROVEMENT,
        Verdict.CONTINUE,
        Verdict.CONTINUE,
        Verdict.TIME_IS_UP,
    ]
    # Every host calls equally often, whatever the result.
    assert training.calls == 9
    assert evaluation.calls == 0


def test_any_host_can_owe_an_evaluation(hosts):
    stop = StopDecision(StopRequest(), steps=9)
    hosts.made[0].others = [0, 0, 1]
    assert stop.at_start(exhausted=False) is Verdict.CONTINUE
    assert stop.any_host(False)
    # A vote that was received at once is not received again.
    assert stop.after_update(1, exhausted=False) is Verdict.CONTINUE


def test_a_signal_that_training_hears_late_does_not_end_an_evaluation_here_alone(hosts):
    request = StopRequest()
    stop = StopDecision(request, steps=9)
    request.signal = signal.SIGTERM
    # The other host has not received the vote yet, and evaluates.
    assert stop.after_update(1, exhausted=False) is Verdict.CONTINUE
    assert not stop.in_evaluation()
    assert stop.in_evaluation()
    assert stop.after_update(2, exhausted=False) is Verdict.ASKED_TO_STOP


def test_the_last_step_votes_too(hosts):
    stop = StopDecision(StopRequest(), steps=1)
    assert stop.after_update(1, exhausted=False) is Verdict.DONE
    assert hosts.made[0].calls == 1
