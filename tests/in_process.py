"""Run commands as ``python`` does, but in the process of the test.

A new process would take seconds only for imports. Everything that a command changes in
the process is undone: flags, logs, hooks, warnings, output and the working folder.
"""

import contextlib
import gc
import importlib
import io
import logging
import runpy
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

from absl import app, flags
from absl import logging as logging_of_absl

from tests.commands import REPOSITORY

_LOGGERS = ("absl", "asyncio", "medjax")


def medjax(command: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run ``python -m medjax.<command>``."""

    def start() -> None:
        runpy.run_module(f"medjax.{command}", run_name="__main__", alter_sys=True)

    return _run(start, [command, *arguments], REPOSITORY)


def typed(words: Sequence[str], folder: Path) -> subprocess.CompletedProcess:
    """Run ``medjax WORDS`` in a folder."""

    def start() -> None:
        from medjax.__main__ import main

        sys.exit(main(list(words)))

    return _run(start, ["medjax", *words], folder)


def parsed(words: Sequence[str], folder: Path) -> subprocess.CompletedProcess:
    """Parse the flags and the config of ``medjax WORDS``, and do nothing with them."""

    def start() -> None:
        from absl import flags

        from medjax.flag_parsing import parse_flags
        from medjax.runs.config import parse

        command, *rest = words
        module = importlib.import_module(f"medjax.{command.replace('-', '_')}")
        module.define_flags()
        parse_flags(["medjax", *rest])
        if "config" in flags.FLAGS:
            parse(flags.FLAGS.config)

    return _run(start, ["medjax", *words], folder)


def script(file: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run ``python FILE`` in the folder that holds it."""

    def start() -> None:
        runpy.run_path(str(file), run_name="__main__")

    return _run(start, [file.name, *arguments], file.parent)


def _run(
    start: Callable[[], object], argv: list[str], folder: Path
) -> subprocess.CompletedProcess:
    """Call `start` as in a new process; return its exit code and output."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(mock.patch.object(sys, "argv", argv))
        # runpy would store the code that jaxtyping's hook changed as if it were the
        # module's own, and the command would fail in every later process.
        stack.enter_context(mock.patch.object(sys, "dont_write_bytecode", True))
        stack.enter_context(warnings.catch_warnings())
        # runpy warns if a test has imported the command before.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.enter_context(_undone_flags())
        stack.enter_context(_undone_logs())
        stack.enter_context(_frozen_garbage())
        code = _exit_code(start)
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def _exit_code(start: Callable[[], object]) -> int:
    """Return Python's exit code; print the traceback of an uncaught error."""
    try:
        start()
    except SystemExit as ending:
        return int(ending.code or 0)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


@contextlib.contextmanager
def _undone_flags() -> Iterator[None]:
    """Forget the flags that a command defines, and the values of all.

    Flags of libraries that the command imports stay, because the libraries stay too.
    """
    # absl defines these once in a process, when it parses for the first time.
    app.define_help_flags()
    before = set(flags.FLAGS)
    try:
        yield
    finally:
        for name in set(flags.FLAGS) - before:
            definer = flags.FLAGS.find_module_defining_flag(name)
            # absl itself defines the overrides of a config.
            ours = definer.partition(".")[0] in ("absl", "medjax")
            if ours or definer not in sys.modules:
                delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()


@contextlib.contextmanager
def _undone_logs() -> Iterator[None]:
    """Restore handlers, levels, and the hooks for errors in threads."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    # Hidden from basicConfig(force=True), which closes the handlers that it finds.
    root.handlers.clear()
    # absl closes its stream with its handler, unless that is sys.stderr.
    absl_handler = logging_of_absl.get_absl_handler().python_handler
    try:
        with (
            mock.patch.object(absl_handler, "stream", sys.stderr),
            mock.patch.object(sys, "unraisablehook", sys.unraisablehook),
            mock.patch.object(threading, "excepthook", threading.excepthook),
        ):
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        for name, old in levels.items():
            logging.getLogger(name).setLevel(old)


@contextlib.contextmanager
def _frozen_garbage() -> Iterator[None]:
    """Let a command collect only its own garbage, not that of all tests."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
