"""What an export's folder holds, in each of the formats."""

import logging
from pathlib import Path

import jax.numpy as jnp

from medjax.errors import UserError
from medjax.pretrained import save_controlnet, save_stable_diffusion
from medjax.pretrained.diffusers_format import write_json
from medjax.pretrained.parity import measure_parity
from medjax.pretrained.single_file_out import save_controlnet_file
from medjax.training.model_card import Export, model_card
from medjax.training.runs import Run

logger = logging.getLogger(__name__)


def check_holds(run: Run, export: Export) -> None:
    """Check that a format holds all that was trained.

    Raises:
        UserError: If the U-Net trained too, and the format has no place for it.
    """
    if export.format != "pipeline" and "unet" in run.trained:
        raise UserError(
            f"--format={export.format}: has no place for the U-Net, which this run "
            "trained too (config.model.train_unet or sd_locked=False), and without it "
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
    assert run.sd.controlnet is not None
    dtype = jnp.dtype(export.dtype)
    if export.format == "pipeline":
        save_stable_diffusion(run.sd, folder, dtype)
    elif export.format == "controlnet":
        save_controlnet(run.sd.controlnet, folder, dtype)
    else:
        save_controlnet_file(run.sd.controlnet, folder / export.file, dtype)
    (folder / "README.md").write_text(model_card(run, export), encoding="utf-8")
    if parity:
        _write_parity(run, folder, export)


def _write_parity(run: Run, folder: Path, export: Export) -> None:
    try:
        report = measure_parity(folder, run.sd)
    # Whatever the libraries raise, the export is not what they load.
    except Exception as error:
        raise UserError(
            f"PyTorch cannot load what would be exported: {error}; --noparity writes "
            "it without asking PyTorch"
        ) from error
    write_json(folder / "parity.json", {"stored": export.dtype, **report})
    for name, measured in report["networks"].items():
        logger.info(
            "%s: PyTorch differs by %.1e of its norm", name, measured["relative_l2"]
        )
