"""Write the reference of every command and flag, from what ``--help`` reads."""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import io
import sys
from collections.abc import Iterator
from unittest import mock

from absl import flags

from medjax.__main__ import COMMANDS, main
from medjax.flag_parsing import is_required
from medjax_docs.texts import Written, describe

# What absl shows of a flag without a help text.
_NO_HELP = "(no help available)"
# Flags that absl and ml_collections offer everywhere.
_ANYWHERE = ("flagfile", "help")


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag as ``--help`` shows it.

    Attributes:
        name: Without dashes.
        kind: What absl calls its type.
        default: As text; None if it has none.
        help: What it does.
        required: Whether the command stops without it.
    """

    name: str
    kind: str
    default: str | None
    help: str
    required: bool


@functools.cache
def command_flags(command: str) -> tuple[Flag, ...]:
    """Return the flags of a command, in the order of their definition."""
    with _defined(command) as defined:
        return tuple(_flag(one) for one in defined)


@functools.cache
def flag_names() -> dict[str, tuple[str, ...]]:
    """Return the commands that have each flag, by the flag's name."""
    found: dict[str, tuple[str, ...]] = dict.fromkeys(_ANYWHERE, ())
    for command in COMMANDS:
        for flag in command_flags(command):
            found[flag.name] = (*found.get(flag.name, ()), command)
            if flag.kind == "bool":
                found[f"no{flag.name}"] = found[flag.name]
    return found


@contextlib.contextmanager
def _defined(command: str) -> Iterator[list[flags.Flag]]:
    """Define a command's flags as its ``--help`` does, and forget them afterwards."""
    before = set(flags.FLAGS)
    with (
        mock.patch.object(sys, "argv", ["medjax"]),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.suppress(SystemExit),
    ):
        main([command, "--help"])
    names = [name for name in flags.FLAGS if name not in before]
    by_module = flags.FLAGS.flags_by_module_dict()
    ordered = [flag for module in by_module.values() for flag in module]
    try:
        yield [one for one in ordered if one.name in names and _is_ours(one.name)]
    finally:
        for name in names:
            if _is_ours(name):
                delattr(flags.FLAGS, name)


def _is_ours(name: str) -> bool:
    definer = flags.FLAGS.find_module_defining_flag(name, "")
    return definer.partition(".")[0] == "medjax"


def _flag(flag: flags.Flag) -> Flag:
    default = flag.default_as_str
    return Flag(
        flag.name,
        flag.flag_type(),
        default.strip("'") if default else default,
        "" if flag.help in (None, _NO_HELP) else flag.help,
        is_required(flag),
    )


def write() -> Written:
    """Return the reference of all commands."""
    lines, problems = [], []
    for command in COMMANDS:
        module = importlib.import_module(f"medjax.{command.replace('-', '_')}")
        lines += [f"## medjax {command}", "", inspect.getdoc(module) or "", ""]
        lines += ["### Flags", ""]
        for flag in command_flags(command):
            text, missing = _entry(command, flag)
            lines += text
            problems += missing
    return "\n".join(lines), problems


def _entry(command: str, flag: Flag) -> tuple[list[str], list[str]]:
    """Return the lines about one flag, and its problems."""
    kind = {"config object": "config", "commaseparatedlist": "list"}
    facts = [f"{kind.get(flag.kind, flag.kind)}"]
    if flag.required:
        facts.append("required")
    elif flag.default not in (None, ""):
        facts.append(f"default `{flag.default}`")
    problem = f"medjax {command} --{flag.name} has no help text"
    return describe(
        "command-flag",
        f"medjax {command} --{flag.name}",
        " · ".join(facts),
        flag.help,
    ), [] if flag.help.strip() else [problem]
