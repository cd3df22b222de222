"""Parse a command line into absl's flags, and report a mistake in one line.

ml_collections raises errors about unknown keys or variants inside absl's parsing. So
the config flags are checked here before absl parses them.
"""

import re
from collections.abc import Sequence
from typing import Any

from medjax.config_files import find_config, load_config, named_beside
from medjax.errors import UserError, nearest


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse a command line into absl's flags.

    Args:
        argv: Name of the program, and its arguments.

    Returns:
        Only the name of the program.

    Raises:
        UserError: If a flag, or a key, value or variant of a config, is wrong.
    """
    from absl import flags

    changes: dict[str, dict[str, str | None]] = {}
    try:
        argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
        for name in _config_flags():
            argv, changes[name] = _check_config(name, argv)
        extra = _parsed(argv)
    except UserError:
        raise
    except flags.UnrecognizedFlagError as error:
        hint = nearest(error.flagname, flags.FLAGS)
        raise UserError(f"unknown flag --{error.flagname}{hint}") from error
    # absl raises ValueError for a value given to --noflag.
    except (flags.Error, ValueError) as error:
        raise UserError(_parsing_error(str(error))) from error
    if extra[1:]:
        raise UserError(f"unexpected '{extra[1]}'. Expected arguments as --name=value")
    _refuse_empty()
    for name, changed in changes.items():
        config: Any = flags.FLAGS[name].value
        if changed:
            config.update_from_flattened_dict(changed)
    return extra


def is_required(flag: Any) -> bool:
    """Return whether a command fails without this flag of absl."""
    return any("must have a value" in one.message for one in flag.validators)


def requested_config(argv: Sequence[str]) -> Any:
    """Return the config that ``--config`` names, without changes by other flags.

    Args:
        argv: Name of the program, and its arguments.

    Returns:
        The config. None means that the command has no such flag, or got none.

    Raises:
        UserError: If the config cannot be read.
    """
    from absl import flags

    if "config" not in flags.FLAGS:
        return None
    file, _ = _resolved("config", argv)
    return None if file is None else load_config("config", file)


def _parsed(argv: Sequence[str]) -> list[str]:
    """Let absl parse the flags; exit with 0, not 1, after absl's --help."""
    from absl import flags

    try:
        return flags.FLAGS(argv)
    except SystemExit as ending:
        # Only help ends a process while flags are parsed.
        raise SystemExit(0) from ending


def _parsing_error(message: str) -> str:
    """Return our own message for absl's message about the value of a flag."""
    from absl import flags

    match = re.fullmatch(r"flag --([^=\s]+)=(.*?): .*", message, re.DOTALL)
    if match is None or match[1] not in flags.FLAGS:
        return message.removeprefix("ERROR:: ")
    name, value = match[1], match[2]
    if value == "None" and "other than None" in message:
        return f"--{name} is missing; see --help"
    parser = flags.FLAGS[name].parser
    hint = nearest(value, getattr(parser, "enum_values", ()))
    return f"--{name}={value}: Expected {_expected(parser)}{hint}"


def _expected(parser: Any) -> str:
    """Return in words which values a flag's parser accepts."""
    from absl import flags

    if isinstance(parser, flags.EnumParser):
        return f"one of {', '.join(parser.enum_values)}"
    if isinstance(parser, flags.BooleanParser):
        return "true or false"
    if not isinstance(parser, flags.IntegerParser | flags.FloatParser):
        return f"a {parser.flag_type()}"
    kind = "an integer" if isinstance(parser, flags.IntegerParser) else "a number"
    least, most = parser.lower_bound, parser.upper_bound
    if least is not None and most is not None:
        return f"{kind} from {least} to {most}"
    if most is not None:
        return f"{kind} of at most {most}"
    return kind if least is None else f"{kind} of at least {least}"


def _refuse_empty() -> None:
    """Refuse an empty value of a flag that is not empty by default.

    Raises:
        UserError: If a flag has one, for example after ``--workdir=$UNSET``.
    """
    from absl import flags

    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        # The value of an empty list flag is [].
        if flag.present and flag.value in ("", []) and flag.value != flag.default:
            raise UserError(
                f"--{name}= is empty. Expected a value: {flag.help.rstrip('.')}"
            )


def _config_flags() -> list[str]:
    """Return the names of the flags that name a config file."""
    from absl import flags
    from ml_collections.config_flags import config_flags

    return [n for n in flags.FLAGS if config_flags.is_config_flag(flags.FLAGS[n])]


def _check_config(
    name: str, argv: Sequence[str]
) -> tuple[list[str], dict[str, str | None]]:
    """Check a config flag's file, variant and overrides before absl parses them.

    Returns:
        `argv` with the path of the file, and without arguments that absl cannot parse;
        and the changes to the parsed config, by key. These are optional keys set to
        ``None``, which absl's typed parsers cannot read, and files that the config
        names.

    Raises:
        UserError: If the file is missing, or the variant or a key is unknown.
    """
    override = re.compile(rf"--?(?:no)?{name}\.([^=]+)(?:=(.*))?", re.DOTALL)
    matches = [override.fullmatch(argument) for argument in argv]
    file, argv = _resolved(name, argv)
    if file is None:
        if any(matches):
            raise UserError(f"--{name}.… changes a config: give --{name}=FILE too")
        return argv, {}
    config = load_config(name, file)
    optional = _optional_keys(config)
    kept: list[str] = []
    changed: dict[str, str | None] = {**named_beside(config, file)}
    for argument, match in zip(argv, matches, strict=True):
        key = match[1] if match else ""
        if match:
            _check_override(name, argument, key, optional)
            changed.pop(key, None)
        if match and optional[key] and (match[2] or "").lower() == "none":
            changed[key] = None
        else:
            kept.append(argument)
    return kept, changed


def _check_override(name: str, argument: str, key: str, known: dict[str, bool]) -> None:
    """Raise UserError unless an override sets a key of the config."""
    if key not in known:
        raise UserError(f"unknown key --{name}.{key}{_hint(key, known)}")
    if any(other.startswith(f"{key}.") for other in known):
        raise UserError(
            f"{argument}: is a section of keys; set one of them, "
            f"--{name}.{key}.KEY=VALUE"
        )


def _resolved(name: str, argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the path of the config file, and `argv` with this path.

    Raises:
        UserError: If the file is missing.
    """
    from absl import flags

    file = flags.FLAGS[name].default
    typed = list(argv)
    for i, argument in enumerate(argv):
        # As for all flags of absl, the last one counts.
        if argument in (f"--{name}", f"-{name}") and i + 1 < len(argv):
            file = typed[i + 1] = find_config(name, argv[i + 1])
        elif match := re.fullmatch(rf"--?{name}=(.*)", argument):
            file = find_config(name, match[1])
            typed[i] = f"--{name}={file}"
    return file, typed


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
    """Return a hint: the nearest path, or one with the same key in another section."""
    if hint := nearest(path, known):
        return hint
    name = path.rpartition(".")[2]
    same = [other for other in known if other.rpartition(".")[2] == name]
    return f"; did you mean '{same[0]}'?" if same else ""
