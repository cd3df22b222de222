"""Early stopping: end a run that no longer improves by one of its measures."""

import math
from collections.abc import Iterable, Mapping

from medjax.errors import UserError, nearest
from medjax.runs.sections import BestConfig


class Patience:
    """Counts validations that brought no improvement."""

    def __init__(self, config: BestConfig, history: Iterable[float] = ()) -> None:
        """Begin after what was measured before."""
        self._config = config
        self._best = math.inf
        self._waited = 0
        for value in history:
            self.look(value)

    def look(self, value: float) -> None:
        """Take in what a validation measured; NaN is no improvement.

        What comes after it has waited long enough changes nothing: the run ends with
        one more validation, and would go on in the next call if that were a better one.
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
        """Take in what a row of metrics has of it.

        Args:
            row: Metrics of one step.
            complete: Whether everything that is ever measured was.

        Raises:
            UserError: If it is not among that.
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
        """Whether it has waited long enough."""
        patience = self._config.patience
        return patience is not None and self._waited >= patience
