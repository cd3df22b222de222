"""Find the checkpoint that a user asks for: by step, the newest, or the best."""

import logging
import math
from pathlib import Path

from ml_collections import ConfigDict

from medjax import storage
from medjax.errors import UserError
from medjax.runs.checksums import SMALL, damage, saved_steps
from medjax.runs.config import completed, parse
from medjax.runs.read_checkpoint import read_about, read_metrics
from medjax.runs.sections import BestConfig

logger = logging.getLogger(__name__)


def find_checkpoint(workdir: str | Path, step: int | str | None) -> Path:
    """Return the folder of a checkpoint.

    Args:
        workdir: Folder of the run.
        step: Step of the checkpoint, or "best" for the best stored one by the run's
            `config.best`. None means the newest intact one.

    Raises:
        UserError: If the checkpoint is missing or damaged.
    """
    return _checkpoint(workdir, _number(workdir, step))


def best_step(workdir: str | Path, best: BestConfig) -> tuple[int, float]:
    """Return the step of a run's best checkpoint and its value of `best.metric`.

    Raises:
        UserError: If no checkpoint has a finite value of this metric.
    """
    home = Path(workdir).expanduser().absolute() / "checkpoints"
    measured: dict[int, float] = {}
    for step in saved_steps(home):
        if reason := damage(home / str(step), SMALL):
            logger.warning("ignoring checkpoint %d: %s", step, reason)
            continue
        measured[step] = read_metrics(home / str(step)).get(best.metric, math.nan)
    finite = {step: value for step, value in measured.items() if math.isfinite(value)}
    if not finite:
        raise UserError(
            f"--workdir={workdir}: no checkpoint has the metric {best.metric}. Only "
            "checkpoints at steps with a validation can have it: see "
            "train.checkpoint_every, eval.every and eval.sample_every in the config"
        )
    choose = min if best.mode == "min" else max
    step = choose(finite, key=lambda step: finite[step])
    return step, finite[step]


def _number(workdir: str | Path, step: int | str | None) -> int | None:
    """Return the step of the requested checkpoint; None means the newest."""
    if step == "best":
        about = read_about(_checkpoint(workdir, None))
        best = parse(ConfigDict(completed(about["config"]))).best
        number, value = best_step(workdir, best)
        logger.info("best checkpoint: step %d, %s %.4g", number, best.metric, value)
        return number
    if isinstance(step, str):
        if not step.isdecimal():
            raise UserError(
                f"--step={step}: expected the step of a checkpoint, or best"
            )
        return int(step)
    return step


def _checkpoint(workdir: str | Path, step: int | None) -> Path:
    """Return the folder of the checkpoint of `step`; None means the newest intact."""
    home = Path(workdir).expanduser().absolute() / "checkpoints"
    if not home.parent.is_dir():
        raise UserError(f"--workdir={workdir}: no such folder")
    steps = saved_steps(home)
    if not steps:
        folds = [one.name for one in storage.listed(home.parent, "fold-*")]
        raise UserError(
            f"--workdir={workdir}: no checkpoint found. Expected the folder of a run "
            "of medjax train that has saved one"
            + (
                f". Its folds have some: --workdir={workdir}/{folds[0]}"
                if folds
                else ""
            )
        )
    if step is not None and step not in steps:
        raise UserError(
            f"--workdir={workdir}: no checkpoint of step {step}. Existing steps: "
            f"{steps}"
        )
    reasons = []
    for number in reversed(steps) if step is None else [step]:
        reason = damage(home / str(number))
        if reason is None:
            return home / str(number)
        reasons.append(f"{number}: {reason}")
        logger.warning("checkpoint %s is damaged: %s", home / str(number), reason)
    raise UserError(f"--workdir={workdir}: damaged checkpoints: {'; '.join(reasons)}")
