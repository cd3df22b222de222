"""Measure an export against PyTorch: each network, and an image of a pipeline."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medjax import meshes, storage
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.diffusion.schedulers import own_sampler
from medjax.errors import UserError
from medjax.exporting.formats import FORMATS, Export
from medjax.pretrained import Network, StableDiffusion
from medjax.pretrained.parity import measure_parity, sample_by_torch
from medjax.runs.open_run import Run
from medjax.sampling.generate import generate
from medjax.tasks.drawing import Request

logger = logging.getLogger(__name__)

_PROMPT, _STEPS = "chest x-ray", 20


def write_parity(
    run: Run, model: Network | StableDiffusion, folder: Path, export: Export
) -> None:
    """Write ``parity.json``: how far each network is from PyTorch's.

    Args:
        run: The run that was exported.
        model: Its weights, as they were in memory.
        folder: The export.
        export: Its format and dtype.

    Raises:
        UserError: If PyTorch does not load what was written.
    """
    logger.info("comparing it with PyTorch; --noparity leaves that out")
    with _told_of_torch():
        report = measure_parity(folder, model)
    if FORMATS[export.format].whole:
        report["image"] = _image_parity(run, folder)
    report = {"stored": export.dtype, **report}
    storage.write_json(folder / "parity.json", report, sort_keys=True)
    for name, measured in report["networks"].items():
        logger.info(
            "%s: PyTorch differs by %.1e of its norm", name, measured["relative_l2"]
        )
    if "psnr_db" in report.get("image", {}):
        logger.info("an image: PSNR %.0f dB", report["image"]["psnr_db"])


@contextlib.contextmanager
def _told_of_torch() -> Iterator[None]:
    """Say that PyTorch's libraries fail, whatever they raise."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"PyTorch cannot load what would be exported: {error}; --noparity writes "
            "it without asking PyTorch"
        ) from error


def _image_parity(run: Run, folder: Path) -> dict[str, Any]:
    """Draw an image by our sampler and by PyTorch's, of the same noise."""
    try:
        sampler = own_sampler(run.sd.schedule)
    except UserError as error:
        return {"left out": str(error)}
    # As few latents as the U-Net can halve, four times over.
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
    sampling = SamplingConfig(sampler=sampler, steps=_STEPS)
    mesh = meshes.make_mesh(meshes.MeshConfig(), jax.devices()[:1])
    with jax.default_matmul_precision("highest"):
        (ours,) = generate(run.sd, [request], sampling, (pixels, pixels), mesh)
    assert request.noise is not None
    with _told_of_torch():
        theirs = sample_by_torch(
            folder,
            request.prompt,
            request.conditioning_image,
            request.noise,
            sampling.steps,
            sampling.guidance_scale,
        )
    # Of images in [0, 1].
    apart = (ours.astype(np.float64) - theirs) / 2
    return {
        "psnr_db": float(-10 * np.log10(max(np.mean(apart**2), 1e-12))),
        "max_abs": float(np.abs(apart).max()),
        "what": f"{pixels}² pixels, {sampler}, {_STEPS} steps, guidance "
        f"{sampling.guidance_scale}; in [0, 1]",
    }
