"""Compare an export with PyTorch: each network, and one image of a pipeline."""

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medjax import meshes, storage
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.diffusion.schedulers import own_sampler
from medjax.errors import UserError
from medjax.exporting.formats import FORMATS, Export, Exported
from medjax.exporting.image_parity import STEPS, image_error, measure_image_parity
from medjax.pretrained import Network, StableDiffusion
from medjax.pretrained.parity import measure_parity, sample_by_torch
from medjax.pretrained.torch_images import load_image_pipeline, load_modeling
from medjax.runs.open_run import Run
from medjax.sampling.generate import generate
from medjax.tasks.drawing import Request

logger = logging.getLogger(__name__)

MAX_ERROR = 1e-4
"""Largest relative error of a network whose weights are stored in float32.

Lower precisions have no limit, because they change the weights themselves.
"""
_PROMPT = "chest x-ray"


def write_parity(run: Run, model: Exported, folder: Path, export: Export) -> None:
    """Write ``parity.json``, with the difference of each network from PyTorch's.

    Args:
        run: The exported run.
        model: The run's weights in memory.
        folder: The folder of the export.
        export: Format and dtype of the export.

    Raises:
        UserError: If PyTorch cannot load the export, or if a network stored in float32
            has a relative error above `MAX_ERROR`.
    """
    logger.info("comparing the export with PyTorch (skip with --noparity)")
    report = _measured(run, model, folder, export)
    report = {"stored": export.dtype, **report}
    storage.write_json(folder / "parity.json", report, sort_keys=True)
    for name, measured in report["networks"].items():
        logger.info(
            "%s: relative L2 difference to PyTorch %.1e", name, measured["relative_l2"]
        )
    if "psnr_db" in report.get("image", {}):
        logger.info("image: PSNR to PyTorch %.0f dB", report["image"]["psnr_db"])
    if export.dtype == "float32":
        _check_errors(report["networks"])


def _check_errors(networks: Mapping[str, Mapping[str, float]]) -> None:
    """Raise UserError if the relative error of a network is too large, or NaN."""
    for name, measured in networks.items():
        error = measured["relative_l2"]
        if math.isnan(error):
            raise UserError(
                f"the export's {name} computes NaN. The run may have diverged: choose "
                "an earlier --step. Use --noparity to write the export without this "
                "check"
            )
        if error > MAX_ERROR:
            raise UserError(
                f"the export's {name} differs from the run's: its relative error in "
                f"PyTorch is {error:.1e}. Expected at most {MAX_ERROR:g}. Please "
                "report this bug. Use --noparity to write the export without this check"
            )


def _measured(
    run: Run, model: Exported, folder: Path, export: Export
) -> dict[str, Any]:
    """Return the report, without the stored dtype."""
    if not isinstance(model, Network | StableDiffusion):
        pipeline = FORMATS[export.format].whole
        with _one_line_errors():
            theirs = (load_image_pipeline if pipeline else load_modeling)(folder)
        libraries = ("torch", "diffusers") if pipeline else ("torch",)
        return measure_image_parity(model, theirs, libraries)
    with _one_line_errors():
        report = measure_parity(folder, model)
    if FORMATS[export.format].whole:
        report["image"] = _image_parity(run, folder)
    return report


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Raise UserError for any other error, because libraries raise many kinds."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"PyTorch cannot load the export: {' '.join(str(error).split()):.500}. Use "
            "--noparity to write it without this check"
        ) from error


def _image_parity(run: Run, folder: Path) -> dict[str, Any]:
    """Compare an image by our sampler with one by PyTorch's, from the same noise."""
    try:
        sampler = own_sampler(run.sd.schedule)
    except UserError as error:
        return {"left out": str(error)}
    # Four times the smallest side that the U-Net can halve.
    side = 4 * 2 ** (len(run.sd.unet.module.block_out_channels) - 1)
    vae = run.sd.vae.module
    pixels = side * vae.downsampling
    rng = np.random.default_rng(0)
    request = Request(
        number=0,
        prompt=_PROMPT,
        conditioning_image=None
        if run.sd.controlnet is None
        else (rng.random((pixels, pixels, 3)) < 0.1).astype(np.float32),
        noise=rng.standard_normal((side, side, vae.latent_channels), np.float32),
    )
    sampling = SamplingConfig(sampler=sampler, steps=STEPS)
    mesh = meshes.make_mesh(meshes.MeshConfig(), jax.devices()[:1])
    with jax.default_matmul_precision("highest"):
        (ours,) = generate(run.sd, [request], sampling, (pixels, pixels), mesh)
    assert request.noise is not None
    with _one_line_errors():
        theirs = sample_by_torch(
            folder,
            request.prompt,
            request.conditioning_image,
            request.noise,
            sampling.steps,
            sampling.guidance_scale,
        )
    return {
        **image_error(ours, theirs),
        "what": f"{pixels}² pixels, {sampler}, {STEPS} steps, guidance "
        f"{sampling.guidance_scale}; in [0, 1]",
    }
