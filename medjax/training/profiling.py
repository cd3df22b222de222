"""Record a profile of some updates, to open in TensorBoard or Perfetto."""

import logging
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from medjax.runs.sections import TrainConfig

logger = logging.getLogger(__name__)


class Profile:
    """Records updates `profile_at` to `profile_at + profile_steps - 1` on one host.

    A run that resumes among them records the rest; one that ends there keeps its part.
    """

    def __init__(self, plan: TrainConfig, folder: Path) -> None:
        """Begin with nothing recorded; `folder` gets the profile."""
        first = plan.profile_at if jax.process_index() == 0 else None
        steps = range(0) if first is None else range(first, first + plan.profile_steps)
        self._steps, self._folder = steps, folder
        self._recording = False

    def before(self, step: int) -> None:
        """Start, if it is time."""
        if step in self._steps and not self._recording:
            jax.profiler.start_trace(self._folder)
            self._recording = True
            logger.info("recording a profile from step %d", step)

    def after(self, step: int, metrics: Any) -> None:
        """Stop after the last update, once its `metrics` are there."""
        if self._recording and step + 1 not in self._steps:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Write the profile, if one is being recorded."""
        if self._recording:
            self._recording = False
            jax.profiler.stop_trace()
            logger.info("profile written to %s", self._folder)

    def __enter__(self) -> "Profile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
