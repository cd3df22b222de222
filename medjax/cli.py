"""Run a command: parse its flags, report mistakes in one line, set up the logs.

A command defines absl flags and calls ``cli.run(main)``. Every `UserError` and every
mistake on the command line is printed as ``error: …``, with exit code 2. ``--debug``
shows its traceback.
"""

import gc
import inspect
import io
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from medjax import logs, storage
from medjax.chips import silence_libtpu
from medjax.errors import DISK_REFUSES, Stopped, UserError

if TYPE_CHECKING:
    from absl import flags

USER_ERROR_EXIT_CODE = 2
# EX_TEMPFAIL of sysexits.h: not an error, because the same command resumes.
STOPPED_EXIT_CODE = 75
# As in the shell: 128 + SIGINT.
INTERRUPTED_EXIT_CODE = 130
# Characters to show of jax's message about memory, which can fill pages.
_WIDEST = 300
_VALUES = {"int": "N", "float": "X", "config object": "CONFIG"}
_HELP = frozenset(("--help", "-help", "-h", "--helpshort", "-helpshort"))


def run(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Parse the flags of ``sys.argv``, call ``main(argv)`` and exit.

    ``--help`` prints the docstring of `main`'s module and its flags instead, and with
    ``--config`` the keys of this config.

    Args:
        main: Main function of the command. It reads its flags. `argv` holds only the
            name of the program.
    """
    from absl import app, flags

    from medjax.flag_parsing import parse_flags

    if "debug" not in flags.FLAGS:
        flags.DEFINE_boolean("debug", False, "Show tracebacks and the libraries' logs.")

    def start(argv: Sequence[str]) -> None:
        # Not earlier, because absl sets its own levels when it parses the flags.
        logs.set_up(debug=_debug())
        silence_libtpu()
        main(argv)

    # A file name may contain characters that a terminal cannot show.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if _HELP & set(sys.argv[1:]):
            print(_usage(main), end="")
            sys.exit(0)
        sys.exit(app.run(start, flags_parser=parse_flags))
    except (Exception, KeyboardInterrupt) as error:
        code, line = _ending(error)
        if code is None:
            raise
        if code == USER_ERROR_EXIT_CODE and _debug():
            traceback.print_exc()
        else:
            sys.stderr.write(f"{line}\n")
    # The error and absl's frames refer to each other and to batches in shared memory.
    # Without this, multiprocessing would warn about these batches at exit.
    gc.collect()
    sys.exit(code)


def define_config() -> None:
    """Define the required flag ``--config``, and with it ``--config.SECTION.KEY``."""
    from absl import flags
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config",
        None,
        "config: a file, or the name of one packaged with medjax, with :variant if it "
        "has variants; --config.SECTION.KEY=VALUE sets one of its keys, and "
        "--config=CONFIG --help lists them",
    )
    flags.mark_flag_as_required("config")


def _usage(main: Callable[[Sequence[str]], None]) -> str:
    """Return the help of a command: its docstring, flags, and keys of its config."""
    from absl import flags

    about = inspect.getdoc(sys.modules[main.__module__]) or ""
    # absl gives the module that runs as a program the name of the program.
    own = sys.argv[0] if main.__module__ == "__main__" else main.__module__
    by_module = flags.FLAGS.flags_by_module_dict()
    *config, debug = by_module[__name__]
    listed = [*config, *by_module.get(own, []), debug]
    usage = [about, "\nFlags:", *map(_flag_usage, listed)]
    return "\n".join([*usage, *_keys_usage(), ""])


def _keys_usage() -> Iterator[str]:
    """Yield the help of each key of the config in ``--config``, with its value.

    Raises:
        UserError: If the config cannot be read.
    """
    from medjax.flag_parsing import requested_config

    config = requested_config(sys.argv)
    if config is None:
        return
    from medjax import trees
    from medjax.runs.config import parse
    from medjax.runs.config_keys import config_keys

    yield "\nKeys of this config, with the values that it sets:"
    described = {key.name: key.text for key in config_keys(parse(config).task)}
    for path, value in trees.flatten(config.to_dict()).items():
        key = path.replace("/", ".")
        if key in described:
            yield _indented(f"--config.{key}={value!r}", described[key])


def _flag_usage(flag: "flags.Flag") -> str:
    """Return the lines of help for one flag."""
    from medjax.flag_parsing import is_required

    value = _VALUES.get(flag.flag_type(), "VALUE")
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}={value}"
    said = (flag.default_as_str or "").strip("'")
    default = f" (default: {said})" if said else ""
    note = " (required)" if is_required(flag) else default
    return _indented(name, f"{flag.help}{note}")


def _indented(name: str, text: str) -> str:
    """Return a name, and its description on indented lines."""
    filled = textwrap.fill(text, 84, break_on_hyphens=False)
    return f"  {name}\n{textwrap.indent(filled, '      ')}".rstrip()


def _ending(error: BaseException) -> tuple[int | None, str]:
    """Return the exit code and the last line of a command; None for a bug in medjax.

    Args:
        error: The error that ended the command.
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
            f"error: the disk failed: {error.strerror}{where}. Finished files are "
            "unchanged. Make room or repair the disk, then give the same command again"
        )
    # Compared by name, so that --help need not import jax.
    if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in reason:
        return USER_ERROR_EXIT_CODE, (
            f"error: a device is out of memory: {reason[:_WIDEST]}. In training, raise "
            "--config.train.gradient_accumulation_steps, set --config.model.remat=full "
            "or a smaller --config.data.image_size, or split the parameters over "
            "devices with --config.mesh.fsdp. In sampling, lower --batch_size or "
            "--size, or set --dtype=bfloat16"
        )
    return None, ""


def _debug() -> bool:
    """Tell whether --debug was given, even if other flags cannot be parsed."""
    from absl import flags

    if flags.FLAGS.is_parsed():
        return flags.FLAGS.debug
    return bool({"--debug", "--debug=true", "-debug"} & set(sys.argv))


def writable_folder(folder: str | Path, flag: str) -> Path:
    """Check that a folder is writable or can be made; return it with ``~`` expanded.

    Nothing is made.

    Args:
        folder: Folder that a command will write to.
        flag: Name of the flag that sets it, for errors, e.g. ``--workdir``.

    Raises:
        UserError: If the folder is not writable and cannot be made.
    """
    if not str(folder):
        raise UserError(f"{flag} is empty. Give a folder; . is the current one")
    path = Path(folder).expanduser()
    absolute = path.absolute()
    there = next(one for one in (absolute, *absolute.parents) if os.path.lexists(one))
    try:
        storage.check_writable(there)
    except OSError as error:
        reason = f": {error.strerror}" if there.is_dir() else " is not a folder"
        raise UserError(
            f"{flag}={folder}: cannot be written to: {there}{reason}. Give a folder "
            "that you may write to"
        ) from error
    return path
