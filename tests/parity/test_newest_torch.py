"""An export gives the same images in PyTorch diffusers, of whichever version.

`MEDJAX_NEWEST_TORCH` names the Python of an environment with the newest ones, which
`.ci/run` makes; without it, it is this one's.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from medjax.diffusion.sampling_config import SamplingConfig
from medjax.diffusion.schedulers import own_sampler
from medjax.export import export
from medjax.meshes import MeshConfig, make_mesh
from medjax.runs.open_run import load_run
from medjax.sampling.generate import generate
from medjax.tasks.drawing import Request
from tests.saved_runs import save_run

PYTHON = os.environ.get("MEDJAX_NEWEST_TORCH", sys.executable)
SCRIPT = Path(__file__).parents[1] / "torch_newest.py"
PROMPTS = ["chest x-ray with cardiomegaly", "no finding"]
NEGATIVE = ["blurred", ""]
LEAST_PSNR = 50


def psnr(images, expected):
    """Return the peak signal-to-noise ratio of images in [0, 1], in dB."""
    error = np.mean((np.float64(images) - expected) ** 2)
    return -10 * np.log10(error)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("epsilon", marks=pytest.mark.ci),
        pytest.param("v_prediction", marks=pytest.mark.release),
        pytest.param("sample", marks=pytest.mark.release),
    ],
)
def test_twenty_steps_with_guidance_give_torchs_images(kind, tmp_path):
    save_run(tmp_path / "run", diffusion__prediction_type=kind)
    folder = export(tmp_path / "run", tmp_path / "x", parity=False)
    rng = np.random.default_rng(0)
    inputs = {
        "latents": rng.standard_normal((2, 32, 32, 4), np.float32),
        "conditioning_image": np.float32(rng.random((2, 64, 64, 3)) < 0.1),
        "prompts": np.array(PROMPTS),
        "negative_prompts": np.array(NEGATIVE),
        "steps": np.array(20),
        "guidance_scale": np.array(7.5),
        "conditioning_scale": np.array(0.8),
    }
    np.savez(tmp_path / "inputs.npz", **inputs)
    done = subprocess.run(
        [PYTHON, SCRIPT, folder, tmp_path / "inputs.npz", tmp_path / "output.npz"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "output.npz") as output:
        expected, versions = output["images"], output["versions"]

    sd = load_run(tmp_path / "run").sd
    requests = [
        Request(
            number,
            PROMPTS[number],
            NEGATIVE[number],
            inputs["conditioning_image"][number],
            noise=inputs["latents"][number],
        )
        for number in range(2)
    ]
    sampling = SamplingConfig(
        sampler=own_sampler(sd.schedule),
        steps=20,
        guidance_scale=7.5,
        conditioning_scale=0.8,
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    images = np.stack([*generate(sd, requests, sampling, (64, 64), mesh)])
    found = psnr(images / 2 + 0.5, expected)
    print(f"{kind}, {own_sampler(sd.schedule)}: PSNR {found:.1f} dB;", *versions)
    assert expected.std() > 0.02
    assert found >= LEAST_PSNR
