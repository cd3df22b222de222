"""Cross-validation: a run a fold, and the best checkpoint of each on the test split.

Every fold starts from the same base, in a folder of its own, and resumes there if it
was interrupted. The test split is in no fold: it neither trains, nor chooses a
checkpoint, nor ends a run.
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
    """Train all folds, score them, and write ``cross_validation.md`` and ``.json``.

    Args:
        config: Of the runs; ``data.fold`` is set for each.
        workdir: Folder for ``fold-0`` and so on.
        images: How many test examples are drawn.

    Raises:
        UserError: If there are no folds, a patient or report is on two sides, the test
            split is too small, or a run cannot train.
        Stopped: If a signal ended a run; the same call resumes there.
    """
    workdir = Path(workdir)
    _check(config)
    if saved_steps(workdir / "checkpoints"):
        raise UserError(
            f"--workdir={workdir}: holds a run of medjax.train, which is no fold; "
            "expected a folder of its own"
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
                    f"{stop.signal.name}: fold {fold} is trained; the same command "
                    "resumes here"
                )
    write_report(workdir, config, scores, groups)
    return scores


def _test_split(config: RunConfig, images: int) -> tuple[Source, tuple[str, ...]]:
    """Open the test split; return it and the groups of its first examples.

    Raises:
        UserError: If it is too small, or a group is in the folds, too.
    """
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
    return test, groups


def _check(config: RunConfig) -> None:
    if not config.data.folds:
        raise UserError("config.data.folds is 0; give how many: --config.data.folds=5")
    if TASKS[config.task].caption_scores is None:
        scored = [name for name, row in TASKS.items() if row.caption_scores]
        raise UserError(
            f"cross-validation scores images drawn for test captions, and task "
            f"{config.task} draws none; expected {' or '.join(scored)}"
        )
    if config.train.max_hours is not None:
        raise UserError(
            "config.train.max_hours would cut folds short, which then cannot be "
            "compared; set it to None, and stop the command by SIGTERM: the same "
            "command resumes"
        )
    plan = config.train
    if plan.keep_best < 1:
        raise UserError(
            f"config.train.keep_best is {plan.keep_best}; expected at least 1, for the "
            "best checkpoint is what is scored"
        )
    schedule = {"every": config.eval.every, "sample_every": config.eval.sample_every}
    for name, every in schedule.items():
        if every % plan.checkpoint_every:
            raise UserError(
                f"config.eval.{name} is {every}, no multiple of "
                f"config.train.checkpoint_every, {plan.checkpoint_every}, so what was "
                "measured best might not be saved; expected "
                f"--config.train.checkpoint_every="
                f"{math.gcd(config.eval.every, config.eval.sample_every)}"
            )
    check_efficientnet()


def _groups(source: Any) -> tuple[str, ...]:
    return source.groups
