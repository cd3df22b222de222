"""What a run measures and draws of itself along the way, and who is told of it."""

from collections.abc import Callable
from pathlib import Path

import jax

from medjax.arrays import Params
from medjax.evaluation.curves import save_curves
from medjax.evaluation.grids import save_png
from medjax.runs.config import RunConfig
from medjax.training.early_stopping import Patience
from medjax.training.metrics_writer import MetricsWriter
from medjax.training.validation import Samples


class Evaluations:
    """Validation and pages of samples, by the config's schedule.

    What they give goes to ``metrics.csv``, ``samples/`` and ``curves.png``, and its
    ``config.best.metric`` to a patience that remembers the run's earlier ones.
    """

    def __init__(
        self,
        config: RunConfig,
        workdir: Path,
        validate: Callable[[Params, Params], dict[str, float] | None] | None,
        sample: Callable[[Params, Params], Samples | None],
        writer: MetricsWriter,
    ) -> None:
        """Begin, or go on.

        Args:
            config: The run's.
            workdir: Its folder.
            validate: None where nothing is held out; see `validation.make_validate`.
            sample: See `validation.make_sample`.
            writer: Knows what was measured before.
        """
        self._workdir = workdir
        self._validate, self._sample, self._writer = validate, sample, writer
        self._of = "train" if validate is None else "val"
        self._every = (config.eval.every, config.eval.sample_every)
        self._steps = config.train.steps
        history = writer.history(config.best.metric)
        self._seen = [step for step in history if self.planned(step)]
        self.patience = Patience(config.best, [history[step] for step in self._seen])

    def planned(self, step: int) -> bool:
        """Tell whether the schedule has something, as it has not for `max_hours`."""
        return step == self._steps or not all(step % every for every in self._every)

    def __call__(
        self, params: Params, frozen: Params, step: int, last: bool
    ) -> dict[str, float] | None:
        """Measure and draw what is due after `step`; return the numbers, by column.

        Args:
            params: Those to evaluate.
            frozen: The others.
            step: Updates done.
            last: Whether everything is due.

        Returns:
            Nothing where nothing was due, and None where a signal came meanwhile: then
            nothing is written down.

        Raises:
            UserError: If ``config.best.metric`` is not among them when it should be.
        """
        measures, draws = (last or step % every == 0 for every in self._every)
        row: dict[str, float] = {}
        samples = None
        if self._validate and measures:
            losses = self._validate(params, frozen)
            if losses is None:
                return None
            row = {f"val/{name}": x for name, x in losses.items()}
        if draws:
            samples = self._sample(params, frozen)
            if samples is None:
                return None
            row |= {f"{self._of}/{name}": x for name, x in samples.metrics.items()}
        if self.planned(step) and step not in self._seen:
            self.patience.look_at(row, complete=draws and measures)
        if row:
            self._writer.write(step, row)
        if samples is not None:
            self._writer.write_image(step, "samples", samples.grid)
            if jax.process_index() == 0:
                save_png(self._workdir / f"samples/{step:07d}.png", samples.grid)
                save_curves(self._workdir / "metrics.csv", self._workdir / "curves.png")
        return row
