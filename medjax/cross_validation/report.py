"""Write the report of a cross-validation: the scores of all folds, with intervals."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from medjax import storage
from medjax.cross_validation.fold_scores import FoldScores
from medjax.runs.config import RunConfig
from medjax.tasks import TASKS

logger = logging.getLogger(__name__)

_RESAMPLINGS, _COVERED = 2000, 95


def interval(
    values: Float[np.ndarray, "folds n"], groups: Sequence[str]
) -> tuple[float, float]:
    """Return the 95% bootstrap interval of the mean over examples and folds.

    Groups are resampled with replacement, because examples of one group are similar.

    Args:
        values: Score of each fold's run on each test example.
        groups: Group (patient or report) of each example.

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


def write_report(
    workdir: Path,
    config: RunConfig,
    scores: Sequence[FoldScores],
    groups: Sequence[str],
) -> None:
    """Write ``cross_validation.json`` and ``cross_validation.md``.

    Args:
        workdir: Folder to write to.
        config: Config of the runs.
        scores: Scores of each fold; at least two folds.
        groups: Group of each scored test example.
    """
    summary = _summary(config, scores, groups)
    told = {"test_examples": len(groups), "steps": [one.step for one in scores]}
    storage.write_json(workdir / "cross_validation.json", told | {"metrics": summary})
    page = _page(config, scores, summary, len(groups), workdir)
    storage.write_text(workdir / "cross_validation.md", page)
    logger.info("%s", page)


def _summary(
    config: RunConfig, scores: Sequence[FoldScores], groups: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return each metric's values by fold, mean, standard deviation and interval."""
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
    return {
        name: {
            "folds": values,
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)),
            "interval_95": intervals.get(name),
        }
        # Sorted by name, so that each level of chance follows its score.
        for name, values in sorted(table.items())
    }


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
        f"Scores of the best checkpoint of each of {len(scores)} folds. It was chosen "
        f"by {config.best.metric} on the fold's own validation examples. All other "
        f"scores are of images sampled for the captions of {count} test examples, "
        "which are in no fold. sd is the standard deviation over folds. The interval "
        "is over test groups (patients or reports)."
    )
    caption_scores = TASKS[config.task].caption_scores
    if caption_scores and (explained := caption_scores.explain(config.eval)):
        about += f"\n\n{explained}"
    choose = min if config.best.mode == "min" else max
    best = choose(scores, key=lambda one: one.best)
    export = (
        f"Fold {best.fold} is the best by {config.best.metric}. To export it:\n\n"
        f"    medjax export --workdir={workdir}/fold-{best.fold} "
        f"--step={best.step} --to=DIR"
    )
    return "\n".join(["# Cross-validation", "", about, "", *lines, "", export, ""])
