r"""Export the model of a run for PyTorch diffusers and for web UIs.

The command does not require torch.

    medjax export --workdir=RUN --to=DIR

DIR becomes a StableDiffusionControlNetPipeline with a model card. If torch and
diffusers are installed, it also gets parity.json, with the difference of each network
from PyTorch's. To export the ControlNet alone, as a folder or as one file with the
original names, control_RUN.safetensors:

    medjax export --workdir=RUN --to=DIR --format=controlnet
    medjax export --workdir=RUN --to=DIR --format=single_file --dtype=float16

A run of text_to_image becomes a StableDiffusionPipeline. A run with adapters becomes
weights for diffusers' load_lora_weights, one file for web UIs, lora_RUN.safetensors
(--format=kohya), or a pipeline with the adapters merged into it. A run of
autoencoder_kl becomes an AutoencoderKL; --config.model.vae=DIR uses it in the Stable
Diffusion of another run.

A run of unconditional on pixels, with the architecture unet_2d and without classes,
becomes a DDIMPipeline or DDPMPipeline. Other runs of unconditional, and runs of vq_vae,
become weights and modeling.py (--format=pytorch). This file of PyTorch loads the
weights. It requires neither medjax nor diffusers.

DIR appears only when all files are written. The run may still be training.
"""

import fnmatch
import logging
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from medjax import cli, storage
from medjax.errors import UserError, nearest

# The name is explicit, because this module may run as "__main__".
_LOGGER = logging.getLogger("medjax.export")
_FORMATS = ("pipeline", "controlnet", "single_file", "vae", "pytorch", "lora", "kohya")
# Formats that PyTorch does not load as a folder, and the name of their file.
_FILES = {
    "single_file": "control_{run}.safetensors",
    "lora": "pytorch_lora_weights.safetensors",
    "kohya": "lora_{run}.safetensors",
}
_DTYPES = ("float32", "float16", "bfloat16")
# Files of an export. A folder that contains any other file is never replaced.
_OWN = (
    *("README.md", "parity.json", "medjax.json", "model_index.json", "config.json"),
    *("unet", "vae", "text_encoder", "tokenizer", "scheduler", "controlnet"),
    *("diffusion_pytorch_model.safetensors", "control_*.safetensors"),
    # Python writes the last one where it imports modeling.py.
    *("model.safetensors", "modeling.py", "__pycache__"),
    *("pytorch_lora_weights.safetensors", "lora_*.safetensors"),
)


def export(
    workdir: str | Path,
    to: str | Path,
    *,
    step: int | str | None = None,
    weights: str = "auto",
    base: str | None = None,
    dtype: str = "float32",
    format: str | None = None,
    parity: bool | None = None,
    overwrite: bool = False,
    push_to: str | None = None,
    i_may_share: bool = False,
) -> Path:
    """Write the model of a run to a folder.

    Args:
        workdir: Folder of a run of `medjax.train`.
        to: Folder to create.
        step: Checkpoint of the run: a number, or best. None means the newest complete
            checkpoint.
        weights: ema, raw, or auto. auto means ema if the run kept a moving average.
        base: New location of the run's base. None means that it has not moved.
        dtype: Dtype of the stored weights: float32, float16 or bfloat16.
        format: pipeline, controlnet, single_file, vae, pytorch, lora or kohya. None
            means the whole model of the task, or the adapters alone if the run trained
            adapters.
        parity: Whether to compare the networks with PyTorch's. None means yes if the
            required libraries are installed and the format is a folder.
        overwrite: Whether an existing export may be replaced.
        push_to: Hub id to upload to.
        i_may_share: Whether the user may share the model, although the terms of its
            data may not allow it or are unknown.

    Returns:
        The folder.

    Raises:
        UserError: If the run cannot be exported, if `to` exists already or cannot be
            written, if the format cannot store what was trained, if the terms of the
            data may forbid an upload, or if the hub refuses. Only in the last case, the
            export exists.
    """
    if format is not None:
        _check_choice("format", format, _FORMATS)
    _check_choice("dtype", dtype, _DTYPES)
    target = _target(to, overwrite)
    from medjax.exporting.formats import Export, format_for
    from medjax.exporting.terms import check_terms
    from medjax.exporting.write import write_export
    from medjax.pretrained import hub
    from medjax.runs.open_run import load_run

    if push_to:
        hub.check_upload(push_to)
    if format is not None:
        # Check before reading the run, because that may take a minute.
        _parity(parity, format)
    run = load_run(workdir, step, weights, base)
    if push_to and not i_may_share:
        check_terms(run)
    kind = format_for(run, format)
    name = Path(workdir).expanduser().resolve().name
    file = _FILES.get(kind, "").format(run=name)
    what = Export(push_to or target.name, kind, dtype, file)
    compares = _parity(parity, kind)
    if parity is None and not compares and kind not in _FILES:
        missing = ", ".join(_missing(kind))
        _LOGGER.info("not compared with PyTorch. Not installed: %s", missing)
    with storage.replacing_folder(target) as folder:
        write_export(run, folder, what, compares)
    _LOGGER.info("step %d (%s weights) is in %s", run.step, run.weights, target)
    if push_to:
        address = hub.upload(target, push_to, f"Step {run.step}, by medjax")
        _LOGGER.info("uploaded to %s", address)
    return target


def _check_choice(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(
            f"--{flag}={value}: expected one of {', '.join(choices)}"
            f"{nearest(value, choices)}"
        )


def _parity(asked: bool | None, format: str | None) -> bool:
    """Return whether to compare with PyTorch."""
    missing = _missing(format)
    if asked and format in _FILES:
        raise UserError(f"--parity: PyTorch loads only folders, not --format={format}")
    if asked and missing:
        raise UserError(
            f"--parity requires {', '.join(missing)}. Install it, or use --noparity"
        )
    return not missing and format not in _FILES if asked is None else asked


def _missing(format: str | None) -> list[str]:
    """Return the missing libraries that the comparison with PyTorch requires."""
    from medjax.pretrained.parity import LIBRARIES, missing_libraries

    return missing_libraries(("torch",) if format == "pytorch" else LIBRARIES)


def _target(to: str | Path, overwrite: bool) -> Path:
    """Return the folder to create, after checking that it may be replaced."""
    if not str(to):
        raise UserError("--to is empty. Expected a folder that does not exist yet")
    target = Path(to).expanduser().resolve()
    if target.exists() and not target.is_dir():
        raise UserError(
            f"--to={to}: is a file. Expected a folder that does not exist yet"
        )
    if target == Path.cwd() or target in Path.cwd().parents or target.is_mount():
        raise UserError(
            f"--to={to}: is the current folder, a folder above it, or a mounted disk. "
            "Use another folder"
        )
    storage.recover(target)
    content = [one.name for one in storage.listed(target)]
    foreign = [n for n in content if not any(fnmatch.fnmatch(n, own) for own in _OWN)]
    if foreign or (content and not overwrite):
        raise UserError(
            f"--to={to}: already contains {(foreign or content)[0]}. Use another "
            "folder" + ("" if foreign else ", or replace the export with --overwrite")
        )
    cli.writable_folder(target.parent, "--to")
    return target


def define_flags() -> None:
    """Define the flags. Not on import, because flags of two commands would collide."""
    flags.DEFINE_string("workdir", None, "folder of the run", required=True)
    flags.DEFINE_string("to", None, "folder to create", required=True)
    flags.DEFINE_string(
        "step",
        None,
        "step of the checkpoint, or best, by the validation metric in config.best; by "
        "default the newest complete checkpoint",
    )
    flags.DEFINE_string(
        "weights", "auto", "ema, raw, or auto: ema if the run kept a moving average"
    )
    flags.DEFINE_string("base", None, "new location of the run's base, if it has moved")
    flags.DEFINE_string(
        "dtype", "float32", f"dtype of the stored weights: {', '.join(_DTYPES)}"
    )
    flags.DEFINE_string(
        "format",
        None,
        f"{', '.join(_FORMATS)}; by default the whole model of the task, or the "
        "adapters alone if the run trained adapters",
    )
    flags.DEFINE_boolean(
        "parity",
        None,
        "compare the networks with PyTorch's; by default if torch, diffusers and "
        "transformers are installed, or torch alone for --format=pytorch",
    )
    flags.DEFINE_boolean("overwrite", False, "replace the export in --to")
    flags.DEFINE_string(
        "push_to", None, "hub id to upload to; a new repository is private"
    )
    flags.DEFINE_boolean(
        "i_may_share",
        False,
        "upload although the terms of the data may forbid sharing a model of them",
    )


def main(_: Sequence[str]) -> None:
    """Export with the values of the flags."""
    from medjax.compilation import keep_compiled
    from medjax.hosts import refuse_several

    refuse_several("medjax export")
    keep_compiled()
    values = flags.FLAGS
    export(
        values.workdir,
        values.to,
        step=values.step,
        weights=values.weights,
        base=values.base,
        dtype=values.dtype,
        format=values.format,
        parity=values.parity,
        overwrite=values.overwrite,
        push_to=values.push_to,
        i_may_share=values.i_may_share,
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
