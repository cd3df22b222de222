r"""Export what a run trained, for PyTorch diffusers and for web UIs.

It needs no torch.

    medjax export --workdir=RUN --to=DIR

DIR becomes a StableDiffusionControlNetPipeline with a model card and, where torch and
diffusers are installed, parity.json: how far each network is from PyTorch's. The
ControlNet alone, or in one file with the original names, control_RUN.safetensors:

    medjax export --workdir=RUN --to=DIR --format=controlnet
    medjax export --workdir=RUN --to=DIR --format=single_file --dtype=float16

Runs of text_to_image become a StableDiffusionPipeline; with adapters, what diffusers'
load_lora_weights reads, one file for web UIs, lora_RUN.safetensors (--format=kohya), or
a pipeline with the adapters merged into it. Runs of autoencoder_kl become an
AutoencoderKL, which --config.model.vae=DIR puts into the Stable Diffusion of others.

DIR appears when all of it is written, or not at all. The run may still be training.
"""

import fnmatch
import logging
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from medjax import cli, storage
from medjax.errors import UserError, nearest

# By name, because this module may run as "__main__".
_LOGGER = logging.getLogger("medjax.export")
_FORMATS = ("pipeline", "controlnet", "single_file", "vae", "lora", "kohya")
# Of those, what PyTorch does not load as a folder by itself, and its file for a run.
_FILES = {
    "single_file": "control_{run}.safetensors",
    "lora": "pytorch_lora_weights.safetensors",
    "kohya": "lora_{run}.safetensors",
}
_DTYPES = ("float32", "float16", "bfloat16")
# All that an export writes; a folder with anything else in it is never replaced.
_OWN = (
    *("README.md", "parity.json", "medjax.json", "model_index.json", "config.json"),
    *("unet", "vae", "text_encoder", "tokenizer", "scheduler", "controlnet"),
    *("diffusion_pytorch_model.safetensors", "control_*.safetensors"),
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
) -> Path:
    """Write what a run trained to a folder.

    Args:
        workdir: Where `medjax.train` wrote.
        to: The folder to make.
        step: Which checkpoint, a number or best; the newest whole one if None.
        weights: ema, raw, or auto: the average, where the run kept one.
        base: Where the run's base lies now, if not where it lay.
        dtype: What weights are stored as: float32, float16 or bfloat16.
        format: pipeline, controlnet, single_file, vae, lora or kohya; None for the
            whole of what a run of its task makes, or its adapters alone.
        parity: Whether to measure the networks against PyTorch's; None does where the
            libraries for it are installed and the format is a folder.
        overwrite: Whether an export that is there may be replaced.
        push_to: Hub id to upload to.

    Returns:
        The folder.

    Raises:
        UserError: If there is nothing to export, `to` is taken or cannot be written
            to, the format does not hold what was trained, or the hub refuses. Only in
            the last case is there an export.
    """
    if format is not None:
        _check_choice("format", format, _FORMATS)
    _check_choice("dtype", dtype, _DTYPES)
    target = _target(to, overwrite)
    from medjax.exporting.formats import Export, format_for
    from medjax.exporting.write import write_export
    from medjax.pretrained import hub
    from medjax.runs.open_run import load_run

    if push_to:
        hub.check_upload(push_to)
    if format is not None:
        # Here already, for reading a run may take a minute; it tells any other.
        _parity(parity, format)
    run = load_run(workdir, step, weights, base)
    kind = format_for(run, format)
    name = Path(workdir).expanduser().resolve().name
    file = _FILES.get(kind, "").format(run=name)
    what = Export(push_to or target.name, kind, dtype, file)
    parity = _parity(parity, kind)
    with storage.replacing_folder(target) as folder:
        write_export(run, folder, what, parity)
    _LOGGER.info("step %d (%s weights) is in %s", run.step, run.weights, target)
    if push_to:
        address = hub.upload(target, push_to, f"Step {run.step}, by medjax")
        _LOGGER.info("and on %s", address)
    return target


def _check_choice(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(
            f"--{flag}={value}: expected one of {', '.join(choices)}"
            f"{nearest(value, choices)}"
        )


def _parity(asked: bool | None, format: str | None) -> bool:
    """Return whether to measure against PyTorch."""
    from medjax.pretrained.parity import missing_libraries

    missing = missing_libraries()
    if asked and format in _FILES:
        raise UserError(f"--parity: PyTorch loads folders, not --format={format}")
    if asked and missing:
        raise UserError(
            f"--parity needs {', '.join(missing)}; install it, or --noparity"
        )
    return not missing and format not in _FILES if asked is None else asked


def _target(to: str | Path, overwrite: bool) -> Path:
    """Return the folder to make; refuse one that must not be replaced."""
    if not str(to):
        raise UserError("--to is empty; give a folder that is not there yet")
    target = Path(to).expanduser().resolve()
    if target.exists() and not target.is_dir():
        raise UserError(
            f"--to={to}: is a file, expected a folder that is not there yet"
        )
    if target == Path.cwd() or target in Path.cwd().parents or target.is_mount():
        raise UserError(
            f"--to={to}: is the folder you are in, one above it, or a mounted disk; "
            "give a folder of its own"
        )
    storage.recover(target)
    content = [one.name for one in storage.listed(target)]
    foreign = [n for n in content if not any(fnmatch.fnmatch(n, own) for own in _OWN)]
    if foreign or (content and not overwrite):
        raise UserError(
            f"--to={to}: already has {(foreign or content)[0]} in it; give a folder of "
            "its own" + ("" if foreign else ", or --overwrite the export that is there")
        )
    cli.writable_folder(target.parent, "--to")
    return target


def define_flags() -> None:
    """Define the command's flags; not on import, where commands would collide."""
    flags.DEFINE_string("workdir", None, "folder of the run", required=True)
    flags.DEFINE_string("to", None, "folder to make", required=True)
    flags.DEFINE_string(
        "step",
        None,
        "which checkpoint: its number, or best, by what validation measured "
        "(config.best); by default the newest whole one",
    )
    flags.DEFINE_string(
        "weights", "auto", "ema, raw, or auto: the average, where the run kept one"
    )
    flags.DEFINE_string(
        "base", None, "where the run's base lies now, if not where it lay"
    )
    flags.DEFINE_string("dtype", "float32", f"stored as: {', '.join(_DTYPES)}")
    flags.DEFINE_string(
        "format",
        None,
        f"{', '.join(_FORMATS)}; by default the whole of what a run of its task makes, "
        "or its adapters alone",
    )
    flags.DEFINE_boolean(
        "parity",
        None,
        "measure the networks against PyTorch's; by default where torch, diffusers and "
        "transformers are installed",
    )
    flags.DEFINE_boolean("overwrite", False, "replace the export in --to")
    flags.DEFINE_string("push_to", None, "hub id to upload to; a new one is private")


def main(_: Sequence[str]) -> None:
    """Export as the flags say."""
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
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
