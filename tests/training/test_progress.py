"""Rates leave out compilation and pauses; progress is readable on any stderr."""

import logging

import pytest

from medjax.training.progress import Progress, RateMeter, memory


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_rate_is_that_of_training_alone():
    clock = Clock()
    meter = RateMeter(clock)
    with meter.waiting():
        clock.now += 2
    clock.now += 20
    assert meter.first_step_done() == meter.compile_seconds == 20
    for _ in range(5):
        with meter.waiting():
            clock.now += 0.5
        clock.now += 1.5
        meter.count(images=8)
        with meter.paused():
            clock.now += 60
    rates = meter.read()
    assert rates["images_per_second"] == pytest.approx(4)
    assert rates["seconds_per_step"] == pytest.approx(2)
    assert rates["data_wait_fraction"] == pytest.approx(0.25)


def test_every_reading_starts_anew():
    clock = Clock()
    meter = RateMeter(clock)
    meter.first_step_done()
    for seconds, expected in ((1, 4.0), (2, 2.0)):
        clock.now += seconds
        meter.count(images=4)
        assert meter.read()["images_per_second"] == pytest.approx(expected)


def test_a_run_of_one_step_has_no_rate():
    clock = Clock()
    meter = RateMeter(clock)
    clock.now += 5
    meter.count(images=4)
    meter.first_step_done()
    assert meter.read() == {}
    assert meter.compile_seconds == 5


ROW = {"train/loss": 0.25, "images_per_second": 12.34, "seconds_per_step": 2.0}


def test_there_is_a_line_a_report_and_one_in_a_long_silence(caplog):
    clock = Clock()
    with (
        caplog.at_level(logging.INFO, logger="medjax"),
        Progress(1000, clock=clock, terminal=False) as progress,
    ):
        progress.update(1, {"train/loss": 0.5})
        for step in range(2, 41):
            clock.now += 2
            progress.update(step, ROW if step == 10 else {})
        progress.update(1000, ROW)
    assert caplog.messages == [
        "step    1/1000 · loss 0.5000",
        "step   10/1000 · loss 0.2500 ·  12.3 images/s · 33:00 left",
        # Without a line, the run would seem to hang. The loss is not known here.
        "step   40/1000 · 32:00 left",
        "step 1000/1000 · loss 0.2500 ·  12.3 images/s · 0:00 left",
    ]


def test_on_a_terminal_the_bar_has_the_last_report_and_lines_stay(capsys, caplog):
    with (
        caplog.at_level(logging.INFO, logger="medjax"),
        Progress(10, start=4, terminal=True) as progress,
    ):
        progress.update(5, {})
        progress.update(10, ROW)
    shown = capsys.readouterr().err
    assert "4/10" in shown
    last = shown.strip().split("\r")[-1]
    assert "10/10" in last
    assert "loss 0.2500 ·  12.3 images/s · 0:00 left" in last
    assert caplog.messages == ["step 10/10 · loss 0.2500 ·  12.3 images/s · 0:00 left"]


def test_memory_is_told_on_any_device():
    (name,) = memory()
    assert name in ("device_memory_gib", "host_memory_gib")
    assert 0.01 < memory()[name] < 10_000
