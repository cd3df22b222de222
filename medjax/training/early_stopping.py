"""Early stopping: end a run when its metric no longer improves."""

import math
from collections.abc import Iterable, Mapping

from medjax.errors import UserError, nearest
from medjax.runs.sections import BestConfig


class Patience:
    """Counts validations in a row without an improvement."""

    def __init__(self, config: BestConfig, history: Iterable[float] = ()) -> None:
        """Count the earlier validations.

        Args:
            config: The metric, and how many validations to wait.
            history: Values of the metric in earlier validations, in order.
        """
        self._config = config
        self._best = math.inf
        self._waited = 0
        for value in history:
            self.look(value)

    def look(self, value: float) -> None:
        """Record the metric of one validation. NaN is not an improvement.

        Once patience is exhausted, later values are ignored. The run ends with one more
        validation. If that one counted as better, the next call would resume training.
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
        """Record the metric if the row has it.

        Args:
            row: Metrics of one step, by column.
            complete: Whether all evaluators ran.

        Raises:
            UserError: If all evaluators ran and the metric is missing.
        """
        measured = [name for name in row if name.startswith("val/")]
        if self._config.metric in row:
            self.look(row[self._config.metric])
        elif complete and (measured or self._config.patience is not None):
            raise UserError(
                f"config.best.metric={self._config.metric}: unknown metric. Validation "
                f"writes {', '.join(measured) or 'no metric'}"
                f"{nearest(self._config.metric, measured)}"
            )

    def __str__(self) -> str:
        return f"{self._config.metric} in {self._waited} validations"

    @property
    def exhausted(self) -> bool:
        """Whether `BestConfig.patience` validations brought no improvement."""
        patience = self._config.patience
        return patience is not None and self._waited >= patience
