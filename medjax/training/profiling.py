"""Record a profile of some steps, to open in TensorBoard or Perfetto."""

import logging
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from medjax.runs.sections import TrainConfig

logger = logging.getLogger(__name__)


class Profile:
    """Records steps `profile_at` to `profile_at + profile_steps - 1` on the first host.

    A run that resumes between them records the rest. A run that ends between them
    writes the part that it recorded.
    """

    def __init__(self, plan: TrainConfig, folder: Path) -> None:
        """Begin with nothing recorded. The profile is written to `folder`."""
        first = plan.profile_at if jax.process_index() == 0 else None
        steps = range(0) if first is None else range(first, first + plan.profile_steps)
        self._steps, self._folder = steps, folder
        self._recording = False

    def before(self, step: int) -> None:
        """Start recording if `step` is to be recorded."""
        if step in self._steps and not self._recording:
            jax.profiler.start_trace(self._folder)
            self._recording = True
            logger.info("recording a profile from step %d", step)

    def after(self, step: int, metrics: Any) -> None:
        """Stop after the last recorded step, once its `metrics` are computed."""
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
