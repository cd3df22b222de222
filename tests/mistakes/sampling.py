"""Mistakes in `python -m medjax.sample`."""

import shutil
from pathlib import Path

from medjax.pretrained import save_stable_diffusion
from medjax.pretrained.tiny import tiny_stable_diffusion
from tests.mistakes import Mistake
from tests.mistakes.exporting import run, run_without_its_base

RUN, PLAIN = "--workdir={dir}/run", "--pretrained={dir}/sd"


def sample(name: str, *arguments: str, says: tuple[str, ...], **more) -> Mistake:
    """Return a mistake in drawing images."""
    typed = ("--out={dir}/out", *arguments)
    return Mistake(name, typed, says, command="sample", **more)


def plain(folder: Path) -> None:
    """Put a Stable Diffusion without a ControlNet there; all tests share its making."""
    shared = folder.parent / "plain"
    if not shared.exists():
        save_stable_diffusion(tiny_stable_diffusion(), shared)
    shutil.copytree(shared, folder / "sd")


MISTAKES = [
    sample("nothing to draw from", says=("--workdir=RUN", "--pretrained=")),
    sample("two things to draw from", RUN, PLAIN, says=("give either --workdir",)),
    sample(
        "sampler",
        RUN,
        "--sampler=unipic",
        says=("'unipic'", "mean 'unipc'?"),
        apart=True,
    ),
    sample("run to draw from", RUN, says=("--workdir={dir}/run: no such folder",)),
    sample(
        "run without a checkpoint", "--workdir={raw}", says=("no checkpoint found",)
    ),
    sample(
        "run whose base has gone",
        RUN,
        "--image={raw}/0.png",
        says=("the base model that the run was trained on", "set --base"),
        setup=run_without_its_base,
    ),
    sample("weights to draw from", "--pretrained=a/b", says=("cannot load 'a/b'",)),
    sample("two ControlNets", RUN, "--controlnet=x", says=("a run uses its own",)),
    sample("step of no run", PLAIN, "--step=2", says=("--step and --base require",)),
    sample("no control", RUN, says=("--image=FILE", "--edges=FILE"), setup=run),
    sample(
        "image that is not there",
        RUN,
        "--image={dir}/x.png",
        says=("--image={dir}/x.png: no such file",),
        setup=run,
    ),
    sample(
        "edges of another size",
        RUN,
        "--edges={raw}/0.png",
        "--size=64",
        says=("--edges={raw}/0.png is 24x24, and --size is 64x64",),
        setup=run,
    ),
    sample("size", RUN, "--size=big", says=("--size=big: expected pixels",)),
    sample(
        "size that is no multiple",
        PLAIN,
        "--size=63",
        says=("size=63x63: expected multiples of 2, such as 62 or 64",),
        setup=plain,
    ),
    sample(
        "edges without a ControlNet",
        PLAIN,
        "--edges={raw}/0.png",
        says=("--edges requires a ControlNet",),
        setup=plain,
    ),
    sample(
        "image that has no effect",
        PLAIN,
        "--image={raw}/0.png",
        says=("--strength below 1",),
        setup=plain,
    ),
    sample(
        "thresholds of the edges",
        RUN,
        "--image={raw}/0.png",
        "--canny=low",
        says=("--canny=low: expected two thresholds",),
        setup=run,
    ),
    sample(
        "negative prompt without guidance",
        PLAIN,
        "--negative_prompt=x",
        "--guidance_scale=1",
        says=("requires a --guidance_scale above 1",),
        setup=plain,
    ),
    sample(
        "guidance",
        RUN,
        "--guidance_scale=0",
        says=("--guidance_scale=0: Expected a number of at least 1",),
    ),
    sample(
        "seed",
        RUN,
        "--seed=4294967296",
        says=("--seed=4294967296: Expected an integer from -1 to 4294967295",),
    ),
    sample(
        "no images",
        RUN,
        "--num=0",
        says=("--num=0: Expected an integer of at least 1",),
    ),
    sample("no number", RUN, "--eta=much", says=("--eta=much: Expected a number",)),
    sample("strength", RUN, "--strength=2", says=("--strength=2", "from 0 to 1")),
    sample("no thresholds", RUN, "--canny=", says=("--canny= is empty",)),
    sample("no pixels", RUN, "--size=0", says=("--size=0: expected pixels",)),
    sample(
        "weight of the ControlNet",
        RUN,
        "--conditioning_scale=-1",
        says=("--conditioning_scale=-1", "at least 0"),
    ),
    sample("mode", RUN, "--mode=gf", says=("umap; did you mean 'gif'?",)),
    sample("empty folder to draw to", RUN, "--out=", says=("--out= is empty",)),
    sample("empty run", "--workdir=", says=("--workdir= is empty",)),
    sample("weights of no run", PLAIN, "--weights=raw", says=("--weights requires",)),
    sample("prompts", "--prompts={raw}/x.txt", says=("x.txt: cannot be read",)),
    sample("prompt twice", "--prompts=x", "--prompt=y", says=("not both",)),
    sample("steps of the sampler", RUN, "--steps=0", says=("--steps=0",)),
    sample(
        "where to draw",
        RUN,
        "--out=/proc/x",
        says=("cannot be written to",),
        apart=True,
    ),
]
