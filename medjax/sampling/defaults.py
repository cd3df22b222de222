"""How to sample from an export by default: what diffusers has no place for."""

import dataclasses
from typing import Any

from medjax.data.controls import Preparation
from medjax.runs.open_run import Run, has_stored_controls

ABOUT = "medjax.json"
"""File of an export with what `medjax.sample` reads beside what diffusers knows."""


def sampling_defaults(run: Run) -> dict[str, Any]:
    """Return the content of `ABOUT`: size, preparation and guidance as in training."""
    data = run.config.data
    preparation = Preparation.of_training(data, has_stored_controls(run))
    return {
        "image_size": data.image_size,
        "preparation": dataclasses.asdict(preparation),
        "guidance_scale": run.config.eval.guidance_scale,
    }
