"""Early stopping: end a run that no longer improves by one of its measures."""

import math
from collections.abc import Iterable, Mapping

from medjax.errors import UserError, nearest
from medjax.runs.sections import BestConfig


class Patience:
    """Counts validations in a row without an improvement."""

    def __init__(self, config: BestConfig, history: Iterable[float] = ()) -> None:
        """Begin.

        Args:
            config: The measure, and how long to wait.
            history: The measure in earlier validations, in order.
        """
        self._config = config
        self._best = math.inf
        self._waited = 0
        for value in history:
            self.look(value)

    def look(self, value: float) -> None:
        """Take in what a validation measured; NaN is no improvement.

        Once patience is exhausted, nothing changes that. The run ends with one more
        validation; if that were better, the next call would continue the run.
        """
        if self.exhausted:
            return
        cost = value if self._config.mode == "min" else -value
        if cost < self._best - self._config.min_change or (
            math.isinf(self._best) and math.isfinite(cost)
        ):
            self._best, self._waited = cost, 0
        else:
            self._waited += 1

    def look_at(self, row: Mapping[str, float], complete: bool) -> None:
        """Take in a row of metrics, which may hold the measure.

        Args:
            row: Metrics of one step.
            complete: Whether all evaluators ran.

        Raises:
            UserError: If all ran and none measures it.
        """
        measured = [name for name in row if name.startswith("val/")]
        if self._config.metric in row:
            self.look(row[self._config.metric])
        elif complete and (measured or self._config.patience is not None):
            raise UserError(
                f"config.best.metric={self._config.metric}: validation measures "
                f"{', '.join(measured) or 'nothing'}"
                f"{nearest(self._config.metric, measured)}"
            )

    def __str__(self) -> str:
        return f"{self._config.metric} in {self._waited} validations"

    @property
    def exhausted(self) -> bool:
        """Whether `BestConfig.patience` validations brought no improvement."""
        patience = self._config.patience
        return patience is not None and self._waited >= patience
