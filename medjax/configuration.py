"""Convert configs from frozen dataclasses to `ConfigDict`s, and back with all checks.

A section of a config (``config.data``, ``config.optim``) *is* a frozen dataclass.
Config files start from `to_config_dict`. Users override keys with
``--config.optim.b1=0.95``. Before the first step, `parse_config` turns each section
back into its dataclass. An unknown key, a missing key or a value of another type is an
error of one line. A silently ignored key would cost a whole run.

Fields may be ``bool``, ``int``, ``float``, ``str``, ``Literal["a", "b"]``, tuples of
these (``tuple[float, float]``, ``tuple[str, ...]``), and any of them ``| None``. A
field may also be a frozen dataclass of such fields: a section inside the section. If
that is ``| None``, its default must not be ``None``.
"""

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias, TypeVar

from ml_collections import ConfigDict, config_dict

from medjax.errors import UserError, nearest

T = TypeVar("T")

_STORED = (bool, int, float, str, tuple)

Section: TypeAlias = ConfigDict | Mapping[str, Any]


def to_config_dict(sections: Mapping[str, Any]) -> ConfigDict:
    """Return the sections' values as a `ConfigDict` of overridable keys.

    A field of type ``T | None`` becomes a reference of type ``T``. It can be ``None``,
    and can be set to a `T` later, also on the command line.

    Args:
        sections: Dataclass instances by name, e.g. ``{"data": DataConfig()}``.
    """
    config = ConfigDict()
    for name, section in sections.items():
        config[name] = ConfigDict()
        for field, annotation in _fields(type(section)).items():
            value = getattr(section, field)
            if _is_section(annotation):
                config[name][field] = to_config_dict({field: value})[field]
                continue
            value = _check(value, annotation, f"{name}.{field}")
            if _is_optional(annotation):
                kind = _storage_type(_without_none(annotation))
                value = config_dict.FieldReference(value, field_type=kind)
            config[name][field] = value
    return config


def parse_config(
    config: Section, classes: Mapping[str, type], where: str = "config"
) -> dict[str, Any]:
    """Parse all sections of a config.

    Args:
        config: The sections, each a mapping.
        classes: The dataclass of each section.
        where: Name of the config in messages.

    Returns:
        One instance of each class, by the section's name.

    Raises:
        UserError: If a section is missing or unknown, or does not parse.
    """
    _check_names(config.keys(), classes, where)
    return {
        name: parse(config[name], cls, f"{where}.{name}")
        for name, cls in classes.items()
    }


def parse(section: Any, cls: type[T], where: str) -> T:
    """Return the section as an instance of the frozen dataclass `cls`.

    Args:
        section: A value for every field of `cls`, and nothing else. An ``int`` is
            accepted as a ``float`` and a list as a tuple; a ``bool`` is not an ``int``.
        cls: The dataclass. Its ``__post_init__`` may raise `UserError` for bad values,
            with a message that starts with the field's name.
        where: Name of the section in messages, e.g. ``"config.data"``.

    Raises:
        UserError: Names the key, its value, the expected value and the nearest name.
    """
    if not isinstance(section, ConfigDict | Mapping):
        raise UserError(f"{where} is {_show(section)}, expected a section of keys")
    annotations = _fields(cls)
    _check_names(section.keys(), annotations, where)
    values = {
        name: _check(section[name], annotation, f"{where}.{name}")
        for name, annotation in annotations.items()
    }
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{where}.{error}") from error


def _check_names(names: Iterable[str], known: Mapping[str, Any], where: str) -> None:
    names = list(names)
    for name in names:
        if name not in known:
            hint = nearest(name, known) or f"; it has {', '.join(known)}"
            raise UserError(f"{where} has no key '{name}'{hint}")
    if missing := [name for name in known if name not in names]:
        raise UserError(
            f"{where}.{missing[0]} is missing. to_config_dict sets all keys"
        )


def _check(value: Any, annotation: Any, where: str) -> Any:
    """Return `value` in the type of `annotation`: ints as floats, lists as tuples."""
    if _is_optional(annotation):
        if value is None:
            return None
        annotation = _without_none(annotation)
    if _is_section(annotation):
        return parse(value, annotation, where)
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return _check_choice(value, typing.get_args(annotation), where)
    if origin is tuple:
        return _check_tuple(value, typing.get_args(annotation), where)
    if annotation is float and type(value) is int:
        return float(value)
    if type(value) is not annotation:
        raise UserError(f"{where} is {_show(value)}, expected {_describe(annotation)}")
    return value


def _check_choice(value: Any, choices: tuple[Any, ...], where: str) -> Any:
    if value not in choices:
        expected = _describe(Literal[choices])
        hint = nearest(str(value), map(str, choices))
        raise UserError(f"{where} is {_show(value)}, expected {expected}{hint}")
    return value


def _check_tuple(value: Any, items: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    expected = f"expected {_describe_tuple(items)}"
    if not isinstance(value, tuple | list):
        raise UserError(f"{where} is {_show(value)}, {expected}")
    if items[-1] is Ellipsis:
        # The value of --config.data.classes=A,B, where ('A','B') was meant.
        if len(value) == 1 and isinstance(value[0], str) and "," in value[0]:
            names = tuple(name.strip() for name in value[0].split(","))
            raise UserError(
                f"{where} has one value, '{value[0]}'. To give several, put each in "
                f'quotation marks: --{where}="{names}"'
            )
        items = (items[0],) * len(value)
    if len(value) != len(items):
        raise UserError(f"{where} has {len(value)} values {tuple(value)}, {expected}")
    return tuple(
        _check(item, annotation, f"{where}[{index}]")
        for index, (item, annotation) in enumerate(zip(value, items, strict=True))
    )


def _fields(cls: type) -> dict[str, Any]:
    """Return the annotations of a dataclass's fields; refuse types without a check."""
    hints = typing.get_type_hints(cls)
    annotations = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    for name, annotation in annotations.items():
        if _is_section(annotation):
            continue
        if _storage_type(_without_none(annotation)) not in _STORED:
            raise TypeError(f"{cls.__name__}.{name}: {annotation} is not supported")
    return annotations


def _is_section(annotation: Any) -> bool:
    return dataclasses.is_dataclass(_without_none(annotation))


def _storage_type(annotation: Any) -> type:
    """Return the plain type in which values of `annotation` are stored."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return type(typing.get_args(annotation)[0])
    return origin or annotation


def _is_optional(annotation: Any) -> bool:
    return type(None) in typing.get_args(annotation)


def _without_none(annotation: Any) -> Any:
    if not _is_optional(annotation):
        return annotation
    rest = [kind for kind in typing.get_args(annotation) if kind is not types.NoneType]
    return typing.Union[tuple(rest)]  # noqa: UP007 (the members are known only here)


def _describe(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is tuple:
        return _describe_tuple(typing.get_args(annotation))
    if origin is Literal:
        return f"one of {', '.join(map(str, typing.get_args(annotation)))}"
    return annotation.__name__


def _describe_tuple(items: tuple[Any, ...]) -> str:
    if items[-1] is Ellipsis:
        return f"a tuple of {_describe(items[0])}"
    return f"({', '.join(map(_describe, items))})"


def _show(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"
