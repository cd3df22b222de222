"""A run's configuration: a frozen dataclass a section, each beside what it configures.

Config files build a `ConfigDict` with `make_config` and change what their track needs;
`parse` turns it into a `RunConfig` before anything else happens.
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
from medjax.runs.sections import BestConfig, OptimConfig, TrainConfig
from medjax.tasks import TASKS


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A run's whole configuration; sections are of the classes that `TASKS` names."""

    task: str
    data: Any
    model: Any
    diffusion: Any
    optim: OptimConfig
    mesh: MeshConfig
    train: TrainConfig
    best: BestConfig
    eval: Any

    def __post_init__(self) -> None:
        """Refuse sections that do not go together.

        Raises:
            UserError: It names the keys.
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
                f"config.best.metric is {metric}, which validation of task "
                f"{self.task} does not measure; expected one of {', '.join(known)}"
                + nearest(metric, known)
            )


def _check_not_optional(metric: str) -> None:
    """Refuse a metric that a task measures only if it is asked to."""
    for task, row in TASKS.items():
        for one in row.optional_metrics:
            if metric.endswith(one.endings):
                raise UserError(
                    f"config.best.metric is {metric}, which only "
                    f"config.eval.{one.key}=True of task {task} measures"
                )


# Sections that all tasks have, and one that only some have.
_COMMON, _OPTIONAL = ("optim", "mesh", "train", "best"), ("diffusion",)


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
    # A section that a task does not have is None in what a checkpoint keeps.
    sections = {
        name: value
        for name, value in config.items()
        if name != "task" and not (name in _OPTIONAL and value is None)
    }
    parsed: dict[str, Any] = dict.fromkeys(_OPTIONAL)
    parsed |= parse_config(sections, _classes(task))
    return RunConfig(task=task, **parsed)


def completed(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config as a checkpoint keeps it, with today's keys.

    Old keys get their new names, and missing keys their defaults.

    A new key's default is what was done before there was one.

    Args:
        kept: Nested, as JSON gives it back.
    """
    kept = migrated(kept)
    if kept.get("task") not in TASKS:
        return dict(kept)
    default = json.loads(json.dumps(make_config(kept["task"]).to_dict()))
    return _over(default, kept)


def _over(default: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored config with defaults for missing keys, in its sections too."""
    sections = {
        name: _over(section, kept.get(name) or {})
        for name, section in default.items()
        # A section that is None was not used.
        if isinstance(section, dict) and kept.get(name, section) is not None
    }
    return {**default, **kept, **sections}


def apply_variant(
    config: ConfigDict,
    variant: str,
    variants: Mapping[str, Callable[[ConfigDict], None]],
    config_file: str,
) -> ConfigDict:
    """Change a config as a variant of a config file asks, and return it.

    Args:
        config: Settings that all variants share.
        variant: The variant; "" is the recommended recipe.
        variants: Functions that change the config in place, by name of the variant.
        config_file: Path of the config file, for the error.

    Raises:
        UserError: If the file has no such variant.
    """
    if variant not in variants:
        known = [name for name in variants if name]
        raise UserError(
            f"{Path(config_file).name} has no variant '{variant}'; it has "
            f"{', '.join(known) or 'none'}" + nearest(variant, known)
        )
    variants[variant](config)
    return config
