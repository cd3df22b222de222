"""Find and load config files: programs whose ``get_config(variant)`` returns a config.

A config is named by the path of its file. A config packaged with medjax is named by a
bare name, such as ``cxr_controlnet``. A variant follows a colon.
"""

import re
import traceback
from pathlib import Path
from typing import Any

from medjax.errors import UserError, nearest

_PACKAGE = Path(__file__).parent
_BARE = re.compile(r"\w+")
# Keys of a config that name another config file.
_NAMING = (("model", "autoencoder_config"),)


def packaged_folder() -> Path:
    """Return the folder of the configs packaged with medjax.

    In a wheel it is inside the package, in a checkout beside it.
    """
    inside = _PACKAGE / "_configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def packaged_names() -> list[str]:
    """Return the bare names of the configs packaged with medjax."""
    return sorted(path.stem for path in packaged_folder().glob("*.py"))


def find_config(name: str, file: str) -> str:
    """Return the path of a config file, with its variant.

    Args:
        name: Name of the flag or key that sets the file, for errors.
        file: Path or bare name, optionally with :variant. An existing path takes
            precedence.

    Raises:
        UserError: If the file is missing.
    """
    if not file:
        raise UserError(
            f"--{name}= is empty. Expected a config: --{name}={packaged_names()[0]}"
        )
    place, colon, variant = file.partition(":")
    path = Path(place).expanduser()
    if path.suffix == ".py" and path.is_file():
        return f"{path}{colon}{variant}"
    if _BARE.fullmatch(place) and place in packaged_names():
        return f"{packaged_folder() / place}.py{colon}{variant}"
    raise UserError(f"--{name}={file}: no such config file{_known(path)}")


def _known(path: Path) -> str:
    """Return a hint for an error: the nearest config or all there, and all names."""
    folders = {path.parent, path, Path("configs")}
    files = sorted({str(one) for place in folders for one in place.glob("*.py")})
    names = packaged_names()
    hint = nearest(str(path), [*files, *names]) or nearest(path.stem, names)
    if not hint and files:
        hint = f"; here are {', '.join(files)}"
    return f"{hint} (packaged with medjax: {', '.join(names)})"


def load_config(name: str, file: str) -> Any:
    """Return the result of a config file's ``get_config`` for its variant.

    Args:
        name: Name of the flag or key that sets the file, for errors.
        file: Path or bare name; see `find_config`.

    Raises:
        UserError: If the file or variant is missing, or the file fails.
    """
    from ml_collections.config_flags import config_flags

    found = find_config(name, file)
    try:
        return config_flags.ConfigFileFlagParser(name).parse(found)
    # A config file is a program, so it may raise any error.
    except Exception as error:
        # ml_collections wraps some errors, with their traceback as the message.
        rewrapped = str(error).startswith("Error whilst parsing config file")
        cause = (rewrapped and error.__context__) or error
        path = Path(found.partition(":")[0])
        raise UserError(f"--{name}={file}: {_failure(cause, path)}") from error


def named_beside(config: Any, file: str) -> dict[str, str]:
    """Return the config files that a config names, relative to the working folder.

    In a config file, a path is relative to the file. A bare name is a file beside it,
    or packaged with medjax.

    Args:
        config: Config that ``get_config`` of `file` returned.
        file: Path of the config file, with or without a variant.

    Returns:
        New values by key, such as ``model.autoencoder_config``, where they change.
    """
    folder = Path(file.partition(":")[0]).parent
    found = {}
    for section, key in _NAMING:
        value = config.get(section, {}).get(key)
        if value:
            found[f"{section}.{key}"] = _beside(value, folder)
    return {key: value for key, value in found.items() if value is not None}


def _beside(named: str, folder: Path) -> str | None:
    """Return the path of a config named in `folder`; None if it needs no change."""
    place, colon, variant = named.partition(":")
    if _BARE.fullmatch(place):
        path = folder / f"{place}.py"
        own = not path.is_file() or folder.resolve() == packaged_folder().resolve()
        return None if own else f"{path}{colon}{variant}"
    path = Path(place).expanduser()
    return None if path.is_absolute() else f"{folder / path}{colon}{variant}"


def _failure(error: BaseException, path: Path) -> str:
    """Return the error in a config file, and the number of its line."""
    if isinstance(error, UserError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).name == path.name]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    reason = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"line {line}: {type(error).__name__}: {reason} (--debug shows more)"
