"""Read docstrings in Google's form."""

import dataclasses
import inspect
import re
import textwrap

_ITEM = re.compile(r"^(\w+): ?(.*)$")


def attributes(cls: type) -> dict[str, str]:
    """Return what the docstring of `cls` alone says about each attribute."""
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


def summary(thing: object) -> str:
    """Return the first paragraph of a docstring, on one line."""
    text = inspect.getdoc(thing) or ""
    return " ".join(text.partition("\n\n")[0].split())


def default_of(field: "dataclasses.Field") -> object:
    """Return the default of a dataclass's field."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
