"""Sample images to files that contain all settings in their metadata."""

import dataclasses
import json
import logging
import math
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

import medjax
from medjax import meshes, storage
from medjax.data.controls import Control
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.errors import UserError, nearest
from medjax.evaluation.animation import save_gif, strip
from medjax.evaluation.grids import canvas, image_page, save_png, to_uint8
from medjax.logs import ProgressBar
from medjax.sampling.class_map import map_classes
from medjax.sampling.generate import generate_stages
from medjax.sampling.source import Source
from medjax.tasks.drawing import Request

logger = logging.getLogger(__name__)

FRAMES = {"generate": 1, "single": 1, "illustrate": 8, "gif": 60}
"""Modes, with the maximum number of stages that each shows of an image."""
_DTYPES = ("auto", "float32", "bfloat16")
# Default batch sizes. On the CPU, a larger batch is not faster.
_BATCH_ON_CPU, _BATCH = 1, 4
# Maximum number of images on a page.
_ON_PAGE = 64


def sample(
    source: Source,
    prompts: Sequence[str],
    control: Control,
    sampling: SamplingConfig,
    out: str | Path,
    *,
    mode: str = "generate",
    negative_prompt: str = "",
    num: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    dtype: str = "auto",
) -> list[Path]:
    """Sample images to a folder and show a progress bar.

    Args:
        source: The model and its default settings.
        prompts: Captions. For a model with classes, names of classes, or "" for all
            classes in turn.
        control: Size, conditioning image and start image of all images.
        sampling: Sampler settings.
        out: The folder. Existing images stay, and new images get new numbers.
        mode: ``generate``: images and a page of the first ones; ``single``: no page;
            ``illustrate``: strips from noise to image; ``gif``: the same as
            animations; ``umap``: a map of `num` images of each class over real ones.
        negative_prompt: Caption that guidance leads away from.
        num: Number of images of each prompt.
        seed: Seed of all noise, in [0, 2³²). -1 means a random seed, which is written
            to the log and the metadata.
        batch_size: Images per batch. None means 1 on the CPU and 4 on other devices.
        dtype: Dtype of the computation: float32, bfloat16, or auto. auto means float32
            on the CPU and bfloat16 on other devices.

    Returns:
        The files, grouped by prompt; with ``generate``, the page comes last.

    Raises:
        UserError: If the sampler, the networks and the size do not fit each other.
    """
    check_dtype(dtype)
    dtype, batch_size = _for_devices(dtype, batch_size)
    if seed == -1:
        seed = secrets.randbelow(2**32)
        logger.info("random seed: --seed=%d", seed)
    out = Path(out).expanduser()
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
    if mode == "umap":
        return [_save_map(source, sampling, out, num, batch_size, settings)]
    requests = _requests(source, prompts, control, negative_prompt, num)
    drawn = _drawn(source, requests, sampling, mode, batch_size, settings)
    rows = max(1, min(len(prompts), _ON_PAGE // num))
    shown: list[np.ndarray] = []
    files: list[Path] = []
    first = _next_number(out)
    with ProgressBar("sampling", len(requests), "images") as bar:
        for number, (request, stages) in enumerate(zip(requests, drawn, strict=True)):
            label = request.label
            text = request.prompt if label is None else source.classes[label]
            about = {"prompt": text, "number": number, **settings}
            name = out / f"{first + number:04d}"
            files.append(_write(name, mode, stages, _metadata(about)))
            if number < min(rows * num, _ON_PAGE):
                shown.append(stages[-1])
            bar.update(1)
    if mode == "generate":
        files.append(out / f"grid-{first:04d}.png")
        save_png(files[-1], _page(shown, prompts[:rows], control.conditioning_image))
    return files


def _for_devices(dtype: str, batch_size: int | None) -> tuple[str, int]:
    """Return dtype and batch size, with the defaults of the devices filled in."""
    on_cpu = jax.default_backend() == "cpu"
    if dtype == "auto":
        dtype = "float32" if on_cpu else "bfloat16"
    return dtype, batch_size or (_BATCH_ON_CPU if on_cpu else _BATCH)


def _save_map(
    source: Source,
    sampling: SamplingConfig,
    out: Path,
    num: int,
    batch_size: int,
    settings: Mapping[str, Any],
) -> Path:
    """Save a map of `num` images of each class and its measures; return the page."""
    page = out / f"umap-{_next_number(out, 'umap-'):04d}.png"
    measures = map_classes(
        source,
        sampling,
        page,
        num=num,
        batch_size=batch_size,
        seed=settings["seed"],
        dtype=settings["dtype"],
    )
    facts = {**measures, "num": num, **settings}
    storage.write_json(page.with_suffix(".json"), facts, indent=1)
    return page


def _drawn(
    source: Source,
    requests: Sequence[Request],
    sampling: SamplingConfig,
    mode: str,
    batch_size: int,
    settings: Mapping[str, Any],
) -> Iterator[Float[np.ndarray, "n H W c"]]:
    """Yield the stages of each image, in batches that the devices divide."""
    mesh = meshes.make_mesh(meshes.MeshConfig(), jax.local_devices())
    shards = meshes.batch_shards(mesh)
    batch_size = -(-min(batch_size, len(requests)) // shards) * shards
    height, width = settings["size"]
    drawn = generate_stages(
        source.model,
        requests,
        sampling,
        (height, width),
        mesh,
        batch_size=batch_size,
        frames=FRAMES[mode],
        seed=settings["seed"],
        dtype=settings["dtype"],
    )
    logger.info(
        "%d images of %d × %d by %s in %d steps, in batches of %d on %d × %s; the "
        "first batch takes longer because of compilation",
        *(len(requests), height, width, sampling.sampler, sampling.steps),
        *(batch_size, mesh.size, mesh.devices.flat[0].device_kind),
    )
    return drawn


def _requests(
    source: Source, prompts: Sequence[str], control: Control, negative: str, num: int
) -> list[Request]:
    """Return one request per image, grouped by prompt."""
    texts = [text for text in prompts for _ in range(num)]
    if source.captioned:
        return [
            Request(number, text, negative, control.conditioning_image, control.image)
            for number, text in enumerate(texts)
        ]
    classes = source.classes
    for text in prompts:
        if text and text not in classes:
            has = f"one of {', '.join(classes)}" if classes else "no --prompt"
            raise UserError(
                f"--prompt={text}: this model does not read captions. Expected {has}"
                + nearest(text, classes)
            )
    if not classes:
        return [Request(number) for number in range(len(texts))]
    return [
        # Without a name, use the classes in turn.
        Request(number, label=classes.index(text) if text else number % len(classes))
        for number, text in enumerate(texts)
    ]


def _write(
    name: Path, mode: str, stages: Float[np.ndarray, "n H W c"], about: dict[str, str]
) -> Path:
    """Write one image, or a strip or animation of its stages; return the file."""
    if mode == "gif":
        file = name.with_suffix(".gif")
        save_gif(stages, file, comment=about["medjax"])
        return file
    file = name.with_suffix(".png")
    last = np.broadcast_to(to_uint8(stages[-1]), (*stages.shape[1:3], 3))
    save_png(file, strip(stages) if mode == "illustrate" else last, about)
    return file


def _page(
    images: Sequence[np.ndarray],
    prompts: Sequence[str],
    condition: Float[np.ndarray, "H W 3"] | None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Return a page of images: a row per prompt, or a square canvas for one prompt."""
    each = len(images) // len(prompts)
    if len(prompts) > 1 or condition is not None:
        columns = {str(n + 1): np.stack(images[n::each]) for n in range(each)}
        if condition is not None:
            columns = {
                "condition": np.stack([2 * condition - 1] * len(prompts)),
                **columns,
            }
        return image_page(columns, prompts if any(prompts) else None)
    wide = math.ceil(math.sqrt(each))
    blank = np.full_like(images[0], -1)
    tiles = [*images, *[blank] * (-each % wide)]
    return canvas(np.stack(tiles), wide)


def check_dtype(dtype: str) -> None:
    """Raise UserError if images cannot be computed in `dtype`."""
    if dtype not in _DTYPES:
        raise UserError(
            f"--dtype={dtype}: expected one of {', '.join(_DTYPES)}"
            + nearest(dtype, _DTYPES)
        )


def _next_number(out: Path, prefix: str = "") -> int:
    """Return the number after the highest one in the folder, or 0."""
    name = re.compile(prefix + r"(\d+)\.(?:png|gif)")
    found = (name.fullmatch(file.name) for file in storage.listed(out))
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _metadata(about: dict[str, Any]) -> dict[str, str]:
    """Return an image's settings as JSON and as the text that web UIs read."""
    height, width = about["size"]
    line = (
        f"{about['prompt']}\nNegative prompt: {about['negative_prompt']}\n"
        f"Steps: {about['steps']}, Sampler: {about['sampler']}, CFG scale: "
        f"{about['guidance_scale']}, Seed: {about['seed']}, Image: {about['number']}, "
        f"Size: {width}x{height}, Model: {about['source']}"
    )
    return {"medjax": json.dumps(about, ensure_ascii=False), "parameters": line}
