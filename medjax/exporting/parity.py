"""Compare an export with PyTorch: each network, and one image of a pipeline."""

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
    """Write ``parity.json``, with the difference of each network from PyTorch's.

    Args:
        run: The exported run.
        model: The run's weights in memory.
        folder: The folder of the export.
        export: Format and dtype of the export.

    Raises:
        UserError: If PyTorch cannot load the export.
    """
    logger.info("comparing the export with PyTorch (skip with --noparity)")
    with _told_of_torch():
        report = measure_parity(folder, model)
    if FORMATS[export.format].whole:
        report["image"] = _image_parity(run, folder)
    report = {"stored": export.dtype, **report}
    storage.write_json(folder / "parity.json", report, sort_keys=True)
    for name, measured in report["networks"].items():
        logger.info(
            "%s: relative L2 difference to PyTorch %.1e", name, measured["relative_l2"]
        )
    if "psnr_db" in report.get("image", {}):
        logger.info("image: PSNR to PyTorch %.0f dB", report["image"]["psnr_db"])


@contextlib.contextmanager
def _told_of_torch() -> Iterator[None]:
    """Raise UserError for any error of PyTorch's libraries."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"PyTorch cannot load the export: {error}. Use --noparity to write it "
            "without this check"
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
    # Scale from [-1, 1] to [0, 1].
    apart = (ours.astype(np.float64) - theirs) / 2
    return {
        "psnr_db": float(-10 * np.log10(max(np.mean(apart**2), 1e-12))),
        "max_abs": float(np.abs(apart).max()),
        "what": f"{pixels}² pixels, {sampler}, {_STEPS} steps, guidance "
        f"{sampling.guidance_scale}; in [0, 1]",
    }
