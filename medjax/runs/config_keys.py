"""Describe the keys of a config, from the dataclasses and their docstrings."""

import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any, get_type_hints

from medjax.runs.config import RunConfig
from medjax.tasks import TASKS

_ITEM = re.compile(r"^(\w+): ?(.*)$")


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of the config of a task.

    Attributes:
        name: Name with its sections, such as ``train.steps``.
        type: Type of its values.
        default: Default value.
        owner: Class that describes it.
        text: Description, on one or more lines; "" if there is none.
    """

    name: str
    type: Any
    default: Any
    owner: type
    text: str


def config_keys(task: str) -> Iterator[Key]:
    """Yield the keys of a task's config, section by section.

    Args:
        task: Name of the task, a key of `medjax.tasks.TASKS`.
    """
    own = TASKS[task].sections
    for name, common in get_type_hints(RunConfig).items():
        section = own.get(name, common)
        if dataclasses.is_dataclass(section):
            yield from keys_of(typing.cast(type, section), name)


def keys_of(cls: type, where: str) -> Iterator[Key]:
    """Yield the keys of a section; the fields of a dataclass in it are keys too.

    Args:
        cls: Dataclass of the section.
        where: Name of the section.
    """
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        inner = _without_none(hints[field.name])
        name = f"{where}.{field.name}"
        if dataclasses.is_dataclass(inner):
            yield from keys_of(typing.cast(type, inner), name)
            continue
        owner, text = described_in(cls, field.name)
        yield Key(name, hints[field.name], _default(field), owner, text)


def _without_none(hint: Any) -> Any:
    """Return T for ``T | None``, and any other type unchanged."""
    members = typing.get_args(hint)
    rest = [one for one in members if one is not types.NoneType]
    return rest[0] if types.NoneType in members and len(rest) == 1 else hint


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def described_in(cls: type, field: str) -> tuple[type, str]:
    """Return the class that describes a field, and its description, or "".

    Args:
        cls: A dataclass.
        field: Name of a field, which a parent of `cls` may declare and describe.
    """
    for one in cls.__mro__:
        if text := attributes(one).get(field):
            return one, text
    declared = [one for one in cls.__mro__ if field in vars(one).get(_ANNOTATIONS, {})]
    return (declared or [cls])[-1], ""


_ANNOTATIONS = "__annotations__"


def attributes(cls: type) -> dict[str, str]:
    """Return the descriptions of attributes in the docstring of `cls` itself."""
    lines = inspect.cleandoc(cls.__dict__.get("__doc__") or "").splitlines()
    if "Attributes:" not in lines:
        return {}
    section = []
    for line in lines[lines.index("Attributes:") + 1 :]:
        if line and not line.startswith(" "):
            break
        section.append(line)
    found: dict[str, list[str]] = {}
    name = ""
    for line in textwrap.dedent("\n".join(section)).splitlines():
        if match := _ITEM.match(line):
            name = match[1]
            found[name] = [match[2]]
        elif name:
            found[name].append(line.strip())
    return {name: "\n".join(text).strip() for name, text in found.items()}
