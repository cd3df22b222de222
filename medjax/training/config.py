"""A run's configuration: a frozen dataclass a section, each beside what it configures.

Config files build a `ConfigDict` with `make_config` and change what their track needs;
`parse` turns it into a `RunConfig` before anything else happens.
"""

import dataclasses
from typing import Any, get_type_hints

from ml_collections import ConfigDict

from medjax.configuration import parse_config, to_config_dict
from medjax.data.config import DataConfig
from medjax.diffusion.objective import DiffusionConfig
from medjax.errors import UserError, check_least, nearest
from medjax.meshes import MeshConfig
from medjax.tasks import TASKS
from medjax.tasks.latent_diffusion import SamplingConfig
from medjax.training.optimizer import OptimConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long to train, and what to write down.

    Attributes:
        steps: Updates of the whole run.
        gradient_accumulation_steps: Microbatches of one update; divides the batch.
        seed: Of everything drawn in training.
        log_every: Updates between two rows of metrics.
        checkpoint_every: Updates between two checkpoints; the last is always kept.
        keep_last: Newest checkpoints to keep.
        keep_best: Checkpoints with the lowest validation loss to keep besides.
        max_hours: Stop cleanly after this long; None never does.
        max_skipped_updates: Updates with a loss or gradient that is NaN or infinite to
            skip, over the whole run, before it stops.
        profile_at: Update at which to record a profile; None records none.
        profile_steps: Updates that the profile lasts.
    """

    steps: int = 10_000
    gradient_accumulation_steps: int = 1
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 1000
    keep_last: int = 2
    keep_best: int = 1
    max_hours: float | None = None
    max_skipped_updates: int = 0
    profile_at: int | None = None
    profile_steps: int = 5

    def __post_init__(self) -> None:
        """Refuse counts that cannot be counted."""
        check_least(
            self,
            steps=1,
            gradient_accumulation_steps=1,
            log_every=1,
            checkpoint_every=1,
            keep_last=1,
            keep_best=0,
            max_hours=0,
            max_skipped_updates=0,
            profile_at=1,
            profile_steps=1,
        )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Validation, and the grid of samples.

    Attributes:
        every: Updates between two validations.
        examples: Validation examples, always the same, with the same noise.
        sample_every: Updates between two grids of samples; the last is always drawn.
        samples: Images of a grid.
        sampler: One of `medjax.diffusion.schedulers.SAMPLERS`.
        sampler_steps: Its steps.
        guidance_scale: Weight of the caption; 1 is no guidance.
        edge_tolerance_px: How far an edge of a generated image may lie from its
            condition's and still count as following it.
    """

    every: int = 500
    examples: int = 64
    sample_every: int = 1000
    samples: int = 8
    sampler: str = "ddim"
    sampler_steps: int = 50
    guidance_scale: float = 7.5
    edge_tolerance_px: int = 1

    def __post_init__(self) -> None:
        """Refuse counts that cannot be counted."""
        check_least(
            self,
            every=1,
            examples=1,
            sample_every=1,
            samples=1,
            sampler_steps=1,
            edge_tolerance_px=0,
        )
        # Which checks them.
        self.sampling()

    def sampling(self) -> SamplingConfig:
        """How the images of a grid are drawn."""
        return SamplingConfig(
            sampler=self.sampler,
            steps=self.sampler_steps,
            guidance_scale=self.guidance_scale,
        )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A run's whole configuration; `model` is of the class that `TASKS` names."""

    task: str
    data: DataConfig
    model: Any
    diffusion: DiffusionConfig
    optim: OptimConfig
    mesh: MeshConfig
    train: TrainConfig
    eval: EvalConfig


def _classes(task: str) -> dict[str, type]:
    """Return the dataclass of each section of a task's config."""
    classes = get_type_hints(RunConfig) | {"model": TASKS[task][0]}
    del classes["task"]
    return classes


def make_config(task: str) -> ConfigDict:
    """Return the defaults of a task, to be changed by config files and flags."""
    config = to_config_dict({name: cls() for name, cls in _classes(task).items()})
    config.task = task
    return config


def parse(config: ConfigDict) -> RunConfig:
    """Check every key of `config`.

    Raises:
        UserError: For a key, a type or a value that a section does not take.
    """
    task = config.get("task")
    if task not in TASKS:
        raise UserError(
            f"config.task is '{task}', expected one of {', '.join(TASKS)}"
            + nearest(str(task), TASKS)
        )
    sections = {name: value for name, value in config.items() if name != "task"}
    return RunConfig(task=task, **parse_config(sections, _classes(task)))


def variant_error(config_file: str, variant: str, known: tuple[str, ...]) -> UserError:
    """Return the error for a variant that a config file does not have."""
    return UserError(
        f"{config_file} has no variant '{variant}'; it has {', '.join(known)}"
        + nearest(variant, known)
    )
