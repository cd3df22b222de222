"""A run's configuration: a frozen dataclass a section, each beside what it configures.

Config files build a `ConfigDict` with `make_config` and change what their track needs;
`parse` turns it into a `RunConfig` before anything else happens.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping
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
        phantoms = self.data.phantoms
        computed = phantoms is not None and phantoms.kind == "chest"
        if getattr(self.eval, "chest_findings", False) and not computed:
            raise UserError(
                "config.eval.chest_findings is True, but the data are no computed "
                "chests; add --config.eval.chest_findings=False"
            )
        metric = self.best.metric.removeprefix("val/")
        for switch, measured in _MEASURED_IF.items():
            if metric.endswith(measured) and not getattr(self.eval, switch, False):
                raise UserError(
                    f"config.best.metric is {self.best.metric}, which only "
                    f"config.eval.{switch}=True of task text_to_image measures"
                )
        known = [f"val/{name}" for name in ("loss", *TASKS[self.task].metrics)]
        asked_for = metric.endswith(tuple(itertools.chain(*_MEASURED_IF.values())))
        if self.best.metric not in known and not asked_for:
            raise UserError(
                f"config.best.metric is {self.best.metric}, which validation of task "
                f"{self.task} does not measure; expected one of {', '.join(known)}"
                + nearest(self.best.metric, known)
            )
        accumulation = self.train.gradient_accumulation_steps
        if accumulation > 1 and getattr(self.model, "architecture", "") == "conv_unet":
            raise UserError(
                f"config.train.gradient_accumulation_steps={accumulation}: batch "
                "normalisation would see a microbatch at a time, which trains "
                "something else; expected 1, or model.architecture=unet_2d"
            )


# What validation measures only where a key of config.eval asks for it.
_MEASURED_IF = {
    "frechet_distance": ("frechet_distance",),
    "chest_findings": ("_agreement", "_presence", "_presence_unasked"),
}

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
    """Return what is kept, with defaults for what is missing in it or its sections."""
    sections = {
        name: _over(section, kept.get(name) or {})
        for name, section in default.items()
        # A section that is None was not used.
        if isinstance(section, dict) and kept.get(name, section) is not None
    }
    return {**default, **kept, **sections}


def variant_error(config_file: str, variant: str, known: tuple[str, ...]) -> UserError:
    """Return the error for a variant that a config file does not have."""
    return UserError(
        f"{config_file} has no variant '{variant}'; it has {', '.join(known) or 'none'}"
        + nearest(variant, known)
    )
