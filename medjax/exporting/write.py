"""What an export's folder holds, in each of the formats."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medjax import meshes
from medjax.data.pipeline import open_dataset
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.diffusion.schedulers import own_sampler
from medjax.errors import UserError
from medjax.exporting.model_card import Export, model_card
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.pretrained import (
    Network,
    StableDiffusion,
    save_autoencoder,
    save_controlnet,
    save_stable_diffusion,
)
from medjax.pretrained.diffusers_format import write_json
from medjax.pretrained.lora_files import save_diffusers_lora, save_kohya_lora
from medjax.pretrained.parity import measure_parity, sample_by_torch
from medjax.pretrained.phantom import scaled
from medjax.pretrained.single_file_out import save_controlnet_file
from medjax.runs.open_run import Run
from medjax.sampling.defaults import ABOUT, sampling_defaults
from medjax.sampling.generate import Request, generate
from medjax.tasks.autoencoder_kl import kl_network
from medjax.tasks.latent_scaling import TrainedAutoencoder, latent_deviation

logger = logging.getLogger(__name__)

# The formats that hold what a task trains; the first is the usual one.
_FORMATS = {
    "controlnet": ("pipeline", "controlnet", "single_file"),
    "text_to_image": ("pipeline",),
    "autoencoder_kl": ("vae",),
}
# Of a run that trained adapters.
_LORA_FORMATS = ("lora", "kohya", "pipeline")
_PROMPT, _STEPS = "chest x-ray", 20


def format_for(run: Run, asked: str | None) -> str:
    """Return the format that was asked for, or the usual one.

    Raises:
        UserError: If nothing that the run trained can be exported, or the format has no
            place for all of it.
    """
    task = run.config.task
    if task not in _FORMATS:
        raise UserError(
            f"a run of task {task} cannot be exported; expected one of task "
            f"{', '.join(_FORMATS)}"
        )
    formats = _FORMATS[task]
    if task == "text_to_image" and run.sd.adapters:
        formats = _LORA_FORMATS
    if asked is not None and asked not in formats:
        raise UserError(
            f"--format={asked} is not for runs of task {task}; expected "
            f"--format={' or '.join(formats)}"
        )
    if asked in ("controlnet", "single_file") and "unet" in run.trained:
        raise UserError(
            f"--format={asked}: has no place for the U-Net, which this run trained too "
            "(config.model.train_unet or sd_locked=False), and without it images are "
            "others; expected --format=pipeline"
        )
    chosen = asked or formats[0]
    if chosen in ("lora", "kohya"):
        _check_low_rank(run, chosen)
    return chosen


def _check_low_rank(run: Run, chosen: str) -> None:
    """Check that adapters alone are what the run trained."""
    for network, adapters in run.sd.adapters.items():
        if adapters.rest:
            paths = ", ".join(f"{network}/{path}" for path in adapters.rest)
            raise UserError(
                f"--format={chosen}: has no place for {paths}, which this run trained "
                f"too (config.model.{network}_lora.modules_to_save), and without it "
                "images are others; expected --format=pipeline"
            )


def write_export(run: Run, folder: Path, export: Export, parity: bool) -> None:
    """Write weights, model card and, if asked for, ``parity.json``.

    Args:
        run: What to export.
        folder: Empty.
        export: What to write, and under what name.
        parity: Whether to measure the networks against PyTorch's.

    Raises:
        UserError: If the format or dtype cannot hold the weights, or PyTorch does not
            load what was written.
    """
    dtype = jnp.dtype(export.dtype)
    model: Network | StableDiffusion
    model = _autoencoder(run) if export.format == "vae" else run.sd
    if isinstance(model, Network):
        save_autoencoder(model, folder, dtype)
    elif export.format == "lora":
        save_diffusers_lora(run.sd.adapters, folder / export.file, dtype)
    elif export.format == "kohya":
        save_kohya_lora(run.sd.adapters, folder / export.file, dtype)
    elif export.format == "pipeline":
        save_stable_diffusion(run.sd, folder, dtype)
    else:
        assert run.sd.controlnet is not None
        if export.format == "controlnet":
            save_controlnet(run.sd.controlnet, folder, dtype)
        else:
            save_controlnet_file(run.sd.controlnet, folder / export.file, dtype)
    if export.format not in ("vae", "lora", "kohya"):
        write_json(folder / ABOUT, sampling_defaults(run))
    (folder / "README.md").write_text(model_card(run, export), encoding="utf-8")
    if parity:
        _write_parity(run, model, folder, export)


def _autoencoder(run: Run) -> Network:
    """Return the KL autoencoder of a run, with the factor that scales its latents.

    That of a base is its base's; otherwise it is measured on the training images.
    """
    trained = run.model
    assert isinstance(trained, TrainedAutoencoder)
    assert isinstance(trained.module, AutoencoderKL)
    network = kl_network(trained.module, trained.weights["network"])
    if run.config.model.pretrained is not None:
        return network
    data = run.config.data
    try:
        source = open_dataset(data, "train")
    except UserError as error:
        raise UserError(
            "what scales its latents to unit variance is measured on the training "
            f"images, which are not at hand: {error}"
        ) from error
    key = jax.random.key(run.config.train.seed)
    return scaled(network, float(latent_deviation(trained, source, data, key)))


def _write_parity(
    run: Run, model: Network | StableDiffusion, folder: Path, export: Export
) -> None:
    logger.info("comparing it with PyTorch; --noparity leaves that out")
    with _told_of_torch():
        report = measure_parity(folder, model)
    if export.format == "pipeline":
        report["image"] = _image_parity(run, folder)
    write_json(folder / "parity.json", {"stored": export.dtype, **report})
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
