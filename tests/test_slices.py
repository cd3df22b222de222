"""Two slices train as one device does, and a run continues with other devices."""

import csv

import numpy as np
import pytest

from tests import hosts
from tests.commands import REPOSITORY

# Each process is a slice. Devices of a CPU have no slices of their own.
ON_SLICES = """
import runpy, jax
from jaxlib import _jax
_jax.Device.slice_index = property(lambda device: device.process_index)
runpy.run_module("medjax.train", run_name="__main__", alter_sys=True)
"""


def train(workdir, steps, processes, devices, *more):
    """Train to a step, with slices of so many devices; return what was said."""
    arguments = (
        "-c",
        ON_SLICES,
        f"--config={REPOSITORY}/tests/tiny_unconditional.py",
        f"--workdir={workdir}",
        "--config.data.batch_size=24",
        "--config.data.phantoms.count=48",
        "--config.optim.eps=1e-3",
        "--config.train.checkpoint_every=1",
        f"--config.train.steps={steps}",
        *more,
    )
    if processes == 1:
        started = [hosts.start_one(arguments, devices=devices)]
    else:
        started = hosts.start(arguments, hosts=processes, devices=devices)
    done = hosts.finish(started)
    assert [code for code, _, _ in done] == [0] * processes, done
    return done[0][2]


def losses(workdir):
    with (workdir / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return [float(row["train/loss"]) for row in rows]


@pytest.mark.release
def test_a_run_continues_with_other_devices_hosts_and_slices(tmp_path):
    train(tmp_path / "one", 6, 1, 1)
    several = tmp_path / "several"
    said = train(several, 2, 2, 4, "--config.mesh.fsdp=2")
    assert "on 8 × cpu (data 4, fsdp 2, tensor 1)" in said
    said = train(several, 4, 1, 1)
    assert "resuming" in said
    said = train(several, 6, 3, 4, "--config.mesh.fsdp=2")
    assert "on 12 × cpu (data 6, fsdp 2, tensor 1)" in said
    one, ours = losses(tmp_path / "one"), losses(several)
    assert len(one) == len(ours) == 6
    np.testing.assert_allclose(ours, one, rtol=1e-5)
