"""Send a run's metrics and samples to trackers: TensorBoard, Weights & Biases.

A tracker that fails gets nothing more, and a warning says so. Training continues,
because ``metrics.csv`` and ``samples/`` have everything.
"""

import contextlib
import dataclasses
import importlib.util
import json
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

from medjax import storage, trees
from medjax.errors import Stopped, UserError
from medjax.pretrained.sources import public_name
from medjax.runs.config import RunConfig
from medjax.runs.same_run import PER_HOST

logger = logging.getLogger(__name__)

_PROJECT = "medjax"
_FINISH_SECONDS = 20


class Tracker(Protocol):
    """A program that keeps and shows the numbers of many runs."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take numbers by name."""
        ...

    def log_image(
        self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]
    ) -> None:
        """Take an RGB image, 0 to 255."""
        ...

    def close(self, failed: bool) -> None:
        """Send everything that waits; say whether the run failed."""
        ...


class TensorBoard:
    """Event files in ``tensorboard/``."""

    def __init__(self, config: RunConfig, workdir: Path, restored: int | None) -> None:
        """Open the event files. Events after step `restored` are hidden."""
        # Imported here, because it takes a second and other hosts never need it.
        from tensorboardX import SummaryWriter

        purge = None if restored is None else restored + 1
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=purge)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write events."""
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def log_image(
        self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]
    ) -> None:
        """Write an event."""
        self._events.add_image(name, image, step, dataformats="HWC")
        self._events.flush()

    def close(self, failed: bool) -> None:
        """Close the files."""
        self._events.close()


class WeightsAndBiases:
    """A run of the project ``medjax`` at Weights & Biases.

    It keeps its files in ``wandb/``. With ``WANDB_MODE=offline`` it sends nothing until
    ``wandb sync``.
    """

    def __init__(self, config: RunConfig, workdir: Path, restored: int | None) -> None:
        """Start a run, or continue the run of this workdir.

        The run's machine, code and folders are not sent.
        """
        import wandb

        file = workdir / "wandb.json"
        if restored is None or not file.is_file():
            storage.write_json(file, {"id": secrets.token_hex(4)})
        self._wandb = wandb
        self._run = wandb.init(
            project=_PROJECT,
            name=workdir.name,
            id=json.loads(file.read_text())["id"],
            resume="allow",
            dir=workdir,
            config=shareable(config),
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                # If the network goes away, a rented machine must not wait for it.
                finish_timeout=_FINISH_SECONDS,
                finish_timeout_raises=True,
                # None would be the name of this machine.
                host="",
                save_code=False,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        # Its own count of steps must rise, but a resumed run repeats some steps.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send numbers."""
        self._run.log({"step": step, **scalars})

    def log_image(
        self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]
    ) -> None:
        """Send an image."""
        self._run.log({"step": step, name: self._wandb.Image(image)})

    def close(self, failed: bool) -> None:
        """Wait until everything is sent, but not for ever."""
        self._run.finish(exit_code=int(failed))


_TRACKERS: dict[str, Callable[[RunConfig, Path, int | None], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


class Trackers:
    """The trackers of a run. A context manager, which closes them."""

    def __init__(
        self, config: RunConfig | None, workdir: Path, restored: int | None
    ) -> None:
        """Open the trackers of ``config.log.trackers``.

        Args:
            config: Config of the run. None opens none, as on all hosts but the first.
            workdir: Folder of the run.
            restored: Step of the restored checkpoint. None for a new run.
        """
        self._open: dict[str, Tracker] = {}
        if config is None:
            return
        for name in config.log.trackers:
            with self._guarded(name):
                self._open[name] = _TRACKERS[name](config, workdir, restored)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Pass numbers to each tracker."""
        self._each(lambda tracker: tracker.log(step, scalars))

    def log_image(
        self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]
    ) -> None:
        """Pass an RGB image, 0 to 255, to each tracker."""
        self._each(lambda tracker: tracker.log_image(step, name, image))

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        failed = kind is not None and not issubclass(kind, Stopped)
        self._each(lambda tracker: tracker.close(failed))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                call(tracker)

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Drop a tracker that fails. Its errors are of any kind."""
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            logger.warning(
                "config.log.trackers: %s failed and gets nothing more from this run: "
                "%s: %s. Training continues",
                *(name, type(error).__name__, error),
            )


def check_trackers(config: RunConfig) -> None:
    """Raise UserError if a tracker of ``config.log.trackers`` is not installed."""
    if "wandb" in config.log.trackers and not importlib.util.find_spec("wandb"):
        raise UserError(
            "config.log.trackers: wandb is not installed. Install it: pip install wandb"
        )


def shareable(config: RunConfig) -> dict[str, Any]:
    """Return a config by dotted key. Local paths are replaced by their last part."""
    flat = trees.flatten(dataclasses.asdict(config))
    values = {key.replace("/", "."): value for key, value in flat.items()}
    for key in PER_HOST:
        if isinstance(values.get(key), str):
            values[key] = public_name(values[key])
    return values
