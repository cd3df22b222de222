"""Mistakes in `python -m medjax.export`."""

import os
import shutil
from pathlib import Path

from medjax.pretrained import save_stable_diffusion
from medjax.pretrained.tiny import tiny_stable_diffusion
from tests.mistakes import Mistake
from tests.saved_runs import save_run


def export(name: str, *arguments: str, says: tuple[str, ...], **more) -> Mistake:
    """Return a mistake in exporting a run that is there."""
    typed = ("--workdir={dir}/run", "--to={dir}/to", *arguments)
    return Mistake(name, typed, says, command="export", **more)


def run(folder: Path) -> None:
    """Put a run there; all tests share its making."""
    shared = folder.parent / "trained"
    if not shared.exists():
        save_run(shared)
    shutil.copytree(shared, folder / "run")


def run_without_its_base(folder: Path) -> None:
    """Put a run there whose base, ``gone`` beside the folder, is no more."""
    shared, gone = folder.parent / "baseless", folder.parent / "gone"
    if not shared.exists():
        save_stable_diffusion(tiny_stable_diffusion(), gone)
        save_run(shared, model__pretrained=str(gone))
    shutil.rmtree(gone, ignore_errors=True)
    shutil.copytree(shared, folder / "run")


def run_on_another_base(folder: Path) -> None:
    run_without_its_base(folder)
    save_stable_diffusion(tiny_stable_diffusion(seed=1), folder.parent / "gone")


def damaged_run(folder: Path) -> None:
    run(folder)
    for file in (folder / "run" / "checkpoints" / "2" / "state").rglob("manifest*"):
        file.write_bytes(b"x")


def thesis(folder: Path) -> None:
    (folder / "to").mkdir()
    (folder / "to" / "thesis.txt").write_text("years of work")


MISTAKES = [
    export(
        "format of an export",
        "--format=pipelin",
        says=("mean 'pipeline'?",),
        apart=True,
    ),
    export("dtype", "--dtype=float61", says=("--dtype=float61", "mean 'float16'?")),
    export(
        "weights", "--weights=rwa", says=("--weights=rwa", "mean 'raw'?"), setup=run
    ),
    export(
        "step that is no number",
        "--step=last",
        says=("the step of a checkpoint, or best",),
    ),
    export("flag of export", "--push=x", says=("--push;",)),
    Mistake(
        "nowhere to export to", ("--workdir=x",), ("--to is missing",), command="export"
    ),
    export("no place to export to", "--to=", says=("--to= is empty",)),
    export("no run", says=("--workdir={dir}/run: no such folder",), apart=True),
    export(
        "folder that is no run",
        "--workdir={raw}",
        says=("--workdir={raw}: no checkpoint found", "medjax train"),
    ),
    export(
        "step that is not there",
        "--step=7",
        says=("no checkpoint of step 7. Existing steps: [2]",),
        setup=run,
    ),
    export(
        "damaged run",
        says=("damaged checkpoints: 2: ", "does not match its checksum"),
        setup=damaged_run,
    ),
    export(
        "base that is not there",
        says=("the base model that the run was trained on", "/gone'", "--base"),
        setup=run_without_its_base,
    ),
    export(
        "base that has changed",
        says=(
            "/gone' (",
            "is not the one that the run was trained on",
            "Set --base",
        ),
        setup=run_on_another_base,
    ),
    export(
        "ControlNet alone of a run that trained more",
        "--format=controlnet",
        says=("cannot store the U-Net", "--format=pipeline"),
        setup=run,
    ),
    export(
        "target that is a file",
        "--to={raw}/0.png",
        says=("--to={raw}/0.png: is a file",),
    ),
    export(
        "target with something else in it",
        "--overwrite",
        says=("--to={dir}/to: already contains thesis.txt",),
        setup=thesis,
    ),
    export("target that is here", "--to=.", says=("is the current folder",)),
    export(
        "target where nobody can write", "--to=/proc/to", says=("cannot be written",)
    ),
    export(
        "no hub id to push to", "--push_to=a b", says=("--push_to=a b", "owner/name")
    ),
    export("pushing offline", "--push_to=a/b", says=("HF_HUB_OFFLINE is set",)),
    export(
        "pushing without a token",
        "--push_to=a/b",
        says=("--push_to=a/b: the hub's token is missing", "hf auth login"),
        env={"HF_HUB_OFFLINE": "0", "HF_TOKEN": "", "HF_TOKEN_PATH": "/nowhere"},
    ),
    export(
        "parity of a single file",
        "--parity",
        "--format=single_file",
        says=("--parity", "--format=single_file"),
    ),
]
if os.geteuid() != 0:
    # Root may write where others may not.
    MISTAKES.append(
        export(
            "target beside which nobody can write",
            "--to={dir}/closed/to",
            says=("closed: Permission denied",),
            setup=lambda folder: (folder / "closed").mkdir(mode=0o500),
        )
    )
