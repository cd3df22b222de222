r"""Sample images from a run or from any Stable Diffusion.

    medjax sample --workdir=RUN --prompt="cardiomegaly" --image=XRAY.png

With a ControlNet, edges are found in --image or read from --edges=FILE. Without one:

    medjax sample --pretrained=FOLDER_OR_HUB_ID --prompt="…" --num=4

--pretrained also reads an export of `medjax export`. --controlnet=FOLDER_OR_HUB_ID adds
a ControlNet. To start from an image instead of noise, set --image=FILE --strength=0.6.
For many prompts, set --prompts=FILE, with one prompt per line.

Some runs have no captions, e.g. knees or brains. Set --prompt to a class, or omit it:

    medjax sample --workdir=RUN --mode=generate --num=16 --prompt=AD

--mode=illustrate shows the steps from noise to image as a strip, --mode=gif as an
animation. --mode=umap --num=50 maps images of each class over real ones.

--out gets the images, with all settings in their metadata, and a page of them. The same
seed gives the same images for any batch size or devices. --seed=-1 uses a random seed.
"""

import dataclasses
import functools
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from medjax import cli, texts
from medjax.errors import UserError

# The name is explicit, because this module may run as "__main__".
_LOGGER = logging.getLogger("medjax.sample")
# Flags that only models with captions accept, and their default values.
_CAPTIONED = {
    **dict.fromkeys(("image", "edges", "canny")),
    **{"negative_prompt": "", "strength": 1, "conditioning_scale": 1},
    **{"control_start": 0, "control_end": 1},
}
# Copies of the names, so that --help does not import the sampling code.
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
        raise UserError(f"--prompts={file}: no prompts found. Expected one per line")
    return prompts


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)(?:[x×]([1-9]\d*))?", text)
    if match is None:
        raise UserError(f"--size={text}: expected pixels, e.g. 512 or 512x768")
    return int(match[1]), int(match[2] or match[1])


def _canny(values: Sequence[str] | None) -> dict[str, Any]:
    """Return the thresholds by their field names in `controls.Preparation`."""
    if not values:
        return {}
    try:
        low, high = (float(value) for value in values)
    except ValueError as error:
        raise UserError(
            f"--canny={','.join(values)}: expected two thresholds, e.g. 100,200"
        ) from error
    return {"low": low, "high": high}


def _check_mode(asked: dict[str, Any], prompts: int) -> None:
    """Raise UserError if flags do not fit the mode."""
    mode, num = asked["mode"], asked["num"]
    if asked["data"] is not None and mode != "umap":
        raise UserError("--data requires --mode=umap: no other mode reads real images")
    if mode == "single" and num * prompts > 1:
        raise UserError("--mode=single gives one image. Use --mode=generate for more")
    if mode != "umap":
        return
    if num < 2:
        raise UserError(
            f"--num={num}: --mode=umap compares sets of images. Expected at least 2 "
            "images of each class, and preferably about 100"
        )
    for flag in ("prompt", "prompts", "size"):
        if asked[flag]:
            raise UserError(
                f"--{flag} does not apply to --mode=umap, which samples all classes at "
                "the training size. Remove the flag"
            )


def _check_without_captions(asked: dict[str, Any], classes: Sequence[str]) -> None:
    """Raise UserError for flags that only a Stable Diffusion accepts."""
    if asked["guidance_scale"] not in (None, 1) and not classes:
        raise UserError(
            f"--guidance_scale={asked['guidance_scale']:g}: guidance requires classes "
            "or captions, and this run has neither"
        )
    given = [name for name, unset in _CAPTIONED.items() if asked[name] != unset]
    if given:
        raise UserError(
            f"--{given[0]} requires a model that reads captions. This run has none"
        )


def define_flags() -> None:
    """Define the flags. Not on import, because flags of two commands would collide."""
    _define_model_flags()
    _define_image_flags()
    _define_sampler_flags()


def _define_model_flags() -> None:
    string = flags.DEFINE_string
    string("workdir", None, "folder of a run to sample from")
    string(
        "step",
        None,
        "with --workdir: step of the checkpoint, or best, by the validation metric in "
        "config.best; by default the newest complete checkpoint",
    )
    string("weights", "auto", "ema, raw, or auto: ema if the run kept a moving average")
    string("base", None, "new location of the run's base, if it has moved")
    string("data", None, "with --mode=umap: new location of the run's data, if moved")
    string("pretrained", None, "folder, hub id or file of a Stable Diffusion")
    string(
        "controlnet", None, "with --pretrained: a ControlNet's folder, hub id or file"
    )


def _define_image_flags() -> None:
    string, integer = flags.DEFINE_string, flags.DEFINE_integer
    flags.DEFINE_enum(
        "mode",
        "generate",
        _MODES,
        "generate: images and a page of them; single: one image; illustrate: a strip "
        "from noise to image; gif: the same as an animation; umap: a map of --num "
        "images of each class over real ones, with measures",
    )
    string("prompt", "", "caption of the images, or the name of one of a run's classes")
    string("prompts", None, "file of captions, one per line; each has different noise")
    string("negative_prompt", "", "caption that guidance leads away from")
    string(
        "image",
        None,
        "image whose edges are the ControlNet's input; with --strength below 1, the "
        "start image",
    )
    string(
        "edges",
        None,
        "image of edges, used unchanged; it sets the size of the images. For a run "
        "trained on stored controls: a control, which is prepared as in training",
    )
    flags.DEFINE_list("canny", None, "thresholds of --image's edges, e.g. 100,200")
    integer(
        "seed",
        0,
        "seed of all noise; -1 uses a random seed and reports it",
        lower_bound=-1,
        upper_bound=2**32 - 1,
    )
    integer("num", 1, "number of images of each prompt", lower_bound=1)
    string("size", None, "pixels, e.g. 512, or 512x768 for height x width")
    integer("batch_size", None, "images per batch", lower_bound=1)
    string("dtype", "auto", "float32, bfloat16, or auto: bfloat16 except on the CPU")
    string("out", "samples", "folder for the images")


def _define_sampler_flags() -> None:
    number = flags.DEFINE_float
    fraction = functools.partial(number, lower_bound=0, upper_bound=1)
    flags.DEFINE_string(
        "sampler",
        None,
        f"{', '.join(_SAMPLERS)}; by default the model's own, or, for a run without "
        "captions, the sampler of the run's own samples",
    )
    flags.DEFINE_integer(
        "steps",
        None,
        "sampler steps; by default 30, or, for a run without captions, those of the "
        "run's own samples",
        lower_bound=1,
    )
    number(
        "guidance_scale",
        None,
        "weight of the caption; 1 means no guidance; by default that of the run's own "
        "samples, or 7.5 if unknown",
        lower_bound=1,
    )
    fraction("guidance_rescale", 0, "how far to undo guidance's extra contrast, 0 to 1")
    fraction(
        "eta",
        None,
        "fresh noise in DDIM's steps, 0 to 1; by default 0, or, for a run without "
        "captions, that of the run's own samples",
    )
    number("conditioning_scale", 1, "weight of the ControlNet", lower_bound=0)
    fraction("control_start", 0, "fraction of the steps before the ControlNet acts")
    fraction("control_end", 1, "fraction of the steps after which it stops acting")
    fraction("strength", 1, "below 1: start from --image and change it this much")


def main(_: Sequence[str]) -> None:
    """Sample with the values of the flags."""
    asked: dict[str, Any] = flags.FLAGS.flag_values_dict()

    def only(*names: str) -> dict[str, Any]:
        return {name: asked[name] for name in names}

    # Check all flags before loading gigabytes.
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
    # Check the given values before loading.
    SamplingConfig(**given)
    keep_compiled()
    source = load_source(
        **only("workdir", "step", "weights", "base", "pretrained", "controlnet"),
        control_given=asked["image"] is not None or asked["edges"] is not None,
    )
    if asked["data"] is not None and source.data is not None:
        there = dataclasses.replace(source.data, root=asked["data"])
        source = dataclasses.replace(source, data=there)
    controlled = source.controlled
    if source.captioned and prompts == [""]:
        _LOGGER.info("no --prompt: sampling with an empty caption")
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
        raise UserError("--negative_prompt requires a --guidance_scale above 1")
    if canny and (asked["edges"] or not controlled):
        raise UserError("--canny requires --image and a ControlNet, without --edges")
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
            "images of %d x %d may be poor: the model was trained at %d x %d",
            *(*control.size, *source.size),
        )
    options = only("mode", "negative_prompt", "num", "seed", "batch_size", "dtype")
    files = sample(source, prompts, control, sampling, asked["out"], **options)
    _LOGGER.info("wrote %d files, the last one %s", len(files), files[-1])


if __name__ == "__main__":
    define_flags()
    cli.run(main)
