"""Run exports in processes that cannot import medjax.

As a program, it samples from all exports in a folder, and saves the arrays. The name of
each export begins with the name of its format.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

STEPS, SEED, GUIDANCE = 5, 3, 2.0
# A module that is None cannot be imported.
FORBID = "import sys; sys.modules |= dict.fromkeys(('medjax', 'jax', 'flax'))\n"


def run_code(code, folder):
    """Run Python code in a folder, and return the finished process."""
    return subprocess.run(
        [sys.executable, "-c", FORBID + code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def sample_all(folder):
    """Run this file as a program."""
    words = [sys.executable, __file__, str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def own_code(folder):
    """Return the module ``modeling.py`` of an export."""
    spec = importlib.util.spec_from_file_location("modeling", folder / "modeling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_pipeline(folder):
    """Return noise, and the image that a pipeline of diffusers makes of it."""
    import diffusers
    import torch

    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    assert type(pipeline).__name__ == "DDIMPipeline"
    seeded = torch.Generator().manual_seed(SEED)
    (image,) = pipeline(
        generator=seeded, num_inference_steps=STEPS, output_type="np"
    ).images
    size = pipeline.unet.config.sample_size
    shape = (1, pipeline.unet.config.in_channels, size, size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
    return noise[0].permute(1, 2, 0).numpy(), 2 * image - 1


def by_own_code(folder):
    """Return input and output: noise and an image, or an image and its like."""
    import torch

    model = own_code(folder).load(folder)
    size = json.loads((folder.parent / "size.json").read_text())
    seeded = torch.Generator().manual_seed(SEED)
    if not hasattr(model, "sample"):
        given = torch.rand((1, model.channels, size, size), generator=seeded) * 2 - 1
        made = model(given)
    else:
        given = model.noise(1, size, size, seeded)
        labels = model.classes[1:2] or None
        made = model.sample(given, labels, STEPS, GUIDANCE if labels else 1.0)
    return [x[0].permute(1, 2, 0).numpy() for x in (given, made)]


if __name__ == "__main__":
    exec(FORBID)
    for folder in sorted(Path(sys.argv[1]).glob("*-*")):
        run = by_pipeline if folder.name.startswith("pipeline") else by_own_code
        given, made = run(folder)
        np.savez(folder.with_suffix(".npz"), given=given, made=made)
