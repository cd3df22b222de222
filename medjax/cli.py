"""Run a command: parse its flags, report mistakes in one line, set up the logs.

A command defines absl flags and ends in ``cli.run(main)``. A `UserError`, wherever it
is raised, and every mistake on the command line is printed as ``error: …`` with exit
code 2; ``--debug`` shows its traceback.
"""

import gc
import inspect
import io
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from medjax import logs, storage
from medjax.errors import DISK_REFUSES, Stopped, UserError

if TYPE_CHECKING:
    from absl import flags

USER_ERROR_EXIT_CODE = 2
# As sysexits.h's EX_TEMPFAIL: nothing is wrong, the same command again goes on.
STOPPED_EXIT_CODE = 75
# As the shell has it: 128 + SIGINT.
INTERRUPTED_EXIT_CODE = 130
# Of what jax says when memory is short, which can be pages.
_WIDEST = 300
_VALUES = {"int": "N", "float": "X", "config object": "CONFIG"}
_HELP = frozenset(("--help", "-help", "-h", "--helpshort", "-helpshort"))


def run(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Parse the flags of ``sys.argv``, call ``main(argv)`` and exit.

    ``--help`` prints the docstring of `main`'s module and its flags instead.

    Args:
        main: Reads its arguments from its flags; `argv` holds only the program's name.
    """
    from absl import app, flags

    from medjax.flag_parsing import parse_flags

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
    if _HELP & set(sys.argv[1:]):
        print(_usage(main), end="")
        sys.exit(0)
    try:
        sys.exit(app.run(start, flags_parser=parse_flags))
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


def define_config() -> None:
    """Define ``--config``, and with it ``--config.SECTION.KEY``; it is required."""
    from absl import flags
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config",
        None,
        "config: a file, or a name packaged with medjax, with :variant if it has one; "
        "--config.SECTION.KEY=VALUE sets any of its keys",
    )
    flags.mark_flag_as_required("config")


def _usage(main: Callable[[Sequence[str]], None]) -> str:
    """Return the help of a command: its module's docstring, and its flags."""
    from absl import flags

    about = inspect.getdoc(sys.modules[main.__module__]) or ""
    # absl names the module that runs as a program after the program.
    own = sys.argv[0] if main.__module__ == "__main__" else main.__module__
    by_module = flags.FLAGS.flags_by_module_dict()
    *config, debug = by_module[__name__]
    listed = [*config, *by_module.get(own, []), debug]
    return "\n".join([about, "\nFlags:", *map(_flag_usage, listed), ""])


def _flag_usage(flag: "flags.Flag") -> str:
    """Return the lines of the help about one flag."""
    value = _VALUES.get(flag.flag_type(), "VALUE")
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}={value}"
    said = (flag.default_as_str or "").strip("'")
    default = f" (default: {said})" if said else ""
    text = textwrap.fill(f"{flag.help}{default}", 84, break_on_hyphens=False)
    return f"  {name}\n{textwrap.indent(text, '      ')}"


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
        storage.check_writable(there)
    except OSError as error:
        reason = f": {error.strerror}" if there.is_dir() else " is no folder"
        raise UserError(
            f"{flag}={folder}: cannot be written to: {there}{reason}; give a folder "
            "that you may write to"
        ) from error
    return path
