"""What every command shares: flags parsed, mistakes told in one line, readable logs.

A command defines absl flags and ends in ``cli.run(main)``. A `UserError`, wherever it
is raised, and every mistake on the command line is printed as ``error: …`` with exit
code 2; ``--debug`` shows its traceback. ml_collections raises an unknown key or variant
from inside absl's parsing, so the config flags are checked here before absl sees them.
"""

import gc
import io
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from medjax import logs
from medjax.config_files import load_config
from medjax.errors import DISK_REFUSES, Stopped, UserError, nearest

USER_ERROR_EXIT_CODE = 2
# As sysexits.h's EX_TEMPFAIL: nothing is wrong, the same command again goes on.
STOPPED_EXIT_CODE = 75
# As the shell has it: 128 + SIGINT.
INTERRUPTED_EXIT_CODE = 130
# Of what jax says when memory is short, which can be pages.
_WIDEST = 300


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
        logs.set_up(debug=_debug())
        main(argv)

    # A name of a file may hold what a terminal cannot show.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(app.run(start, flags_parser=_parse_flags))
    except (Exception, KeyboardInterrupt) as error:
        code, line = _ending(error)
        if code is None:
            raise
        if code == USER_ERROR_EXIT_CODE and _debug():
            traceback.print_exc()
        else:
            sys.stderr.write(f"{line}\n")
    # The error and absl's frames hold each other, and batches in shared memory, about
    # which multiprocessing would warn in the end.
    gc.collect()
    sys.exit(code)


def _ending(error: BaseException) -> tuple[int | None, str]:
    """Return the exit code and the line that end a command; None for a mistake of ours.

    Args:
        error: What ended it.
    """
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED_EXIT_CODE, "interrupted"
    if isinstance(error, Stopped):
        return STOPPED_EXIT_CODE, f"stopped: {error}"
    reason = " ".join(str(error).split())
    if isinstance(error, UserError):
        return USER_ERROR_EXIT_CODE, f"error: {reason}"
    if isinstance(error, OSError) and error.errno in DISK_REFUSES:
        where = f" ({error.filename})" if error.filename else ""
        return USER_ERROR_EXIT_CODE, (
            f"error: the disk refuses: {error.strerror}{where}; what was complete "
            "stays so: make room, or mend it, and give the same command again"
        )
    # By its name: jax is not imported for --help.
    if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in reason:
        return USER_ERROR_EXIT_CODE, (
            f"error: a device is out of memory: {reason[:_WIDEST]}; in training, raise "
            "--config.train.gradient_accumulation_steps, set --config.model.remat=True "
            "or a smaller --config.data.image_size, or share the parameters among "
            "devices by --config.mesh.fsdp; in sampling, lower --batch_size or --size, "
            "or take --dtype=bfloat16"
        )
    return None, ""


def _debug() -> bool:
    """Whether --debug was given, if only beside flags that cannot be parsed."""
    from absl import flags

    if flags.FLAGS.is_parsed():
        return flags.FLAGS.debug
    return bool({"--debug", "--debug=true", "-debug"} & set(sys.argv))


def writable_folder(folder: str | Path, flag: str) -> Path:
    """Return `folder`, ``~`` written out; it is there or can be made, but is not made.

    Args:
        folder: Where a command is about to write.
        flag: Which flag says so, for the error: ``--workdir``.

    Raises:
        UserError: If it cannot be written to.
    """
    if not str(folder):
        raise UserError(f"{flag} is empty; give a folder, . for this one")
    path = Path(folder).expanduser()
    absolute = path.absolute()
    there = next(one for one in (absolute, *absolute.parents) if os.path.lexists(one))
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        reason = f": {error.strerror}" if there.is_dir() else " is no folder"
        raise UserError(
            f"{flag}={folder}: cannot be written to: {there}{reason}; give a folder "
            "that you may write to"
        ) from error
    return path


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse `argv` into absl's flags, turning what goes wrong into `UserError`."""
    from absl import flags

    nones: dict[str, list[str]] = {}
    try:
        argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
        for name in _config_flags():
            argv, nones[name] = _check_config(name, argv)
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
        raise UserError(f"unexpected '{extra[1]}': arguments are given as --name=value")
    for name, paths in nones.items():
        config: Any = flags.FLAGS[name].value
        for path in paths:
            config.update_from_flattened_dict({path: None})
    return extra


def _parsed(argv: Sequence[str]) -> list[str]:
    """Let absl parse the flags; its --help would count as a failure."""
    from absl import flags

    try:
        return flags.FLAGS(argv)
    except SystemExit as ending:
        # Nothing but help ends a process while flags are parsed.
        raise SystemExit(0) from ending


def _parsing_error(message: str) -> str:
    """Say in our words what absl says of a flag's value."""
    from absl import flags

    match = re.fullmatch(r"flag --([^=\s]+)=(.*?): .*", message, re.DOTALL)
    if match is None or match[1] not in flags.FLAGS:
        return message.removeprefix("ERROR:: ")
    if match[2] == "None" and "other than None" in message:
        return f"--{match[1]} is missing; see --help"
    kind = flags.FLAGS[match[1]].flag_type()
    return f"--{match[1]}={match[2]}: expected {kind}"


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
    optional = _optional_keys(load_config(name, file))
    kept: list[str] = []
    nones: list[str] = []
    for argument, match in zip(argv, matches, strict=True):
        if match and match[1] not in optional:
            hint = _hint(match[1], optional)
            raise UserError(f"unknown key --{name}.{match[1]}{hint}")
        if match and any(key.startswith(f"{match[1]}.") for key in optional):
            raise UserError(
                f"{argument}: is a section of keys; set one of them, "
                f"--{name}.{match[1]}.KEY=VALUE"
            )
        if match and optional[match[1]] and (match[2] or "").lower() == "none":
            nones.append(match[1])
        else:
            kept.append(argument)
    return kept, nones


def _config_file(name: str, argv: Sequence[str]) -> str | None:
    """Return what ``--config=FILE`` or ``--config FILE`` says, or the default."""
    from absl import flags

    file = flags.FLAGS[name].default
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        # As everywhere in absl, the last one counts.
        if argument in (f"--{name}", f"-{name}"):
            file = following
        elif match := re.fullmatch(rf"--?{name}=(.*)", argument):
            file = match[1]
    return file


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
