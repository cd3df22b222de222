"""Cross-validation: a run a fold, and the best checkpoint of each on the test split.

Every fold starts from the same base, in a folder of its own, and goes on there if it
was interrupted. The test split is in no fold: it neither trains, nor chooses a
checkpoint, nor ends a run.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from medjax.cross_validation.fold_scores import FoldScores, score_fold
from medjax.data.folds import check_disjoint
from medjax.data.pipeline import open_dataset
from medjax.errors import Stopped, UserError
from medjax.pretrained.efficientnet import check_efficientnet
from medjax.runs.checksums import saved_steps
from medjax.runs.config import RunConfig
from medjax.training.stop import stop_on_signals
from medjax.training.two_stages import train_stages

logger = logging.getLogger(__name__)

_TASKS = ("text_to_image", "controlnet")
_RESAMPLINGS, _COVERED = 2000, 95
_FINDINGS = (
    "`…_agreement` is the share of images that show what their captions say (of the "
    "heart, of a finding and its side; `caption` is heart and effusion together), and "
    "`…_agreement_chance` what the other images' captions would give. `…_presence` is "
    "the share that shows the finding, on any side, of the images whose captions name "
    "it, and `…_presence_unasked` of those whose captions do not."
)


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
    workdir = Path(workdir)
    _check(config)
    if saved_steps(workdir / "checkpoints"):
        raise UserError(
            f"--workdir={workdir}: holds a run of medjax.train, which is no fold; "
            "expected a folder of its own"
        )
    test = open_dataset(config.data, "test")
    if not 2 <= images <= len(test):
        raise UserError(
            f"--images={images}: expected at least 2, and no more than the test split "
            f"has, {len(test)}"
        )
    groups = _groups(test)[:images]
    if len(set(groups)) < 2:
        raise UserError(
            f"--images={images}: they are of one patient or report, which leaves no "
            "interval; expected more"
        )
    everything = [open_dataset(config.data, name) for name in ("train", "validation")]
    check_disjoint([g for one in everything for g in _groups(one)], _groups(test))
    scores = []
    with stop_on_signals() as stop:
        for fold in range(config.data.folds):
            logger.info("fold %d of %d", fold, config.data.folds)
            data = dataclasses.replace(config.data, fold=fold)
            folder = workdir / f"fold-{fold}"
            train_stages(dataclasses.replace(config, data=data), folder)
            if stop.signal is None:
                scores.append(score_fold(fold, folder, config, test, images))
            if stop.signal is not None:
                raise Stopped(
                    f"{stop.signal.name}: fold {fold} is trained; the same command "
                    "goes on from here"
                )
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
    plan = config.train
    if plan.keep_best < 1:
        raise UserError(
            f"config.train.keep_best is {plan.keep_best}; expected at least 1, for the "
            "best checkpoint is what is scored"
        )
    for name in ("every", "sample_every"):
        if getattr(config.eval, name) % plan.checkpoint_every:
            raise UserError(
                f"config.eval.{name} is {getattr(config.eval, name)}, no multiple of "
                f"config.train.checkpoint_every, {plan.checkpoint_every}, so what was "
                "measured best might not be saved; expected "
                f"--config.train.checkpoint_every="
                f"{math.gcd(config.eval.every, config.eval.sample_every)}"
            )
    check_efficientnet()


def _groups(source: Any) -> tuple[str, ...]:
    return source.groups


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
        # By name, so that what is by chance follows what it belongs to.
        for name, values in sorted(table.items())
    }
    told = {"test_examples": len(groups), "steps": [one.step for one in scores]}
    text = json.dumps(told | {"metrics": summary}, indent=2)
    (workdir / "cross_validation.json").write_text(text + "\n", encoding="utf-8")
    page = _page(config, scores, summary, len(groups), workdir)
    (workdir / "cross_validation.md").write_text(page, encoding="utf-8")
    logger.info("%s", page)


def _page(
    config: RunConfig,
    scores: Sequence[FoldScores],
    summary: dict[str, dict[str, Any]],
    count: int,
    workdir: Path,
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
    if getattr(config.eval, "chest_findings", False):
        about += f"\n\n{_FINDINGS}"
    choose = min if config.best.mode == "min" else max
    best = choose(scores, key=lambda one: one.best)
    export = (
        f"Fold {best.fold} came out best by {config.best.metric}:\n\n"
        f"    python -m medjax.export --workdir={workdir}/fold-{best.fold} "
        f"--step={best.step} --to=DIR"
    )
    return "\n".join(["# Cross-validation", "", about, "", *lines, "", export, ""])
