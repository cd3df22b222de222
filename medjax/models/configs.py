"""Read a diffusers or transformers `config.json` into a module's fields, strictly.

A key that changes the numbers but is not supported is an error. It is never ignored,
because a network that loads silently and is wrong costs its user a week.
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
        name: Name of the network, for errors.
        config: Content of `config.json`. Keys that start with ``_`` are notes.
        fields: Keys that the module reads.
        fixed: Keys for which the module supports one value, with this value.
        ignored: Keys that do not change the forward pass.

    Returns:
        The fields that the configuration sets. Lists become tuples.

    Raises:
        UserError: If the module does not support the value of a key. An unknown key is
            accepted only with a value that switches its feature off.
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
            raise _unsupported(name, key, value, "no such key")
    return chosen


def _switches_off(value: Any) -> bool:
    # True equals 1, but switches a feature on.
    return value is not True and value in _NEUTRAL


def per_level(value: Any, levels: int) -> tuple[Any, ...]:
    """Return one value per level: a repeated scalar, or a sequence of this length."""
    if isinstance(value, (tuple, list)):
        if len(value) != levels:
            raise UserError(
                f"got {len(value)} values {value} for {levels} levels; expected one "
                "per level"
            )
        return tuple(value)
    return (value,) * levels


def _unsupported(name: str, key: str, value: Any, expected: Any) -> UserError:
    return UserError(
        f"{name} does not support {key}={value!r}; expected {expected!r}. "
        "medjax supports the SD1.x and SD2.x networks"
    )
