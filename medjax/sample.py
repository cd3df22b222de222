r"""Draw images from what a run trained, or from any Stable Diffusion.

    medjax sample --workdir=RUN --prompt="cardiomegaly" --image=XRAY.png

With a ControlNet, edges are found in --image, or given by --edges=FILE. Without one:

    medjax sample --pretrained=FOLDER_OR_HUB_ID --prompt="…" --num=4

--pretrained takes what `medjax export` writes too; --controlnet=FOLDER_OR_HUB_ID puts a
ControlNet to it. To begin from an image rather than from noise: --image=FILE
--strength=0.6. Many prompts: --prompts=FILE, one a line.

A run without captions, as of knees or brains, draws what it learned, or a class of it:

    medjax sample --workdir=RUN --mode=generate --num=16 --prompt=AD

--mode=illustrate shows the way from noise to image as a strip, --mode=gif as an
animation; --mode=umap --num=50 maps images of each class over real ones.

The images, with all settings in their metadata, and a page of them go to --out. The
same seed gives the same image, whatever the batch or the devices; --seed=-1 draws one.
"""

import dataclasses
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from medjax import cli, texts
from medjax.errors import UserError

if TYPE_CHECKING:
    from medjax.data.controls import Size

# By name, because this module may run as "__main__".
_LOGGER = logging.getLogger("medjax.sample")
# What only models that read captions take, and what it is if it is not given.
_CAPTIONED = {
    **dict.fromkeys(("image", "edges", "canny")),
    **{"negative_prompt": "", "strength": 1, "conditioning_scale": 1},
    **{"control_start": 0, "control_end": 1},
}
# Written out, for --help need not import what samples.
_MODES = ("single", "illustrate", "generate", "gif", "umap")
_SAMPLERS = (
    *("ddpm", "ddim", "pndm", "euler", "euler_ancestral"),
    *("dpmpp_2m", "dpmpp_2m_karras", "unipc"),
)


def _prompts(prompt: str, file: str | None) -> list[str]:
    if file is None:
        return [prompt]
    if prompt:
        raise UserError("give either --prompt or --prompts, not both")
    read = texts.lines(texts.read_text(file, f"--prompts={file}"))
    prompts = [line.strip() for line in read if line.strip()]
    if not prompts:
        raise UserError(f"--prompts={file}: holds no prompt; expected one a line")
    return prompts


def _size(text: str | None) -> "Size | None":
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:[x×](\d+))?", text)
    if match is None:
        raise UserError(f"--size={text}: expected pixels, as 512, or height x width")
    return int(match[1]), int(match[2] or match[1])


def _canny(values: Sequence[str] | None) -> dict[str, Any]:
    """Return the thresholds, by their names in `controls.Preparation`."""
    if not values:
        return {}
    try:
        low, high = (float(value) for value in values)
    except ValueError as error:
        raise UserError(
            f"--canny={','.join(values)}: expected two thresholds, as 100,200"
        ) from error
    return {"low": low, "high": high}


def _check_mode(asked: dict[str, Any], prompts: int) -> None:
    """Refuse what the mode does not draw."""
    mode, num = asked["mode"], asked["num"]
    if asked["data"] is not None and mode != "umap":
        raise UserError("--data is for --mode=umap, which alone reads real images")
    if mode == "single" and num * prompts > 1:
        raise UserError("--mode=single draws one image; --mode=generate draws several")
    if mode != "umap":
        return
    if num < 2:
        raise UserError(
            f"--mode=umap compares sets of images; expected --num=100 or so of each "
            f"class, not {num}"
        )
    for flag in ("prompt", "prompts", "size"):
        if asked[flag]:
            raise UserError(
                f"--mode=umap draws all classes as they were trained; expected no "
                f"--{flag}"
            )


def _check_without_captions(asked: dict[str, Any], classes: Sequence[str]) -> None:
    """Refuse what only a Stable Diffusion can be asked for."""
    if asked["guidance_scale"] not in (None, 1) and not classes:
        raise UserError(
            f"--guidance_scale={asked['guidance_scale']:g}: this run knows no classes, "
            "towards which to guide"
        )
    given = [name for name, unset in _CAPTIONED.items() if asked[name] != unset]
    if given:
        raise UserError(
            f"--{given[0]} is for models that read captions; this "
            "run trained one that does not"
        )


def define_flags() -> None:
    """Define the command's flags; not on import, where commands would collide."""
    _define_model_flags()
    _define_image_flags()
    _define_sampler_flags()


def _define_model_flags() -> None:
    string = flags.DEFINE_string
    string("workdir", None, "folder of a run, to draw from what it trained")
    string(
        "step",
        None,
        "with --workdir: which checkpoint: its number, or best, by what validation "
        "measured (config.best); by default the newest whole one",
    )
    string("weights", "auto", "ema, raw, or auto: the average, where the run kept one")
    string("base", None, "where the run's base lies now, if not where it lay")
    string(
        "data",
        None,
        "with --mode=umap: where the run's data lie now, if not where they lay",
    )
    string("pretrained", None, "folder, hub id or file of a Stable Diffusion")
    string("controlnet", None, "with --pretrained: folder, hub id or file of one")


def _define_image_flags() -> None:
    string, integer = flags.DEFINE_string, flags.DEFINE_integer
    flags.DEFINE_enum(
        "mode",
        "generate",
        _MODES,
        "generate: images and a page of them; single: one image; illustrate: a strip "
        "from noise to image; gif: the same, animated; umap: a map of --num images of "
        "each class over real ones, with numbers for it",
    )
    string(
        "prompt", "", "caption of the images; of a run with classes, one of their names"
    )
    string(
        "prompts", None, "file of captions, one a line; each line has noise of its own"
    )
    string("negative_prompt", "", "what guidance leads away from")
    string("image", None, "its edges control; with --strength it is the start")
    string(
        "edges",
        None,
        "image of edges, as it is: its size is the images'; of a run on stored "
        "controls, such a control, prepared as in training",
    )
    flags.DEFINE_list("canny", None, "thresholds of --image's edges, as 100,200")
    integer(
        "seed",
        0,
        "seed of all noise; -1 draws one, and reports it",
        lower_bound=-1,
        upper_bound=2**32 - 1,
    )
    integer("num", 1, "number of images of each prompt", lower_bound=1)
    string("size", None, "pixels, as 512, or 512x768: height x width")
    integer("batch_size", None, "images at a time", lower_bound=1)
    string("dtype", "auto", "float32, bfloat16, or auto: bfloat16 except on the CPU")
    string("out", "samples", "folder for the images")


def _define_sampler_flags() -> None:
    number = flags.DEFINE_float
    flags.DEFINE_string(
        "sampler",
        None,
        f"{', '.join(_SAMPLERS)}; by default the model's own, which for a run that "
        "reads no captions is that of its own samples",
    )
    flags.DEFINE_integer(
        "steps",
        None,
        "steps of the sampler; by default 30, or likewise",
        lower_bound=1,
    )
    number(
        "guidance_scale",
        None,
        "weight of the caption; 1 is no guidance; by default as in the run's own "
        "samples, else 7.5",
    )
    number("guidance_rescale", 0, "how far to undo guidance's contrast, 0 to 1")
    number(
        "eta", None, "fresh noise in DDIM's steps, 0 to 1; by default 0, or likewise"
    )
    number("conditioning_scale", 1, "weight of the ControlNet")
    number("control_start", 0, "fraction of the steps before the ControlNet is heard")
    number("control_end", 1, "fraction of the steps after which it is not heard")
    number("strength", 1, "below 1: begin from --image, and change it this much")


def main(_: Sequence[str]) -> None:
    """Draw as the flags say."""
    asked: dict[str, Any] = flags.FLAGS.flag_values_dict()

    def only(*names: str) -> dict[str, Any]:
        return {name: asked[name] for name in names}

    # What can be wrong is looked at before gigabytes are loaded.
    cli.writable_folder(asked["out"], "--out")
    prompts = _prompts(asked["prompt"], asked["prompts"])
    _check_mode(asked, len(prompts))
    size, canny = _size(asked["size"]), _canny(asked["canny"])
    for flag in ("image", "edges"):
        if asked[flag] is not None and not Path(asked[flag]).is_file():
            raise UserError(f"--{flag}={asked[flag]}: no such file")
    from medjax.compilation import keep_compiled
    from medjax.data.controls import read_control
    from medjax.diffusion.sampling_config import SamplingConfig
    from medjax.diffusion.schedulers import own_sampler
    from medjax.hosts import refuse_several
    from medjax.sampling.image_files import check_dtype, sample
    from medjax.sampling.source import load_source

    refuse_several("medjax sample")
    check_dtype(asked["dtype"])
    fields = (field.name for field in dataclasses.fields(SamplingConfig))
    given = {name: one for name, one in only(*fields).items() if one is not None}
    # To see what is wrong in it.
    SamplingConfig(**given)
    keep_compiled()
    source = load_source(
        **only("workdir", "step", "weights", "base", "pretrained", "controlnet")
    )
    if asked["data"] is not None and source.data is not None:
        there = dataclasses.replace(source.data, root=asked["data"])
        source = dataclasses.replace(source, data=there)
    controlled = source.controlled
    if source.captioned and prompts == [""]:
        _LOGGER.info("no --prompt: images for the empty caption")
    if not source.captioned:
        _check_without_captions(asked, source.classes)
    own: dict[str, Any] = {
        "sampler": source.sampler or own_sampler(source.schedule),
        "steps": source.steps,
        "guidance_scale": source.guidance_scale,
    }
    if given.get("sampler", own["sampler"]) == own["sampler"]:
        own["eta"] = source.eta
    sampling = SamplingConfig(**(own | given))
    if asked["negative_prompt"] and sampling.guidance_scale == 1:
        raise UserError("--negative_prompt needs guidance: a --guidance_scale above 1")
    if canny and (asked["edges"] or not controlled):
        raise UserError("--canny is for the edges of --image with a ControlNet")
    control = read_control(
        asked["image"],
        asked["edges"],
        size,
        source.size,
        dataclasses.replace(source.preparation, **canny),
        controlled,
        sampling.strength,
    )
    if control.size != source.size:
        _LOGGER.warning(
            "images of %d x %d, and it was trained at %d x %d: they may be poor",
            *(*control.size, *source.size),
        )
    options = only("mode", "negative_prompt", "num", "seed", "batch_size", "dtype")
    files = sample(source, prompts, control, sampling, asked["out"], **options)
    _LOGGER.info("%d files, the last %s", len(files), files[-1])


if __name__ == "__main__":
    define_flags()
    cli.run(main)
