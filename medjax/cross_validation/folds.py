"""Cross-validation: train a run per fold and score its best checkpoint.

Every fold starts from the same base and has its own folder, where it resumes after an
interruption. Scores come from the test split, which is in no fold. It is not used to
train, to choose a checkpoint, or to stop a run.
"""

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

from medjax.cross_validation.fold_scores import FoldScores, score_fold
from medjax.cross_validation.report import write_report
from medjax.data.folds import check_disjoint
from medjax.data.pipeline import Source, open_dataset
from medjax.errors import Stopped, UserError
from medjax.pretrained.efficientnet import check_efficientnet
from medjax.runs.checksums import saved_steps
from medjax.runs.config import RunConfig
from medjax.tasks import TASKS
from medjax.training.stop import stop_on_signals
from medjax.training.two_stages import train_stages

logger = logging.getLogger(__name__)


def cross_validate(
    config: RunConfig, workdir: str | Path, images: int
) -> list[FoldScores]:
    """Train and score all folds; write ``cross_validation.md`` and ``.json``.

    Args:
        config: Config of the runs; ``data.fold`` is set for each.
        workdir: Folder for ``fold-0`` and so on.
        images: Number of test examples to sample images for, at least 2.

    Raises:
        UserError: If ``data.folds`` is 0, if a patient or report is in both the folds
            and the test split, if the test split is too small, or if a run cannot
            train.
        Stopped: If a signal stopped a run. The same call resumes it.
    """
    workdir = Path(workdir)
    _check(config)
    if saved_steps(workdir / "checkpoints"):
        raise UserError(
            f"--workdir={workdir}: contains a run of medjax train, not folds. Use "
            "another folder"
        )
    test, groups = _test_split(config, images)
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
                    f"{stop.signal.name}: stopped after training fold {fold}; the same "
                    "command resumes"
                )
    write_report(workdir, config, scores, groups)
    return scores


def _test_split(config: RunConfig, images: int) -> tuple[Source, tuple[str, ...]]:
    """Return the test split and the groups of its first examples.

    Raises:
        UserError: If the split is too small, or if a group is also in the folds.
    """
    test = open_dataset(config.data, "test")
    if not 2 <= images <= len(test):
        raise UserError(
            f"--images={images}: expected at least 2 and at most {len(test)}, the size "
            "of the test split"
        )
    groups = _groups(test)[:images]
    if len(set(groups)) < 2:
        raise UserError(
            f"--images={images}: all images are of one patient or report, so no "
            "confidence interval can be computed. Use more images"
        )
    everything = [open_dataset(config.data, name) for name in ("train", "validation")]
    check_disjoint([g for one in everything for g in _groups(one)], _groups(test))
    return test, groups


def _check(config: RunConfig) -> None:
    if not config.data.folds:
        raise UserError(
            "config.data.folds=0: set the number of folds, e.g. --config.data.folds=5"
        )
    if TASKS[config.task].caption_scores is None:
        scored = [name for name, row in TASKS.items() if row.caption_scores]
        raise UserError(
            f"config.task={config.task}: cross-validation samples images for captions, "
            f"and this task has no captions. Expected {' or '.join(scored)}"
        )
    if config.train.max_hours is not None:
        raise UserError(
            "config.train.max_hours would stop folds early, and then they cannot be "
            "compared. Set it to None, and stop the command with SIGTERM; the same "
            "command resumes"
        )
    plan = config.train
    if plan.keep_best < 1:
        raise UserError(
            f"config.train.keep_best={plan.keep_best}: expected at least 1, because "
            "the best checkpoint is scored"
        )
    schedule = {"every": config.eval.every, "sample_every": config.eval.sample_every}
    for name, every in schedule.items():
        if every % plan.checkpoint_every:
            raise UserError(
                f"config.eval.{name}={every}: expected a multiple of config.train."
                f"checkpoint_every, {plan.checkpoint_every}, because the best step "
                "must have a checkpoint. Set --config.train.checkpoint_every="
                f"{math.gcd(config.eval.every, config.eval.sample_every)}"
            )
    check_efficientnet()


def _groups(source: Any) -> tuple[str, ...]:
    return source.groups
