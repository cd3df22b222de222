r"""Train the demos on phantoms, and measure what they are worth.

    python -m bench.demos                                 all of them, in an hour
    python -m bench.demos --only=knee --workdirs=DIR      one, in minutes

A demo that is trained already in --workdirs is taken as it is, and one that is not goes
on from its last checkpoint. Pages of what they draw go beside the results.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bench import report
from bench.report import Row
from medjax import meshes
from medjax.arrays import Params
from medjax.config_files import load_config
from medjax.data.pipeline import open_dataset
from medjax.errors import UserError, nearest
from medjax.evaluation.frechet import frechet_distance
from medjax.evaluation.grids import canvas, save_png
from medjax.evaluation.similarity import psnr
from medjax.evaluation.ventricles import VENTRICLE_MIDPOINT, ventricle_share
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.models.vq_vae import VQVAE
from medjax.pretrained.efficientnet import efficientnet_features
from medjax.tasks.autoencoders import decode, encode_mean
from medjax.tasks.generation import Request, generate
from medjax.tasks.sampling_config import SamplingConfig
from medjax.training.config import RunConfig, parse
from medjax.training.runs import Run, load_run
from medjax.training.stages import train_stages

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")
ABOUT = """
What the demos are worth, each trained by the one command that its row names on phantoms
of 64 × 64 pixels, and measured on held-out phantoms that it has not seen.

* **knee**: Fréchet distance, on EfficientNet-Lite0's features, of as many generated
  images to held-out phantoms; *real* is that of training phantoms, which no model is
  expected to beat. Time of an image in batches of 16. The published system took 20 s an
  image (256 × 256, 1000 steps, on the GPU of its authors), by 1000 steps of DDPM.
* **brain VQ-VAE**: PSNR of reconstructions, and the share of the codebook in use.
* **brain LDM**: share of images, given their class, whose ventricles' measured area is
  on the class's side of the midpoint; chance is a half.
"""
SAMPLERS = (("ddim", 50), ("ddpm", 1000))
_BATCH = 16
_SHOWN = 16


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the flags say.

    Attributes:
        workdirs: Of the demos' runs.
        images: How many are drawn for each measure.
        out: Of the pages.
    """

    workdirs: Path
    images: int
    out: Path


def knee(asked: Asked) -> list[Row]:
    """Draw knees by DDIM and by DDPM."""
    run = _trained("configs/knee_ddpm.py:demo", asked.workdirs / "knee")
    real = efficientnet_features(_held_out(run.config, asked.images))
    train = open_dataset(run.config.data, "train")
    rows: list[Row] = []

    def row(what: str, images: np.ndarray, seconds: float | str) -> None:
        distance = frechet_distance(real, efficientnet_features(images))
        rows.append(
            {
                "images": f"{len(images)} {what}",
                "Fréchet distance": distance,
                "seconds per image": seconds,
            }
        )

    row("real", _images(train, asked.images), "–")
    for sampler, steps in SAMPLERS:
        requests = [Request(i) for i in range(asked.images)]
        sampling = SamplingConfig(sampler=sampler, steps=steps, guidance_scale=1.0)
        images, seconds = _draw(run.model, requests, sampling, run.config)
        row(f"{sampler.upper()}, {steps} steps", images, seconds)
        _show(images, asked.out / f"demos-knee-{sampler}.png")
    return rows


def brain(asked: Asked) -> list[Row]:
    """Reconstruct brains, and draw them of each class."""
    run = _trained("configs/brain_ldm.py:demo", asked.workdirs / "brain")
    first = load_run(asked.workdirs / "brain" / "autoencoder")
    real = _held_out(run.config, asked.images)
    model: Any = first.model
    gray = real.mean(-1, keepdims=True)
    rebuilt = _rebuilt(model.module, model.weights, gray)
    classes = run.config.data.classes
    labels = np.arange(asked.images) % len(classes)
    requests = [Request(i, label=int(label)) for i, label in enumerate(labels)]
    images, seconds = _draw(run.model, requests, run.config.eval.sampling(), run.config)
    share = ventricle_share(images)
    large = np.array(classes)[labels] == "AD"
    # Where there is no head, or no ventricle, neither is right.
    right = (share > 0) & ((share > VENTRICLE_MIDPOINT) == large)
    _show(images, asked.out / "demos-brain.png")
    return [
        {
            "images": f"{asked.images} held-out, {asked.images} drawn",
            "PSNR, dB": float(psnr(gray, rebuilt).mean()),
            "codebook in use": report.percent(first.metrics["val/codebook_usage"]),
            "ventricles right": report.percent(float(right.mean())),
            "seconds per image": seconds,
        }
    ]


DEMOS: dict[str, Callable[[Asked], list[Row]]] = {
    "knee": knee,
    "brain": brain,
}


def _trained(config_file: str, workdir: Path) -> Run:
    """Return a demo's run, trained to its end."""
    train_stages(parse(load_config("--config", config_file)), workdir)
    return load_run(workdir)


def _held_out(config: RunConfig, count: int) -> np.ndarray:
    return _images(open_dataset(config.data, "test"), count)


def _images(source: Any, count: int) -> np.ndarray:
    """Return the first images of a source in [-1, 1] (b H W 3)."""
    if count > len(source):
        raise UserError(f"--images={count}: the demo holds out {len(source)}")
    pixels = np.stack([source[i]["image"] for i in range(count)])
    return pixels.astype(np.float32) / 127.5 - 1


def _draw(
    model: Any,
    requests: Sequence[Request],
    sampling: SamplingConfig,
    config: RunConfig,
) -> tuple[np.ndarray, float]:
    """Return images, and the seconds of each once it is compiled."""
    mesh = meshes.make_mesh(meshes.MeshConfig(), jax.devices())
    size = (config.data.image_size,) * 2
    drawn: Iterator[np.ndarray] = generate(
        model, requests, sampling, size, mesh, batch_size=_BATCH
    )
    images = [next(drawn) for _ in range(_BATCH)]
    start = time.perf_counter()
    images += drawn
    took = time.perf_counter() - start
    return np.stack(images), took / (len(images) - _BATCH)


def _rebuilt(
    module: VQVAE | AutoencoderKL, weights: Params, images: np.ndarray
) -> np.ndarray:
    """Return what an autoencoder makes of images."""

    @jax.jit
    def rebuild(weights: Params, some: Any) -> Any:
        return decode(module, weights, encode_mean(module, weights, some))

    parts = [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
    return np.concatenate([np.asarray(rebuild(weights, part)) for part in parts])


def _show(images: np.ndarray, page: Path) -> None:
    page.parent.mkdir(parents=True, exist_ok=True)
    save_png(page, canvas(images[:_SHOWN], _SHOWN // 2))


def main() -> Path:
    """Measure as the flags say; return the page."""
    parser = report.parser(__doc__)
    parser.add_argument(
        "--only", default=",".join(DEMOS), help="which, by commas (%(default)s)"
    )
    parser.add_argument(
        "--workdirs", type=Path, default=Path("workdirs/demos"), help="(%(default)s)"
    )
    parser.add_argument(
        "--images", type=int, default=200, help="drawn for each measure (%(default)s)"
    )
    flags = parser.parse_args()
    if flags.images <= _BATCH:
        raise UserError(f"--images={flags.images}: expected more than {_BATCH}")
    wanted = flags.only.split(",")
    for name in wanted:
        if name not in DEMOS:
            raise UserError(
                f"--only={flags.only}: expected some of {', '.join(DEMOS)}"
                + nearest(name, list(DEMOS))
            )
    on = report.machine()
    asked = Asked(flags.workdirs, flags.images, flags.out)
    tables = {}
    for name in wanted:
        tables[name] = DEMOS[name](asked)
        print(name, tables[name], file=sys.stderr, flush=True)
    title = "What the demos are worth"
    return report.write_results("demos", title, ABOUT, tables, on, PACKAGES, flags.out)


if __name__ == "__main__":
    report.run(main)
