"""Write the reference of every config key and recipe, from the dataclasses."""

import ast
import dataclasses
import functools
import importlib.util
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medjax import trees
from medjax.config_files import packaged_folder, packaged_names
from medjax.runs.config import make_config
from medjax.runs.config_keys import config_keys
from medjax.tasks import TASKS
from medjax_docs.docstrings import summary
from medjax_docs.texts import Written, code, describe, table


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of the config.

    Attributes:
        name: As ``config.train.steps``.
        tasks: Tasks that have it with this default.
        type: Its type, as code.
        default: Its default, as code.
        owner: The class that describes it.
        text: Its description; "" if there is none.
    """

    name: str
    tasks: tuple[str, ...]
    type: str
    default: str
    owner: type
    text: str


@functools.cache
def keys() -> tuple[Key, ...]:
    """Return the keys of all tasks; one key stands once for each default it has."""
    found: dict[tuple[str, str, str, type], Key] = {}
    for task in TASKS:
        for one in config_keys(task):
            key = Key(
                f"config.{one.name}",
                (task,),
                _type(one.type),
                code(one.default),
                one.owner,
                one.text,
            )
            where = (key.name, key.type, key.default, key.owner)
            tasks = (*found[where].tasks, task) if where in found else (task,)
            found[where] = dataclasses.replace(key, tasks=tasks)
    return tuple(found.values())


@functools.cache
def key_names() -> frozenset[str]:
    """Return the names of all keys."""
    return frozenset(key.name for key in keys())


def _type(hint: Any) -> str:
    """Return a type as users read it; of a Literal, its values."""
    if type(None) in typing.get_args(hint):
        rest = [one for one in typing.get_args(hint) if one is not types.NoneType]
        return " or ".join([*map(_type, rest), "`None`"])
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(f"`{one}`" for one in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"`{str(hint).replace('typing.', '')}`"
    return f"`{hint.__name__}`"


def write() -> Written:
    """Return the reference of all keys, by section and task."""
    lines: list[str] = []
    problems = [f"{key.name} has no description" for key in keys() if not key.text]
    for section in dict.fromkeys(key.name.split(".")[1] for key in keys()):
        here = [key for key in keys() if key.name.split(".")[1] == section]
        lines += [f"## config.{section}", ""]
        for tasks in dict.fromkeys(_group(key) for key in here):
            lines += _written_group(tasks, [k for k in here if _group(k) == tasks])
    return "\n".join(lines), problems


def _group(key: Key) -> tuple[str, ...]:
    """Return all tasks that have a key, whatever its default."""
    same = [other for other in keys() if other.name == key.name]
    return tuple(task for task in TASKS if any(task in one.tasks for one in same))


def _written_group(tasks: tuple[str, ...], here: list[Key]) -> list[str]:
    everywhere = len(tasks) == len(TASKS)
    title = "All tasks" if everywhere else "Only " + ", ".join(tasks)
    section = here[0].name.split(".")[1]
    lines = [f"### {title}: config.{section}", ""]
    for name in dict.fromkeys(key.name for key in here):
        same = [key for key in here if key.name == name]
        lines += _entry(name, same)
    return lines


def _entry(name: str, same: list[Key]) -> list[str]:
    """Return the lines about a key, whose default may differ between tasks."""
    facts, text = "", ""
    if len({(key.type, key.default) for key in same}) == 1:
        facts = f"{same[0].type} · default {same[0].default}"
    else:
        facts = "; ".join(
            f"{key.type} · default {key.default} ({', '.join(key.tasks)})"
            for key in same
        )
    if len({key.text for key in same}) == 1:
        text = same[0].text
    else:
        text = "\n\n".join(f"({', '.join(k.tasks)}) {k.text}" for k in same)
    return describe("config-key", name, facts, text)


@functools.cache
def recipes() -> Mapping[str, Any]:
    """Return the module of each config that comes with medjax, by its name."""
    found = {}
    for name in packaged_names():
        path = Path(packaged_folder(), f"{name}.py")
        spec = importlib.util.spec_from_file_location(f"configs.{name}", path)
        assert spec is not None and spec.loader is not None
        found[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found[name])
    return found


def write_recipes() -> Written:
    """Return a section for each recipe: its docstring, and what its variants set."""
    lines = []
    for name, module in recipes().items():
        lines += [f"## {name}", "", ast.get_docstring(_tree(module)) or "", ""]
        for variant in getattr(module, "VARIANTS", {"": None}):
            config = module.get_config(variant)
            called = f"{name}:{variant}" if variant else name
            lines += [f"### --config={called}", "", f"Task `{config.task}`.", ""]
            lines += ["```text", *_changes(config), "```", ""]
    return "\n".join(lines), []


def write_recipe_table() -> Written:
    """Return a table of the recipes: name, task, variants, first sentence."""
    rows = []
    for name, module in recipes().items():
        variants = [v for v in getattr(module, "VARIANTS", {}) if v]
        first = summary(module)
        called = ", ".join(f"`:{variant}`" for variant in variants)
        link = f"[`{name}`](recipes.md#{name})"
        rows.append((link, f"`{module.get_config().task}`", called, first))
    return "\n".join(table(("config", "task", "variants", "purpose"), rows)), []


def _tree(module: Any) -> ast.Module:
    return ast.parse(Path(module.__file__).read_text(encoding="utf-8"))


def _changes(config: Any) -> list[str]:
    """Return a line for each key that a recipe sets to another value than its task."""
    default = trees.flatten(make_config(config.task).to_dict())
    return [
        f"config.{path.replace('/', '.')} = {value!r}"
        for path, value in trees.flatten(config.to_dict()).items()
        if default.get(path, ...) != value
    ]
