"""Cross-validation: a run a fold, and the best checkpoint of each on the test split.

Every fold starts from the same base, in a folder of its own, and goes on there if it
was interrupted. The test split is in no fold: it neither trains, nor chooses a
checkpoint, nor ends a run.
"""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from medjax import meshes
from medjax.data.folds import check_disjoint
from medjax.data.pipeline import Source, open_dataset, validation_batches
from medjax.errors import UserError
from medjax.evaluation.chest import matches, presence
from medjax.evaluation.frechet import frechet_distance
from medjax.evaluation.grids import image_page, save_png
from medjax.evaluation.similarity import psnr, ssim
from medjax.pretrained.efficientnet import check_efficientnet, efficientnet_features
from medjax.tasks.generation import Request, generate
from medjax.training.config import RunConfig
from medjax.training.runs import Run, best_step, load_run
from medjax.training.stages import train_stages

logger = logging.getLogger(__name__)

_TASKS = ("text_to_image", "controlnet")
_RESAMPLINGS, _COVERED = 2000, 95
_AT_ONCE = 8
Images = Float[np.ndarray, "n H W 3"]


@dataclasses.dataclass(frozen=True)
class FoldScores:
    """What the best checkpoint of a fold is worth on the test split.

    Attributes:
        fold: Number of the fold.
        step: Of the checkpoint.
        best: What it was chosen by, on the fold's own validation examples.
        each: ``mse``, ``psnr_db`` and ``ssim`` of each image drawn for a test example
            against the real one; images in [-1, 1]. Of computed chests also whether
            it is as its caption says, see `medjax.evaluation.chest.matches`.
        all: ``frechet_distance`` of all those to the real ones; of computed chests also
            `medjax.evaluation.chest.presence`.
    """

    fold: int
    step: int
    best: float
    each: dict[str, Float[np.ndarray, " n"]]
    all: dict[str, float]


def cross_validate(
    config: RunConfig, workdir: str | Path, images: int
) -> list[FoldScores]:
    """Train all folds, score them, and write ``cross_validation.md`` and ``.json``.

    Args:
        config: Of the runs; ``data.fold`` is set for each.
        workdir: Folder for ``fold-0`` and so on.
        images: How many test examples are drawn.

    Raises:
        UserError: If there are no folds, a patient or report is on two sides, the test
            split is too small, or a run cannot train.
        Stopped: If a signal ended a run; the same call goes on from there.
    """
    _check(config)
    test = open_dataset(config.data, "test")
    if not 2 <= images <= len(test):
        raise UserError(
            f"--images={images}: expected at least 2, and no more than the test split "
            f"has, {len(test)}"
        )
    groups = _groups(test)[:images]
    everything = [open_dataset(config.data, name) for name in ("train", "validation")]
    check_disjoint([g for one in everything for g in _groups(one)], _groups(test))
    workdir = Path(workdir)
    scores = []
    for fold in range(config.data.folds):
        logger.info("fold %d of %d", fold, config.data.folds)
        data = dataclasses.replace(config.data, fold=fold)
        folder = workdir / f"fold-{fold}"
        train_stages(dataclasses.replace(config, data=data), folder)
        scores.append(_score(fold, folder, config, test, images))
    _write(workdir, config, scores, groups)
    return scores


def _check(config: RunConfig) -> None:
    if not config.data.folds:
        raise UserError("config.data.folds is 0; give how many: --config.data.folds=5")
    if config.task not in _TASKS:
        raise UserError(
            f"cross-validation scores images drawn for test captions, and task "
            f"{config.task} draws none; expected {' or '.join(_TASKS)}"
        )
    if config.train.max_hours is not None:
        raise UserError(
            "config.train.max_hours would cut folds short, which then cannot be "
            "compared; set it to None, and stop the command by SIGTERM: the same "
            "command goes on"
        )
    check_efficientnet()


def _groups(source: Any) -> tuple[str, ...]:
    return source.groups


def _score(
    fold: int, folder: Path, config: RunConfig, test: Source, count: int
) -> FoldScores:
    step, best = best_step(folder, config.best)
    run = load_run(folder, step)
    real, drawn = _drawn(run, test, count)
    save_png(
        folder / "test.png",
        image_page({"real": real[:_AT_ONCE], "drawn": drawn[:_AT_ONCE]}),
    )
    each = {
        "mse": np.square(real - drawn).mean((1, 2, 3)),
        "psnr_db": psnr(real, drawn),
        "ssim": ssim(real, drawn),
    }
    features = efficientnet_features(real), efficientnet_features(drawn)
    whole = {"frechet_distance": frechet_distance(*features)}
    if getattr(config.eval, "chest_findings", False):
        texts = [test[number]["text"] for number in range(count)]
        for name, agrees in matches(drawn, texts).items():
            each[f"{name}_agreement"] = np.diagonal(agrees).astype(float)
        # What no caption asks for has no share.
        shares = presence(drawn, texts)
        whole |= {name: one for name, one in shares.items() if not np.isnan(one)}
    return FoldScores(fold, step, best, each, whole)


def _drawn(run: Run, test: Source, count: int) -> tuple[Images, Images]:
    """Return test images, and what the run draws for their captions and controls."""
    data = dataclasses.replace(run.config.data, batch_size=1, workers=0)
    batches = validation_batches(test, run.sd.tokenizer, data)
    real, requests = [], []
    for number, batch in zip(range(count), batches, strict=False):
        real.append(batch["images"][0])
        control = batch.get("conditioning_image")
        requests.append(
            Request(
                number,
                test[number]["text"],
                conditioning_image=None if control is None else control[0],
            )
        )
    batches.close()
    drawn = generate(
        run.sd,
        requests,
        run.config.eval.sampling(),
        (data.image_size, data.image_size),
        meshes.make_mesh(meshes.MeshConfig(), jax.devices()),
        batch_size=_AT_ONCE * len(jax.devices()),
    )
    return np.stack(real), np.stack(list(drawn))


def interval(
    values: Float[np.ndarray, "folds n"], groups: Sequence[str]
) -> tuple[float, float]:
    """Return the bootstrap's 95% interval of the mean over examples and folds.

    Groups are drawn with replacement, for the examples of one are alike.

    Args:
        values: Of each fold's run on each test example.
        groups: What each example belongs to.

    Source: percentile interval, Efron and Tibshirani, "An Introduction to the
    Bootstrap", 1993, section 13.3.
    """
    names, member = np.unique(np.array(groups), return_inverse=True)
    totals = np.bincount(member, values.mean(0))
    sizes = np.bincount(member)
    drawn = np.random.default_rng(0).multinomial(
        len(names), np.full(len(names), 1 / len(names)), _RESAMPLINGS
    )
    means = (drawn @ totals) / (drawn @ sizes)
    tail = (100 - _COVERED) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def _write(
    workdir: Path,
    config: RunConfig,
    scores: Sequence[FoldScores],
    groups: Sequence[str],
) -> None:
    names = list(scores[0].each)
    table: dict[str, list[float]] = {
        name: [float(one.each[name].mean()) for one in scores] for name in names
    }
    table |= {name: [one.all[name] for one in scores] for name in scores[0].all}
    table[config.best.metric] = [one.best for one in scores]
    intervals = {
        name: interval(np.stack([one.each[name] for one in scores]), groups)
        for name in names
    }
    summary = {
        name: {
            "folds": values,
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)),
            "interval_95": intervals.get(name),
        }
        for name, values in table.items()
    }
    told = {"test_examples": len(groups), "steps": [one.step for one in scores]}
    text = json.dumps(told | {"metrics": summary}, indent=2)
    (workdir / "cross_validation.json").write_text(text + "\n", encoding="utf-8")
    page = _page(config, scores, summary, len(groups))
    (workdir / "cross_validation.md").write_text(page, encoding="utf-8")
    logger.info("%s", page)


def _page(
    config: RunConfig,
    scores: Sequence[FoldScores],
    summary: dict[str, dict[str, Any]],
    count: int,
) -> str:
    """Return the table in Markdown."""
    head = ["", *(f"fold {one.fold}" for one in scores), "mean ± sd", "95% interval"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    steps = [str(one.step) for one in scores]
    lines.append("| " + " | ".join(["best step", *steps, "", ""]) + " |")
    for name, found in summary.items():
        between = found["interval_95"]
        cells = [
            name,
            *(f"{value:.4g}" for value in found["folds"]),
            f"{found['mean']:.4g} ± {found['sd']:.2g}",
            f"{between[0]:.4g} to {between[1]:.4g}" if between else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    about = (
        f"The best checkpoint of each of {len(scores)} folds, by {config.best.metric} "
        f"on the fold's own validation examples; all else is of images drawn for the "
        f"captions of {count} test examples, which no fold has seen. sd is over folds, "
        "the interval over test groups (patients or reports)."
    )
    return "\n".join(["# Cross-validation", "", about, "", *lines, ""])
