"""TFLOP/s and MFU in the log: right, and free of a second compilation."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from medjax import chips
from medjax.training import speed
from medjax.training.log_lines import training_line
from medjax.training.progress import RateMeter

CPU = chips.Chip("test", r"^cpu$", 2.0, 10, 1, 1)


@pytest.fixture
def known_cpu(monkeypatch):
    monkeypatch.setitem(chips.CHIPS, "test", CPU)


def _step(length):
    @jax.jit
    def step(x, w):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length)[0]

    return step


def test_an_unknown_device_has_no_speed():
    step, x = _step(2), jnp.ones((32, 32))
    step(x, x)
    assert speed.step_work(step, x, x) is None
    assert "tflops_per_device" not in RateMeter().read()


def test_work_is_of_all_iterations_and_nothing_compiles_again(known_cpu):
    x = jnp.ones((64, 64))
    step = _step(5)
    x = step(x, x)
    compiled = []

    def listen(event, duration, **_):
        compiled.append(event) if "backend_compile" in event else None

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        work = speed.step_work(step, x, jnp.ones((64, 64)))
        assert not [event for event in compiled if "backend_compile" in event]
    finally:
        jax.monitoring.clear_event_listeners()
    assert work.flops == pytest.approx(5 * 2 * 64**3, rel=0.1)


def test_speed_is_a_part_of_the_peak():
    row = speed.StepWork(4e12, dataclasses.replace(CPU, tflops=10)).speed(2.0)
    assert row == {"tflops_per_device": 2.0, "mfu": 0.2}
    line = training_line(3, 9, {"images_per_second": 4.0, **row}, None)
    assert line.endswith("2.0 TFLOP/s (MFU 20%)")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU v4", "v4"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA L4", "L4"),
        ("Tesla T4", "T4"),
        ("NVIDIA L40S", None),
        ("cpu", None),
    ],
)
def test_chips_are_known_by_what_jax_calls_them(kind, name):
    found = chips.find_chip(kind)
    assert (found and found.name) == name
