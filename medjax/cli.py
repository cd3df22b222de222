"""What every command shares: flags parsed, mistakes told in one line, readable logs.

A command defines absl flags and ends in ``cli.run(main)``. A `UserError`, wherever it
is raised, and every mistake on the command line is printed as ``error: …`` with exit
code 2; ``--debug`` shows its traceback. ml_collections raises an unknown key or variant
from inside absl's parsing, so the config flags are checked here before absl sees them.
"""

import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from medjax.errors import Stopped, UserError, nearest

USER_ERROR_EXIT_CODE = 2
# As sysexits.h's EX_TEMPFAIL: nothing is wrong, the same command again goes on.
STOPPED_EXIT_CODE = 75


def run(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Parse the flags, call ``main(argv)`` and exit; stands in for ``absl.app.run``.

    Args:
        main: Reads its arguments from its flags; `argv` holds only the program's name.
    """
    from absl import app, flags

    if "debug" not in flags.FLAGS:
        flags.DEFINE_boolean("debug", False, "Show tracebacks and the libraries' logs.")

    def start(argv: Sequence[str]) -> None:
        # Only here: absl sets its own levels once the flags are parsed.
        _set_up_logging(debug=flags.FLAGS.debug)
        main(argv)

    try:
        sys.exit(app.run(start, flags_parser=_parse_flags))
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        sys.stderr.write(f"error: {error}\n")
        sys.exit(USER_ERROR_EXIT_CODE)
    except Stopped as stopped:
        sys.stderr.write(f"stopped: {stopped}\n")
        sys.exit(STOPPED_EXIT_CODE)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse `argv` into absl's flags, turning what goes wrong into `UserError`."""
    from absl import flags

    argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
    nones: dict[str, list[str]] = {}
    for name in _config_flags():
        argv, nones[name] = _check_config(name, argv)
    try:
        extra = flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    if extra[1:]:
        raise UserError(f"unexpected '{extra[1]}': arguments are given as --name=value")
    for name, paths in nones.items():
        config: Any = flags.FLAGS[name].value
        for path in paths:
            config.update_from_flattened_dict({path: None})
    return extra


def _config_flags() -> list[str]:
    """Return the names of the flags that name a config file."""
    from absl import flags
    from ml_collections.config_flags import config_flags

    return [n for n in flags.FLAGS if config_flags.is_config_flag(flags.FLAGS[n])]


def _check_config(name: str, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Check a config flag's file, variant and overrides before absl parses them.

    Returns:
        `argv` without the overrides of optional keys by ``None``, which absl's typed
        parsers cannot read; and the paths of those keys.

    Raises:
        UserError: For a missing file or an unknown variant or key.
    """
    override = re.compile(rf"--?(?:no)?{name}\.([^=]+)(?:=(.*))?", re.DOTALL)
    matches = [override.fullmatch(argument) for argument in argv]
    file = _config_file(name, argv)
    if file is None:
        if any(matches):
            raise UserError(f"--{name}.… overrides a config: give --{name}=FILE too")
        return list(argv), []
    optional = _optional_keys(_load_config(name, file))
    kept: list[str] = []
    nones: list[str] = []
    for argument, match in zip(argv, matches, strict=True):
        if match and match[1] not in optional:
            hint = _hint(match[1], optional)
            raise UserError(f"unknown key --{name}.{match[1]}{hint}")
        if match and optional[match[1]] and (match[2] or "").lower() == "none":
            nones.append(match[1])
        else:
            kept.append(argument)
    return kept, nones


def _config_file(name: str, argv: Sequence[str]) -> str | None:
    """Return what ``--config=FILE`` or ``--config FILE`` says, or the default."""
    from absl import flags

    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if argument in (f"--{name}", f"-{name}"):
            return following
        if match := re.fullmatch(rf"--?{name}=(.*)", argument):
            return match[1]
    return flags.FLAGS[name].default


def _load_config(name: str, file: str) -> Any:
    """Return what ``get_config`` of a config file returns for its variant."""
    from ml_collections.config_flags import config_flags

    path = Path(file.partition(":")[0])
    if not path.is_file():
        siblings = [str(sibling) for sibling in path.parent.glob("*.py")]
        hint = nearest(str(path), siblings)
        raise UserError(f"--{name}: there is no config file '{path}'{hint}")
    try:
        return config_flags.ConfigFileFlagParser(name).parse(file)
    except UserError as error:
        # ml_collections rewraps a ValueError with its traceback as the message.
        raise UserError(f"--{name}={file}: {error.__context__ or error}") from error


def _optional_keys(config: Any, prefix: str = "") -> dict[str, bool]:
    """Return every path of a `ConfigDict`, and whether it can be ``None``."""
    from ml_collections import ConfigDict, FieldReference

    paths: dict[str, bool] = {}
    for key, value in config.items(preserve_field_references=True):
        paths[prefix + key] = isinstance(value, FieldReference)
        if isinstance(value, ConfigDict):
            paths |= _optional_keys(value, f"{prefix}{key}.")
    return paths


def _hint(path: str, known: dict[str, bool]) -> str:
    """Return the nearest path, by its whole or by its last name in another section."""
    if hint := nearest(path, known):
        return hint
    name = path.rpartition(".")[2]
    same = [other for other in known if other.rpartition(".")[2] == name]
    return f"; did you mean '{same[0]}'?" if same else ""


class _BarFriendlyHandler(logging.Handler):
    """Writes log lines above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def _set_up_logging(debug: bool) -> None:
    """Log our own messages from INFO; the libraries' from WARNING unless `debug`."""
    handler = _BarFriendlyHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logging.INFO if debug else logging.WARNING
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("absl").setLevel(level)
    logging.getLogger("medjax").setLevel(logging.INFO)
