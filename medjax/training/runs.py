"""A run to read from: the weights of one of its checkpoints, in place, at float32.

Nothing in the workdir is changed, so that the run may still be training, and nothing
but the workdir and the base has to be there.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from ml_collections import ConfigDict

from medjax.errors import UserError, nearest
from medjax.pretrained import StableDiffusion
from medjax.tasks import TASKS
from medjax.training.config import RunConfig, parse
from medjax.training.integrity import damage, saved_steps
from medjax.training.stored import read_about, read_metrics, read_tree, state_names

logger = logging.getLogger(__name__)

Weights = Literal["auto", "ema", "raw"]
# Of the state, the tree with the weights of each name.
_TREES = {"ema": "ema_params", "raw": "params"}


@dataclasses.dataclass(frozen=True)
class Run:
    """What one checkpoint of a run holds.

    Attributes:
        sd: The base with what was trained in its place, and the ControlNet; float32.
        config: What the run was configured with.
        step: Updates done.
        weights: "ema" for the average of the weights, "raw" for the last ones.
        trained: Names of the networks that trained, wholly or in part.
        metrics: What validation measured at this step; may be empty.
        base: ``source`` and ``fingerprint`` of the weights that the run stood on.
        dataset: The same of its data.
    """

    sd: StableDiffusion
    config: RunConfig
    step: int
    weights: str
    trained: tuple[str, ...]
    metrics: Mapping[str, float]
    base: Mapping[str, str]
    dataset: Mapping[str, str]


def load_run(
    workdir: str | Path,
    step: int | None = None,
    weights: str = "auto",
    base: str | None = None,
) -> Run:
    """Read one checkpoint of a run.

    Args:
        workdir: Where `medjax.train` wrote.
        step: Which checkpoint; the newest whole one if None.
        weights: "ema", "raw", or "auto": the average, where the run kept one.
        base: Where its base lies now: a folder, hub id or file; where it lay in
            training if None.

    Raises:
        UserError: If there is no such run or checkpoint, it is damaged, it has no such
            weights, or its base is not found or has changed.
    """
    if weights not in get_args(Weights):
        raise UserError(
            f"--weights={weights}: expected one of {', '.join(get_args(Weights))}"
            + nearest(weights, get_args(Weights))
        )
    folder = _checkpoint(workdir, step)
    kind = _kind(folder, weights)
    about = read_about(folder)
    config, inputs = parse(ConfigDict(about["config"])), about["inputs"]
    trained = read_tree(folder, _TREES[kind])
    logger.info("read checkpoint %s, %s weights", folder, kind)
    return Run(
        sd=TASKS[config.task][2](
            config.model, config.diffusion, trained, inputs["base"], base
        ),
        config=config,
        step=int(folder.name),
        weights=kind,
        trained=tuple(sorted(trained)),
        metrics=read_metrics(folder),
        base=inputs["base"],
        dataset=inputs["dataset"],
    )


def _checkpoint(workdir: str | Path, step: int | None) -> Path:
    """Return the folder of the checkpoint of `step`, or of the newest whole one."""
    home = Path(workdir).expanduser() / "checkpoints"
    if not home.parent.is_dir():
        raise UserError(f"--workdir={workdir}: no such folder")
    steps = saved_steps(home)
    if not steps:
        raise UserError(
            f"--workdir={workdir}: holds no checkpoint; expected the folder of a run "
            "of python -m medjax.train that has saved one"
        )
    if step is not None and step not in steps:
        raise UserError(
            f"--workdir={workdir}: no checkpoint of step {step}; it has {steps}"
        )
    reasons = []
    for number in reversed(steps) if step is None else [step]:
        reason = damage(home / str(number))
        if reason is None:
            return home / str(number)
        reasons.append(f"{number}: {reason}")
        logger.warning("checkpoint %s is damaged: %s", home / str(number), reason)
    raise UserError(f"--workdir={workdir}: damaged checkpoints: {'; '.join(reasons)}")


def _kind(folder: Path, weights: str) -> str:
    """Return which weights are meant: "ema" or "raw"."""
    has_ema = _TREES["ema"] in state_names(folder)
    if weights == "ema" and not has_ema:
        raise UserError(
            "--weights=ema: the run kept no average (config.optim.ema_decay is None); "
            "take --weights=raw"
        )
    return "ema" if has_ema and weights != "raw" else "raw"
