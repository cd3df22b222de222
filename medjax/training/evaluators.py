"""Run validation and sampling on schedule, and record the results."""

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import UInt8

from medjax.arrays import Params
from medjax.evaluation.curves import save_curves
from medjax.evaluation.grids import save_png
from medjax.runs.config import RunConfig
from medjax.training.early_stopping import Patience
from medjax.training.log_lines import evaluation_line, step_of
from medjax.training.metrics_writer import MetricsWriter

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of one evaluator.

    Attributes:
        metrics: Numbers by column of ``metrics.csv``, e.g. ``val/loss``.
        page: A page of samples, or None.
        tracked: The page for trackers, or None. It has generated images only, except
            with ``config.log.real_images``.
    """

    metrics: dict[str, float]
    page: UInt8[np.ndarray, "H W 3"] | None = None
    tracked: UInt8[np.ndarray, "height width 3"] | None = None


@runtime_checkable
class Evaluator(Protocol):
    """Evaluates weights on a schedule."""

    @property
    def work(self) -> str:
        """Description of the work for the log. Empty if nothing is done."""
        ...

    def due(self, step: int) -> bool:
        """Tell whether the schedule runs this evaluator after `step`."""
        ...

    def run(self, params: Params, frozen: Params) -> Evaluation | None:
        """Evaluate. Return None if a signal asked to stop meanwhile."""
        ...


class Evaluators:
    """Runs all evaluators of a run, and passes on their results.

    Results go to ``metrics.csv``, ``samples/`` and ``curves.png``. The column
    ``config.best.metric`` also goes to `patience`, with its values from before a
    resumption.
    """

    def __init__(
        self,
        config: RunConfig,
        workdir: Path,
        evaluators: Sequence[Evaluator],
        writer: MetricsWriter,
    ) -> None:
        """Begin, or resume with the metrics that were written before.

        Args:
            config: Config of the run.
            workdir: Folder of the run.
            evaluators: The evaluators, in the order in which they run.
            writer: Writes the metrics, and holds the earlier ones.
        """
        self._workdir = workdir
        self._evaluators, self._writer = evaluators, writer
        self._steps = config.train.steps
        self._ran: set[str] = set()
        history = writer.history(config.best.metric)
        self._seen = [step for step in history if self.due(step)]
        self.patience = Patience(config.best, [history[step] for step in self._seen])

    def due(self, step: int) -> bool:
        """Tell whether the schedule runs any evaluator after `step`.

        All run after the last step. An evaluation because of `train.max_hours` is not
        on the schedule.
        """
        return step == self._steps or any(one.due(step) for one in self._evaluators)

    def run(
        self, params: Params, frozen: Params, step: int, everything: bool
    ) -> dict[str, float] | None:
        """Run the evaluators that are due after `step`, and record the results.

        Args:
            params: The weights to evaluate.
            frozen: The frozen weights.
            step: Steps done.
            everything: Whether to run all evaluators, due or not.

        Returns:
            Metrics by column; empty if nothing was due. None if a signal asked to stop
            meanwhile. Nothing is recorded then.

        Raises:
            UserError: If all evaluators ran and ``config.best.metric`` is missing.
        """
        due = [one for one in self._evaluators if everything or one.due(step)]
        start = time.monotonic()
        row: dict[str, float] = {}
        pages = []
        for one in due:
            self._announce(one.work, step)
            found = one.run(params, frozen)
            if found is None:
                return None
            row |= found.metrics
            if found.page is not None:
                pages.append((found.page, found.tracked))
        if self.due(step) and step not in self._seen:
            complete = len(due) == len(self._evaluators)
            self.patience.look_at(row, complete=complete)
        if row:
            self._writer.write(step, row)
            seconds = time.monotonic() - start
            logger.info("%s", evaluation_line(step, self._steps, row, seconds))
        for page, tracked in pages:
            self._write_page(step, page, tracked)
        return row

    def _announce(self, work: str, step: int) -> None:
        """Log the first run of each work, which takes longer because it compiles."""
        if work and work not in self._ran:
            self._ran.add(work)
            where = step_of(step, self._steps)
            logger.info("%s · %s; the first time compiles too", where, work)

    def _write_page(
        self, step: int, page: np.ndarray, tracked: np.ndarray | None
    ) -> None:
        if tracked is not None:
            self._writer.write_image(step, "samples", tracked)
        if jax.process_index() == 0:
            save_png(self._workdir / f"samples/{step:07d}.png", page)
            save_curves(self._workdir / "metrics.csv", self._workdir / "curves.png")
