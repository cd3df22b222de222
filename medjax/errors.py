"""Errors that a user can fix: one clear line, shown without a traceback."""

import difflib
import errno
import os
from collections.abc import Iterable
from typing import Any

DISK_REFUSES = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EIO,
)
"""Error codes for a disk that is full, failing, read-only or without permission."""


class UserError(ValueError):
    """A mistake in the user's request.

    The message names the problem, the given value, the expected value and the fix.
    Commands print it as one line and exit with code 2.
    """


class Stopped(Exception):
    """A run was asked to stop before its end. The message gives its progress."""


def disk_error(error: BaseException) -> str | None:
    """Return the reason if the disk caused an error, or its cause; else None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in DISK_REFUSES:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    # Tensorstore gives no error code, only the words in its message.
    words = map(os.strerror, DISK_REFUSES)
    return next((reason for reason in words if reason in str(error)), None)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known name, or ``""``."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def check_least(section: Any, **least: float) -> None:
    """Check that fields are not below their minimum. None passes, NaN fails.

    Args:
        section: An instance of a config's dataclass.
        least: Minimum of each field, by name.

    Raises:
        UserError: If a field is too small. The message starts with the field's name.
    """
    for name, bound in least.items():
        value = getattr(section, name)
        if value is not None and not value >= bound:
            raise UserError(f"{name} is {value}, expected at least {bound}")


def check_fraction(section: Any, name: str) -> None:
    """Raise UserError, starting with the field's name, unless it is in [0, 1]."""
    value = getattr(section, name)
    if not 0 <= value <= 1:
        raise UserError(f"{name} is {value}, expected a fraction in [0, 1]")
