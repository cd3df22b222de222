"""Rates leave out compilation and pauses; progress reads well on any stderr."""

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
    meter.first_step_done()
    assert meter.compile_seconds == 20
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


def test_without_a_terminal_there_are_occasional_lines(caplog):
    clock = Clock()
    with (
        caplog.at_level(logging.INFO, logger="medjax"),
        Progress(100, clock=clock, terminal=False) as progress,
    ):
        for step in range(1, 101):
            clock.now += 1
            news = {"train/loss": 0.5} if step % 10 == 0 else {}
            news |= {"images_per_second": 12.345, "seconds_per_step": 1.0}
            progress.update(step, news)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "30/100, loss 0.5000, 12.3 images/s, 01:10 left"
    assert [line.split(",")[0] for line in lines[1:]] == ["60/100", "90/100", "100/100"]


def test_on_a_terminal_there_is_one_line(capsys):
    with Progress(10, start=4, terminal=True) as progress:
        progress.update(5, {})
        progress.update(9, {"train/loss": 0.25, "val/loss": 3.0})
        progress.update(10, {"seconds_per_step": 2.0})
    shown = capsys.readouterr().err
    assert "4/10" in shown
    last = shown.strip().split("\r")[-1]
    assert "10/10" in last
    assert "loss 0.2500, 00:00 left" in last


def test_memory_is_told_on_any_device():
    (name,) = memory()
    assert name in ("device_memory_gib", "host_memory_gib")
    assert 0.01 < memory()[name] < 10_000
