"""Runs and samples on several devices of one process, before a release.

The steps themselves are compared in training/test_meshes.py, and processes in
test_distributed.py.
"""

import copy
import dataclasses
import os

import jax
import numpy as np
import pytest
from PIL import Image

from medjax.runs.config import parse
from medjax.training.loop import train
from tests import tiny_lora, tiny_unconditional, tiny_vqvae
from tests.commands import medjax
from tests.saved_runs import save_run
from tests.smallest import save_smallest

pytestmark = [pytest.mark.devices(4), pytest.mark.release]


@pytest.mark.parametrize("module", [tiny_lora, tiny_unconditional, tiny_vqvae])
def test_a_run_on_a_mesh_resumes_as_if_it_had_not_stopped(module, tmp_path):
    config = module.get_config()
    config.train.steps = 2
    config.train.checkpoint_every = 1
    config.optim.ema_decay = 0.9
    split = copy.deepcopy(config)
    split.mesh.update(data=2, fsdp=2)
    whole = train(parse(split), tmp_path / "whole")
    for hours, step in ((1e-9, 1), (None, 2)):
        run = parse(split)
        plan = dataclasses.replace(run.train, max_hours=hours)
        parts = train(dataclasses.replace(run, train=plan), tmp_path / "parts")
        assert int(parts.step) == step
    assert any(
        leaf.addressable_shards[0].data.size < leaf.size
        for leaf in jax.tree.leaves(parts.params)
    )
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_four_devices_draw_what_one_draws(tmp_path):
    base = save_smallest(tmp_path / "sd")
    save_run(tmp_path / "run", model__pretrained=base)
    Image.new("RGB", (64, 64), "white").save(tmp_path / "edges.png")
    drawn = []
    for devices in ("1", "4"):
        out = tmp_path / devices
        done = medjax(
            "sample",
            f"--workdir={tmp_path}/run",
            f"--edges={tmp_path}/edges.png",
            f"--out={out}",
            "--prompt=cardiomegaly",
            "--num=6",
            "--batch_size=3",
            "--steps=2",
            "--seed=3",
            env=os.environ | {"JAX_NUM_CPU_DEVICES": devices},
        )
        assert done.returncode == 0, done.stderr
        files = [out / f"{number:04d}.png" for number in range(6)]
        drawn.append(np.stack([np.asarray(Image.open(f)) for f in files]).astype(int))
    one, four = drawn
    assert one[0].std() > 0
    assert np.abs(one - four).max() <= 1
