"""Images from a run, or from published weights, in files that say how."""

import dataclasses
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import medjax
from medjax import meshes
from medjax.data.controls import Control, Preparation, Size
from medjax.errors import UserError, nearest
from medjax.evaluation.grids import image_page, save_png, to_uint8
from medjax.pretrained import (
    StableDiffusion,
    load_controlnet,
    load_stable_diffusion,
)
from medjax.pretrained.sources import read_json
from medjax.tasks.generation import Request, generate
from medjax.tasks.latent_diffusion import SamplingConfig
from medjax.training.exporting import ABOUT
from medjax.training.model_card import has_stored_controls
from medjax.training.runs import load_run

logger = logging.getLogger(__name__)

_DTYPES = ("auto", "float32", "bfloat16")
# At once, unless told: on the CPU more are no faster.
_BATCH_ON_CPU, _BATCH = 1, 4
# Images on a page, at most.
_ON_PAGE = 64


@dataclasses.dataclass(frozen=True)
class Source:
    """What to draw from.

    Attributes:
        sd: The networks.
        name: What the images' metadata call it.
        size: Height and width of images by default.
        preparation: What is done to images by default, which is as in training.
        guidance_scale: By default, which is as in the run's own samples.
    """

    sd: StableDiffusion
    name: str
    size: Size
    preparation: Preparation
    guidance_scale: float = 7.5


def load_source(
    *,
    workdir: str | None = None,
    step: int | None = None,
    weights: str = "auto",
    base: str | None = None,
    pretrained: str | None = None,
    controlnet: str | None = None,
) -> Source:
    """Load what to draw from.

    Args:
        workdir: Of a run.
        step: Its checkpoint; the newest whole one if None.
        weights: ema, raw, or auto: the average, where the run kept one.
        base: Where the run's base lies now, if not where it lay.
        pretrained: Or else a Stable Diffusion: folder, hub id or original file.
        controlnet: For it, likewise; its own, where it has one, if None.

    Raises:
        UserError: If not exactly one is named, or it cannot be loaded.
    """
    if (workdir is None) == (pretrained is None):
        raise UserError(
            "give either --workdir=RUN, to draw from what a run trained, or "
            "--pretrained=FOLDER_OR_HUB_ID"
        )
    if pretrained is not None:
        if step is not None or base is not None:
            raise UserError("--step and --base go with --workdir, not --pretrained")
        if weights != "auto":
            raise UserError("--weights goes with --workdir, not --pretrained")
        sd = load_stable_diffusion(pretrained, controlnet=controlnet is None)
        if controlnet is not None:
            sd = dataclasses.replace(sd, controlnet=load_controlnet(controlnet))
        side = sd.unet.config.get("sample_size", 64) * sd.vae.module.downsampling
        # No place of this machine goes into the images.
        name = Path(pretrained).name if Path(pretrained).exists() else pretrained
        made = Path(pretrained).expanduser() / ABOUT
        if not made.is_file():
            return Source(sd, name, (side, side), Preparation())
        about = read_json(made)
        side = about["image_size"]
        preparation = Preparation(**about["preparation"])
        return Source(sd, name, (side, side), preparation, about["guidance_scale"])
    if controlnet is not None:
        raise UserError("--controlnet goes with --pretrained; a run has its own")
    assert workdir is not None
    run = load_run(workdir, step, weights, base)
    data = run.config.data
    return Source(
        run.sd,
        f"{Path(workdir).resolve().name}, step {run.step}, {run.weights} weights",
        (data.image_size, data.image_size),
        Preparation.of_training(data, has_stored_controls(run)),
        run.config.eval.guidance_scale,
    )


def sample(
    source: Source,
    prompts: Sequence[str],
    control: Control,
    sampling: SamplingConfig,
    out: str | Path,
    *,
    negative_prompt: str = "",
    num: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    dtype: str = "auto",
) -> list[Path]:
    """Draw images to a folder, with a page of the first ones, and a progress bar.

    Args:
        source: What to draw from.
        prompts: Captions.
        control: Size, control and start of all images.
        sampling: How.
        out: The folder; images that are there stay, and the new ones get new numbers.
        negative_prompt: What guidance leads away from.
        num: Images of each prompt.
        seed: Of all noise.
        batch_size: Images at a time; None for what is usual on the devices.
        dtype: To compute in: float32, bfloat16, or auto for bfloat16 except on the CPU.

    Returns:
        The images, each prompt's together, and last the page.

    Raises:
        UserError: If the sampler, the networks and the sizes do not fit.
    """
    check_dtype(dtype)
    on_cpu = jax.default_backend() == "cpu"
    if dtype == "auto":
        dtype = "float32" if on_cpu else "bfloat16"
    requests = [
        Request(
            number,
            prompts[number // num],
            negative_prompt,
            control.conditioning_image,
            control.image,
        )
        for number in range(len(prompts) * num)
    ]
    mesh = meshes.make_mesh(meshes.MeshConfig(), jax.local_devices())
    shards = meshes.batch_shards(mesh)
    batch_size = min(batch_size or (_BATCH_ON_CPU if on_cpu else _BATCH), len(requests))
    batch_size = -(-batch_size // shards) * shards
    drawn = generate(
        source.sd,
        requests,
        sampling,
        control.size,
        mesh,
        seed=seed,
        batch_size=batch_size,
        dtype=dtype,
    )
    logger.info(
        "%d images of %d × %d by %s in %d steps, %d at a time on %d × %s; the first "
        "take longer, to compile",
        *(len(requests), *control.size, sampling.sampler, sampling.steps),
        *(batch_size, mesh.size, mesh.devices.flat[0].device_kind),
    )
    settings = {
        "source": source.name,
        "negative_prompt": negative_prompt,
        "seed": seed,
        "size": control.size,
        "dtype": dtype,
        **dataclasses.asdict(sampling),
        **control.settings,
        "medjax": medjax.__version__,
    }
    out = Path(out).expanduser()
    first = _next_number(out)
    rows = max(1, min(len(prompts), _ON_PAGE // num))
    files: list[Path] = []
    shown: list[np.ndarray] = []
    bar = tqdm(drawn, "images", len(requests), unit="image")
    for request, image in zip(requests, bar, strict=True):
        about = {"prompt": request.prompt, "number": request.number, **settings}
        files.append(out / f"{first + request.number:04d}.png")
        save_png(files[-1], to_uint8(image), _metadata(about))
        if request.number < min(rows * num, _ON_PAGE):
            shown.append(image)
    each = len(shown) // rows
    columns = {str(n + 1): np.stack(shown[n::each]) for n in range(each)}
    if control.conditioning_image is not None:
        condition = 2 * control.conditioning_image - 1
        columns = {"condition": np.stack([condition] * rows), **columns}
    page = out / f"grid-{first:04d}.png"
    save_png(page, image_page(columns, prompts[:rows]))
    return [*files, page]


def check_dtype(dtype: str) -> None:
    """Raise UserError if images cannot be computed in `dtype`."""
    if dtype not in _DTYPES:
        raise UserError(
            f"--dtype={dtype}: expected one of {', '.join(_DTYPES)}"
            + nearest(dtype, _DTYPES)
        )


def _next_number(out: Path) -> int:
    """Return the first number that no image of the folder has."""
    found = (re.fullmatch(r"(\d+)\.png", file.name) for file in out.glob("*.png"))
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _metadata(about: dict[str, Any]) -> dict[str, str]:
    """Return an image's settings as JSON, and as the line that web UIs read."""
    height, width = about["size"]
    line = (
        f"{about['prompt']}\nNegative prompt: {about['negative_prompt']}\n"
        f"Steps: {about['steps']}, Sampler: {about['sampler']}, CFG scale: "
        f"{about['guidance_scale']}, Seed: {about['seed']}, Image: {about['number']}, "
        f"Size: {width}x{height}, Model: {about['source']}"
    )
    return {"medjax": json.dumps(about, ensure_ascii=False), "parameters": line}
