"""Exported adapters give the same in PyTorch diffusers with peft, of whichever version.

As in `test_newest_torch`, `MEDJAX_NEWEST_TORCH` names the Python that has them, or else
it is this one.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.export import export
from medjax.pretrained import save_stable_diffusion
from medjax.pretrained.tiny import tiny_stable_diffusion
from medjax.runs.open_run import load_run
from tests.saved_runs import save_run
from tests.tiny_lora import get_config

PYTHON = os.environ.get("MEDJAX_NEWEST_TORCH", sys.executable)
SCRIPT = Path(__file__).parents[1] / "torch_newest_lora.py"
LIMIT = 1e-4


def relative(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def apply(network, *inputs):
    run = jax.jit(lambda p, *x: network.module.apply({"params": p}, *x))
    return np.asarray(run(network.params, *map(jnp.asarray, inputs)))


def ours(sd, inputs):
    text = apply(sd.text_encoder, inputs["text_ids"])
    latents = inputs["noisy_latents"], inputs["timesteps"]
    return {"text_embeddings": text, "model_output": apply(sd.unet, *latents, text)}


@pytest.mark.release
@pytest.mark.parametrize("variant", ["", "unet", "text_encoder"])
def test_adapters_and_what_they_merge_into_are_torchs(variant, tmp_path):
    asked = [PYTHON, "-c", "import importlib.metadata as m; m.version('peft')"]
    if subprocess.run(asked, capture_output=True, check=False).returncode:
        pytest.skip(f"peft absent: {PYTHON}")
    save_run(tmp_path / "run", config=get_config(variant))
    save_stable_diffusion(base := tiny_stable_diffusion(), tmp_path / "base")
    sd = load_run(tmp_path / "run").sd
    rng = np.random.default_rng(0)
    channels = sd.unet.module.in_channels
    inputs = {
        "noisy_latents": rng.standard_normal((2, 16, 16, channels), np.float32),
        "timesteps": np.array([10, 800]),
        "text_ids": rng.integers(0, 50, (2, 77)),
    }
    np.savez(tmp_path / "inputs.npz", **inputs)
    expected, before = ours(sd, inputs), ours(base, inputs)
    asked = []
    for format, place, file in (
        ("lora", "base", "pytorch_lora_weights.safetensors"),
        ("kohya", "base", "lora_run.safetensors"),
        ("pipeline", "pipeline", ""),
    ):
        export(tmp_path / "run", tmp_path / format, format=format, parity=False)
        output = tmp_path / f"{format}.npz"
        asked += [tmp_path / place, tmp_path / format, file, output]
    done = subprocess.run(
        [PYTHON, SCRIPT, tmp_path / "inputs.npz", *asked],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for format in ("lora", "kohya", "pipeline"):
        with np.load(tmp_path / f"{format}.npz") as output:
            for name, array in expected.items():
                found = relative(output[name], array)
                print(f"{variant} {format} {name}: {found:.1e};", *output["versions"])
                assert found <= LIMIT
    # The adapters do something.
    assert relative(before["model_output"], expected["model_output"]) > 100 * LIMIT
