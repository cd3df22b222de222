"""The documentation: each command is right, each block runs, and a mistake is found."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medjax.config_files import load_config
from medjax.data.edges import canny
from medjax.data.phantoms.source import PhantomSource
from medjax.evaluation.grids import save_png
from tests import in_process
from tests.pages import DOCS, REPOSITORY, Block, blocks, pages

# Reasons above a block that change how it runs; any other says why it does not.
QUICK, TINY = "quick", "tiny"
# What makes training short, where a config has the key.
SHORT = {
    "data.batch_size": 4,
    "data.workers": 0,
    "eval.examples": 4,
    "eval.samples": 4,
    "eval.sampler_steps": 2,
    "train.log_every": 1,
    "train.steps": 2,
}
# What replaces weights that would be downloaded, and the size that they have.
STAND_INS = {
    "data.image_size": 64,
    "model.controlnet": None,
    "model.dtype": "float32",
    "model.pretrained": "phantom-sd",
    "train.gradient_accumulation_steps": 1,
}
# Pages whose blocks need what earlier pages left.
CHAINS = {
    "readme": ("README.md",),
    "python": ("docs/reference/python.md",),
    "demo": ("docs/tutorials/demo.md",),
    "lora": ("docs/tutorials/lora.md",),
    "own images": (
        *("docs/tutorials/chest_xray.md", "docs/how_to/export.md"),
        *("docs/how_to/prepare.md", "docs/tutorials/from_scratch.md"),
        *("docs/how_to/sample.md",),
    ),
}
EVERY = [block for page in pages() for block in blocks(page)]


def named(block: Block) -> str:
    return f"{block.page}:{block.line}"


SHELL = [one for one in EVERY if one.language == "sh"]


@pytest.mark.parametrize("block", SHELL, ids=named)
def test_each_command_has_flags_and_keys_that_exist(block, tmp_path):
    for words in block.commands:
        if words[0] == "medjax" and not words[1].startswith("-"):
            if "--help" not in words:
                done = in_process.parsed(words[1:], tmp_path)
                assert done.returncode == 0, f"{words}: {done.stderr}"
        elif not block.reason:
            assert words[0] in ("medjax", "make", ".ci/run", ".venv/bin/pre-commit")


@pytest.mark.parametrize("block", [b for b in EVERY if b.reason == QUICK], ids=named)
def test_a_quick_block_runs(block, tmp_path):
    run(block, tmp_path)


@pytest.mark.release
@pytest.mark.parametrize("name", CHAINS)
def test_the_blocks_of_pages_run(name, tmp_path):
    run_chain(name, tmp_path)


def test_each_block_that_can_run_is_run():
    chained = {page for chain in CHAINS.values() for page in chain}
    # How to work on medjax: these commands are those of `.ci/run` itself.
    chained.add("CONTRIBUTING.md")
    missed = [named(b) for b in EVERY if runs(b) and b.page not in chained]
    assert not missed


def test_make_demo_is_the_tutorials_command():
    makefile = (REPOSITORY / "Makefile").read_text().replace("\\\n\t\t", "")
    first = blocks(DOCS / "tutorials" / "demo.md")[0].commands[0]
    assert first[:2] == ["medjax", "train"]
    written = " ".join(["-m", "medjax.train", *first[2:]])
    assert written.replace("=cxr_", "=configs/cxr_").replace("net:", "net.py:") in (
        makefile
    )


def runs(block: Block) -> bool:
    executable = block.language in ("sh", "python")
    return executable and block.reason in ("", TINY)


def run_chain(name: str, folder: Path) -> None:
    make_xrays(folder)
    for page in CHAINS[name]:
        for block in blocks(REPOSITORY / page):
            if runs(block):
                run(block, folder)


def run(block: Block, folder: Path) -> None:
    if block.language == "python":
        with contextlib.chdir(folder):
            exec(compile(block.text, named(block), "exec"), {})
        return
    for words in block.commands:
        if words[0] == "python":
            subprocess.run([sys.executable, *words[1:]], cwd=folder, check=True)
            continue
        assert words[0] == "medjax", f"{named(block)}: {words}"
        more = additions(words, block.reason == TINY)
        done = in_process.typed([*words[1:], *more], folder)
        assert done.returncode == 0, f"{named(block)}: {words}: {done.stderr}"


def additions(words: list[str], stand_ins: bool) -> list[str]:
    """Return the flags that make a command short."""
    command, values = words[1], dict(w.partition("=")[::2] for w in words[2:])
    if command == "sample":
        return [] if "--steps" in values else ["--steps=2"]
    if command not in ("train", "cross-validate") or "--help" in values:
        return []
    config = load_config("config", values["--config"])
    changes = SHORT | (STAND_INS if stand_ins else {})
    if "--config.data.root" not in values:
        changes = changes | {"data.phantoms.count": 16}
    if config.model.get("autoencoder_config"):
        changes = changes | {
            "model.autoencoder_config": REPOSITORY / "tests" / "tiny_vqvae.py"
        }
    if command == "cross-validate":
        changes = changes | {"eval.every": 1, "train.checkpoint_every": 1}
    return [f"--config.{k}={v}" for k, v in changes.items() if has(config, k)] + (
        ["--images=2"] if command == "cross-validate" else []
    )


def has(config, key: str) -> bool:
    for part in key.split("."):
        if part not in config:
            return False
        config = config[part]
    return True


def make_xrays(folder: Path) -> None:
    """Write the folder that the pages call yours: images, a table, and edges."""
    rows = ["file_name,text,patient"]
    phantoms = PhantomSource("train", 64, 16)
    for number, record in enumerate(map(phantoms.__getitem__, range(16)), 1):
        name = f"a/{number:04d}.png"
        save_png(folder / "xrays" / name, record["image"])
        rows.append(f'{name},"{record["text"]}",p{number}')
    (folder / "xrays" / "metadata.csv").write_text("\n".join(rows) + "\n")
    (folder / "IMAGES").symlink_to(folder / "xrays")
    edges = canny(phantoms[0]["image"], 100, 200)
    save_png(folder / "edges.png", np.repeat(edges[:, :, None], 3, axis=2))


def test_the_readme_is_short_and_its_pictures_are_small():
    text = (REPOSITORY / "README.md").read_text()
    assert len(text.split()) <= 700
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert pictures
    for picture in pictures:
        assert (REPOSITORY / picture).stat().st_size < 300_000


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_exist(page):
    """Sphinx checks those of docs/."""
    text = (REPOSITORY / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (REPOSITORY / target).exists(), target
