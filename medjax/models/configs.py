"""Read a diffusers or transformers `config.json` into a module's fields, strictly.

A key that changes the numbers and that we do not compute is an error, never ignored:
a network that loads silently and is wrong costs its user a week.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from medjax.errors import UserError

_NEUTRAL = (None, False, 0, 0.0, 1, 1.0, "default", "silu", "positional")


def module_fields(
    name: str,
    config: Mapping[str, Any],
    fields: Iterable[str],
    *,
    fixed: Mapping[str, Any] | None = None,
    ignored: Iterable[str] = (),
) -> dict[str, Any]:
    """Select a module's fields from a configuration.

    Args:
        name: The network's name, for errors.
        config: Content of `config.json`. Keys that start with ``_`` are notes.
        fields: Keys that the module takes.
        fixed: Keys with the one value that the module computes.
        ignored: Keys that change nothing in the forward pass.

    Returns:
        The fields that the configuration gives, lists turned to tuples.

    Raises:
        UserError: If a key has a value that the module does not compute. An unknown
            key is accepted only at a value that switches its feature off.
    """
    fields, ignored, fixed = set(fields), set(ignored), fixed or {}
    chosen = {}
    for key, value in config.items():
        value = tuple(value) if isinstance(value, list) else value
        if key in fields:
            chosen[key] = value
        elif key in fixed:
            if value != fixed[key]:
                raise _unsupported(name, key, value, fixed[key])
        elif not (key.startswith("_") or key in ignored or _switches_off(value)):
            raise _unsupported(name, key, value, "that it is absent")
    return chosen


def _switches_off(value: Any) -> bool:
    # True == 1, and it switches something on.
    return value is not True and value in _NEUTRAL


def per_level(value: Any, levels: int) -> tuple[Any, ...]:
    """Return one value a level: a scalar repeated, or a sequence of that length."""
    if isinstance(value, (tuple, list)):
        if len(value) != levels:
            raise UserError(f"got {len(value)} values {value} for {levels} levels")
        return tuple(value)
    return (value,) * levels


def _unsupported(name: str, key: str, value: Any, expected: Any) -> UserError:
    return UserError(
        f"{name} cannot compute {key}={value!r} (expected {expected!r}); "
        "medjax runs the SD1.x and SD2.x networks"
    )
