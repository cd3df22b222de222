"""The configuration of a run. Each section is a frozen dataclass.

It is defined beside the code that it configures. Config files build a `ConfigDict`
with `make_config` and change some of its values. `parse` turns it into a `RunConfig`
before anything else happens.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from ml_collections import ConfigDict

from medjax.configuration import parse_config, to_config_dict
from medjax.errors import UserError, nearest
from medjax.meshes import MeshConfig
from medjax.runs.migration import migrated
from medjax.runs.sections import BestConfig, LogConfig, OptimConfig, TrainConfig
from medjax.tasks import TASKS


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Whole configuration of a run. `TASKS` names the class of each section.

    Attributes:
        task: Name of the task, a key of `medjax.tasks.TASKS`.
        data: Section ``data``: which images, and how they are prepared in batches.
        model: Section ``model``: the networks, and which of them train.
        diffusion: Section ``diffusion``: the training objective and, for task
            unconditional, the noise schedule. None for autoencoders.
        optim: Section ``optim``: the optimizer and its learning rate.
        mesh: Section ``mesh``: how arrays are split over devices.
        train: Section ``train``: number of steps, checkpoints and reports.
        log: Section ``log``: the trackers that get metrics and samples.
        best: Section ``best``: which checkpoint is best, and early stopping.
        eval: Section ``eval``: validation and pages of samples.
    """

    task: str
    data: Any
    model: Any
    diffusion: Any
    optim: OptimConfig
    mesh: MeshConfig
    train: TrainConfig
    log: LogConfig
    best: BestConfig
    eval: Any

    def __post_init__(self) -> None:
        """Check that the sections fit together.

        Raises:
            UserError: If they do not; the message names the keys.
        """
        row = TASKS[self.task]
        row.check(self)
        asked = [one for one in row.optional_metrics if one.asked(self.eval)]
        metric = self.best.metric
        if metric.endswith(tuple(itertools.chain(*(one.endings for one in asked)))):
            return
        _check_not_optional(metric)
        known = [f"val/{name}" for name in ("loss", *row.metrics)]
        if metric not in known:
            raise UserError(
                f"config.best.metric={metric}: validation of task {self.task} does not "
                f"measure it. Expected one of {', '.join(known)}"
                + nearest(metric, known)
            )


def _check_not_optional(metric: str) -> None:
    """Raise UserError if a metric is measured only on request, and not requested."""
    for task, row in TASKS.items():
        for one in row.optional_metrics:
            if metric.endswith(one.endings):
                raise UserError(
                    f"config.best.metric={metric}: only task {task} with "
                    f"config.eval.{one.key}=True measures it"
                )


# Sections that all tasks have with the same class, and one that only some tasks have.
_COMMON = ("optim", "mesh", "train", "log", "best")
_OPTIONAL = ("diffusion",)


def _classes(task: str) -> dict[str, type]:
    """Return the dataclass of each section of a task's config."""
    common = get_type_hints(RunConfig)
    own = TASKS[task].sections
    return {
        name: own.get(name, common[name])
        for name in common
        if name in own or name in _COMMON
    }


def make_config(task: str) -> ConfigDict:
    """Return the default config of a task, which config files and flags change."""
    config = to_config_dict({name: cls() for name, cls in _classes(task).items()})
    config.task = task
    return config


def parse(config: ConfigDict) -> RunConfig:
    """Check every key of `config` and return it as dataclasses.

    Raises:
        UserError: If a key is unknown or missing, or if a type or a value is wrong.
    """
    task = config.get("task")
    if task not in TASKS:
        raise UserError(
            f"config.task='{task}': unknown task. Expected one of {', '.join(TASKS)}"
            + nearest(str(task), TASKS)
        )
    # In a checkpoint, a section that the task does not have is None.
    sections = {
        name: value
        for name, value in config.items()
        if name != "task" and not (name in _OPTIONAL and value is None)
    }
    parsed: dict[str, Any] = dict.fromkeys(_OPTIONAL)
    parsed |= parse_config(sections, _classes(task))
    return RunConfig(task=task, **parsed)


def completed(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a checkpoint with today's keys.

    Keys of older versions get their new names. Missing keys get their defaults: the
    default of a new key is always the behaviour of the versions without it.

    Args:
        kept: The stored config, as a nested dict from JSON.
    """
    kept = migrated(kept)
    if kept.get("task") not in TASKS:
        return dict(kept)
    default = json.loads(json.dumps(make_config(kept["task"]).to_dict()))
    return _over(default, kept)


def _over(default: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored config with defaults for missing keys, also in its sections."""
    sections = {
        name: _over(section, kept.get(name) or {})
        for name, section in default.items()
        # A section that is None was not used.
        if isinstance(section, dict) and kept.get(name, section) is not None
    }
    return {**default, **kept, **sections}


def for_hardware(
    recipe: Callable[[ConfigDict], None], **splits: tuple[int, str]
) -> dict[str, Callable[[ConfigDict], None]]:
    """Return a variant of a recipe for each kind of hardware.

    A variant splits the recipe's batch into microbatches that fit in memory, so it
    trains the same model.

    Args:
        recipe: Function that applies the recipe to a config.
        splits: For each variant's name, the images of a microbatch, which must divide
            ``data.batch_size``, and ``model.remat``.
    """

    def variant(split: tuple[int, str]) -> Callable[[ConfigDict], None]:
        def apply(config: ConfigDict) -> None:
            recipe(config)
            images, config.model.remat = split
            steps, rest = divmod(config.data.batch_size, images)
            assert rest == 0, (config.data.batch_size, images)
            config.train.gradient_accumulation_steps = steps

        return apply

    return {name: variant(split) for name, split in splits.items()}


def apply_variant(
    config: ConfigDict,
    variant: str,
    variants: Mapping[str, Callable[[ConfigDict], None]],
    config_file: str,
) -> ConfigDict:
    """Apply a variant of a config file to a config, and return the config.

    Args:
        config: Config with the settings that all variants share; changed in place.
        variant: Name of the variant; "" is the recommended recipe.
        variants: Function that changes the config in place, for each variant's name.
        config_file: Path of the config file, for the error message.

    Raises:
        UserError: If the variant is unknown.
    """
    if variant not in variants:
        known = [name for name in variants if name]
        raise UserError(
            f"{Path(config_file).name} has no variant '{variant}'. Known variants: "
            f"{', '.join(known) or 'none'}" + nearest(variant, known)
        )
    variants[variant](config)
    return config
