"""Config files: Python programs whose ``get_config(variant)`` gives a config."""

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medjax.errors import UserError, nearest


def load_config(name: str, file: str) -> Any:
    """Return what ``get_config`` of a config file returns for its variant.

    Args:
        name: Of the flag that names the file, for errors.
        file: Path, with :variant where it has some.

    Raises:
        UserError: If there is no such file or variant, or it fails.
    """
    from ml_collections.config_flags import config_flags

    path = Path(file.partition(":")[0])
    if not path.is_file() or path.suffix != ".py":
        folders = {path.parent, path, Path("configs")}
        there = sorted({str(one) for place in folders for one in place.glob("*.py")})
        hint = nearest(str(path), there) or _listed(there)
        raise UserError(f"--{name}={file}: there is no such config file{hint}")
    try:
        return config_flags.ConfigFileFlagParser(name).parse(file)
    # A config file is a program, and may fail as any.
    except Exception as error:
        # ml_collections rewraps some, with their traceback as the message.
        rewrapped = str(error).startswith("Error whilst parsing config file")
        cause = (rewrapped and error.__context__) or error
        raise UserError(f"--{name}={file}: {_failure(cause, path)}") from error


def _listed(files: Sequence[str]) -> str:
    return f"; there are {', '.join(files)}" if files else ""


def _failure(error: BaseException, path: Path) -> str:
    """Return what went wrong in a config file, and in which of its lines."""
    if isinstance(error, UserError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).name == path.name]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    reason = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"line {line}: {type(error).__name__}: {reason} (--debug shows more)"
