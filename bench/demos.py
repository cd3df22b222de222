r"""Train the demos on phantoms, and measure how good their images are.

    python -m bench.demos                                 all of them, in two hours
    python -m bench.demos --only=knee --workdirs=DIR      one, in minutes

A demo that is already trained in --workdirs is not trained again. An unfinished demo
resumes from its last checkpoint. Pages of samples are written next to the results.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench import drawing, report
from bench.report import Row
from medjax.config_files import load_config
from medjax.cross_validation.folds import cross_validate
from medjax.data.examples import edges
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.errors import UserError, nearest
from medjax.evaluation.adherence import edge_adherence
from medjax.evaluation.chest import agreement, presence
from medjax.evaluation.frechet import frechet_distance
from medjax.evaluation.similarity import psnr
from medjax.evaluation.ventricles import VENTRICLE_MIDPOINT, ventricle_share
from medjax.pretrained import load_stable_diffusion
from medjax.pretrained.efficientnet import efficientnet_features
from medjax.pretrained.sources import PHANTOM_SD
from medjax.runs.config import parse
from medjax.runs.open_run import Run, load_run
from medjax.tasks.drawing import Request
from medjax.training.two_stages import train_stages

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")
_EACH = "Trained on phantoms of 64 × 64 pixels, measured on held-out phantoms.\n"
ABOUT = {
    "knee": """
Fréchet distance between generated images and equally many held-out phantoms, with
features of EfficientNet-Lite0; *real* is that of training phantoms. Time per image in
batches of 16. The published system took 20 s (256 × 256, 1000 steps, its authors' GPU).
""",
    "brain": """
PSNR of the VQ-VAE's reconstructions, and the used share of its codebook. For the latent
diffusion on its latents: the share of images whose measured ventricle area is on the
side of the midpoint that belongs to their class. Chance is 50%.
""",
    "phantom-sd": """
Images are sampled from held-out captions. Share of images whose measured heart and
pleural effusions agree with their captions; (chance) with those of other images. medjax
contains this model; `configs/phantom_sd.py` describes its training.
""",
    "controlnet": """
F1 of the images' edges with their conditions, minus that with the conditions of other
images: for phantom-SD with captions only; with the demo's ControlNet; and for the real
images after the autoencoder, the best possible. Then the share of images whose heart
and effusions agree with their captions and, in parentheses (chance), with others.
""",
    "lora": """
Share of images with a pneumothorax, if the caption names one and if it does not. Then
the share whose hearts and effusions are right, if it does not. For phantom-SD, which
was trained without any pneumothorax, and with the demo's adapters of each fold.
""",
}
# Name, number of steps, and η, the amount of fresh noise in the steps of DDIM.
SAMPLERS = (("ddim", 50, 0.0), ("ddim", 50, 1.0), ("ddpm", 1000, 0.0))
FOLD_IMAGES = 64


@dataclasses.dataclass(frozen=True)
class Asked:
    """Values of the flags.

    Attributes:
        workdirs: Folder of the demos' runs.
        images: Number of images to sample for each measure.
        out: Folder of the pages.
    """

    workdirs: Path
    images: int
    out: Path


def knee(asked: Asked) -> list[Row]:
    """Sample knees with DDIM and with DDPM."""
    run = _trained("configs/knee_ddpm.py:demo", asked.workdirs / "knee")
    real = efficientnet_features(drawing.held_out(run.config, asked.images))
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

    row("real", drawing.pixels(drawing.records(run.config, asked.images, "train")), "–")
    for sampler, steps, eta in SAMPLERS:
        requests = [Request(i) for i in range(asked.images)]
        sampling = SamplingConfig(sampler, steps, guidance_scale=1.0, eta=eta)
        images, seconds = drawing.draw(run.model, requests, sampling, run.config)
        noise = (f", η {eta:g}", "-eta") if eta else ("", "")
        row(f"{sampler.upper()}, {steps} steps{noise[0]}", images, seconds)
        drawing.show(images, asked.out / f"demos-knee-{sampler}{noise[1]}.png")
    return rows


def brain(asked: Asked) -> list[Row]:
    """Reconstruct brains, and sample brains of each class."""
    run = _trained("configs/brain_ldm.py:demo", asked.workdirs / "brain")
    first = load_run(asked.workdirs / "brain" / "autoencoder")
    real = drawing.held_out(run.config, asked.images)
    model: Any = first.model
    gray = real.mean(-1, keepdims=True)
    rebuilt = drawing.rebuilt(model.module, model.weights, gray)
    classes = run.config.data.classes
    labels = np.arange(asked.images) % len(classes)
    requests = [Request(i, label=int(label)) for i, label in enumerate(labels)]
    sampling = run.config.eval.sampling()
    images, seconds = drawing.draw(run.model, requests, sampling, run.config)
    share = ventricle_share(images)
    large = np.array(classes)[labels] == "AD"
    # An image without a head or a ventricle is wrong for both classes.
    right = (share > 0) & ((share > VENTRICLE_MIDPOINT) == large)
    drawing.show(images, asked.out / "demos-brain.png")
    return [
        {
            "images": f"{asked.images} held-out, {asked.images} drawn",
            "PSNR, dB": float(psnr(gray, rebuilt).mean()),
            "codebook in use": report.percent(first.metrics["val/codebook_usage"]),
            "ventricles right": report.percent(float(right.mean())),
            "seconds per image": seconds,
        }
    ]


def phantom_sd(asked: Asked) -> list[Row]:
    """Sample chests from captions that phantom-SD was not trained on."""
    config = parse(load_config("config", "configs/phantom_sd.py"))
    texts = [record["text"] for record in drawing.records(config, asked.images)]
    requests = [Request(i, prompt=text) for i, text in enumerate(texts)]
    sd = load_stable_diffusion(PHANTOM_SD)
    images, seconds = drawing.draw(sd, requests, config.eval.sampling(), config)
    drawing.show(images, asked.out / "demos-phantom-sd.png")
    scores = agreement(images, texts)
    named = {"heart": "heart", "effusions": "effusion", "both": "caption"}
    shares = {
        f"{what} right (chance)": _beside_chance(scores, f"{name}_agreement")
        for what, name in named.items()
    }
    return [{"images": str(len(images)), **shares, "seconds per image": seconds}]


def controlnet(asked: Asked) -> list[Row]:
    """Sample chests from captions and edges, and from captions only."""
    run = _trained("configs/cxr_controlnet.py:demo", asked.workdirs / "controlnet")
    config = run.config
    sd: Any = run.model
    records = drawing.records(config, asked.images)
    real = drawing.pixels(records)
    data = config.data
    numbers = range(len(real))
    cannys: list[Any] = [
        functools.partial(edges, config=data, key=(data.seed, i)) for i in numbers
    ]
    conditions = np.stack(
        [canny(record["image"]) for canny, record in zip(cannys, records, strict=True)]
    )
    rows: list[Row] = []

    def row(what: str, images: np.ndarray) -> None:
        scores = edge_adherence(images, conditions[..., None] / 255, cannys)
        f1, chance = scores["edge_f1"], scores["edge_f1_chance"]
        said = agreement(images, [record["text"] for record in records])
        rows.append(
            {
                "images": f"{len(images)} {what}",
                "edge F1": f1,
                "of other images (chance)": chance,
                "difference": f1 - chance,
                "as captioned (chance)": _beside_chance(said, "caption_agreement"),
            }
        )
        drawing.show(images, asked.out / f"demos-controlnet-{len(rows)}.png")

    edged = np.repeat(conditions[..., None] / np.float32(255), 3, axis=-1)
    asked_for = [
        Request(i, prompt=record["text"], conditioning_image=edged[i])
        for i, record in enumerate(records)
    ]
    alone = [dataclasses.replace(r, conditioning_image=None) for r in asked_for]
    sampling = config.eval.sampling()
    base = dataclasses.replace(sd, controlnet=None)
    row("by caption", drawing.draw(base, alone, sampling, config)[0])
    row("by caption and edges", drawing.draw(sd, asked_for, sampling, config)[0])
    weights = {"network": sd.vae.params}
    row("through the autoencoder", drawing.rebuilt(sd.vae.module, weights, real))
    return rows


def lora(asked: Asked) -> list[Row]:
    """Sample chests with and without pneumothoraces, with and without adapters."""
    config = parse(load_config("config", "configs/cxr_lora.py:demo"))
    workdir = asked.workdirs / "lora"
    scores = cross_validate(config, workdir, FOLD_IMAGES)
    texts = [record["text"] for record in drawing.records(config, asked.images)]
    without = [i for i, text in enumerate(texts) if "pneumothorax" not in text]
    requests = [Request(i, prompt=text) for i, text in enumerate(texts)]
    rows: list[Row] = []

    def row(what: str, sd: Any) -> None:
        images, _ = drawing.draw(sd, requests, config.eval.sampling(), config)
        drawing.show(images, asked.out / f"demos-lora-{len(rows)}.png")
        shares = {
            name: report.percent(x) for name, x in presence(images, texts).items()
        }
        others = agreement(images[without], [texts[i] for i in without])
        rows.append(
            {
                "images": f"{len(images)} by {what}",
                "pneumothorax where asked for": shares["pneumothorax_presence"],
                "where not": shares["pneumothorax_presence_unasked"],
                "heart and effusions right (chance)": _beside_chance(
                    others, "caption_agreement"
                ),
            }
        )

    row(PHANTOM_SD, load_stable_diffusion(PHANTOM_SD))
    for score in scores:
        fold = load_run(workdir / f"fold-{score.fold}", score.step)
        row(f"fold {score.fold}", fold.model)
    return rows


DEMOS: dict[str, Callable[[Asked], list[Row]]] = {
    "knee": knee,
    "brain": brain,
    "phantom-sd": phantom_sd,
    "controlnet": controlnet,
    "lora": lora,
}


def _beside_chance(scores: Mapping[str, float], name: str) -> str:
    return (
        f"{report.percent(scores[name])} ({report.percent(scores[f'{name}_chance'])})"
    )


def _trained(config_file: str, workdir: Path) -> Run:
    """Return a demo's run after the last step of its training."""
    train_stages(parse(load_config("config", config_file)), workdir)
    return load_run(workdir)


def main() -> list[Path]:
    """Measure as the flags say, and return one page per demo."""
    parser = report.parser(__doc__)
    parser.add_argument(
        "--only", default=",".join(DEMOS), help="demos, by commas (%(default)s)"
    )
    parser.add_argument(
        "--workdirs", type=Path, default=Path("workdirs/demos"), help="(%(default)s)"
    )
    parser.add_argument(
        "--images", type=int, default=200, help="for each measure (%(default)s)"
    )
    flags = parser.parse_args()
    if flags.images <= drawing.BATCH:
        raise UserError(f"--images={flags.images}: expected more than {drawing.BATCH}")
    wanted = flags.only.split(",")
    for name in wanted:
        if name not in DEMOS:
            raise UserError(
                f"--only={flags.only}: expected some of {', '.join(DEMOS)}"
                + nearest(name, list(DEMOS))
            )
    on = report.machine()
    asked = Asked(flags.workdirs, flags.images, flags.out)
    pages = []
    for name in wanted:
        rows = DEMOS[name](asked)
        print(name, rows, file=sys.stderr, flush=True)
        title, about = f"Results of the demo *{name}*", _EACH + ABOUT[name]
        given = f"demos-{name}", title, about, {name: rows}, on, PACKAGES, flags.out
        pages.append(report.write_results(*given))
    return pages


if __name__ == "__main__":
    report.run(main)
