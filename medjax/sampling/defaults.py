"""Default sampling settings of an export that diffusers' files cannot store."""

import dataclasses
from typing import Any

from medjax.data.controls import Preparation
from medjax.pretrained import StableDiffusion
from medjax.runs.open_run import Run, has_stored_controls
from medjax.tasks import TASKS

ABOUT = "medjax.json"
"""File of an export with the run's settings that the weights' own files lack.

`medjax.sample` reads it for models with captions.
"""


def sampling_defaults(run: Run) -> dict[str, Any]:
    """Return the content of `ABOUT`.

    It is the run's image size, guidance and preparation of the conditioning image; for
    a model without captions, it is image size, guidance, classes and sampler.
    """
    data = run.config.data
    if not isinstance(run.model, StableDiffusion):
        sampling = run.config.eval.sampling()
        return {
            "image_size": data.image_size,
            "classes": TASKS[run.config.task].classes(data),
            "guidance_scale": sampling.guidance_scale,
            "sampler": sampling.sampler,
            "steps": sampling.steps,
            "eta": sampling.eta,
        }
    preparation = Preparation.of_training(data, has_stored_controls(run))
    return {
        "image_size": data.image_size,
        "preparation": dataclasses.asdict(preparation),
        "guidance_scale": run.config.eval.guidance_scale,
    }
