"""Commands and files of a launch: shown as a shell script, or executed in order.

Each launcher first makes all its steps as data. ``--dry_run`` shows the same steps that
would be executed. Words are quoted only where a shell reads them, by `shlex.join`.
Everywhere else they stay a list.
"""

import argparse
import dataclasses
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import yaml

from medjax.cli import INTERRUPTED_EXIT_CODE, USER_ERROR_EXIT_CODE
from medjax.errors import UserError

# A name is part of host names of pods, which have at most 63 characters.
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")


@dataclasses.dataclass(frozen=True)
class Run:
    """A command.

    Attributes:
        words: The program and its arguments.
        stdin: Text that it reads.
        comment: When it runs, if that is not simply its turn; or what it uses.
    """

    words: tuple[str, ...]
    stdin: str = ""
    comment: str = ""

    def shown(self) -> str:
        """Return the command as a shell reads it."""
        text = shlex.join(self.words)
        return f"{text}{_here_document(self.stdin)}" if self.stdin else text

    def execute(self) -> int:
        """Run the command; return its exit code.

        Raises:
            UserError: If the program is not installed.
        """
        try:
            done = subprocess.run(
                self.words, input=self.stdin if self.stdin else None, text=True
            )
        except FileNotFoundError as error:
            raise UserError(
                f"{self.words[0]} is not installed, or not in PATH. --dry_run shows "
                "the commands without it"
            ) from error
        return done.returncode


@dataclasses.dataclass(frozen=True)
class Write:
    """A text file to write. An existing file is replaced."""

    path: Path
    text: str
    comment: str = ""

    def shown(self) -> str:
        """Return a command that writes the file."""
        return f"cat >{shlex.quote(str(self.path))}{_here_document(self.text)}"

    def execute(self) -> int:
        """Write the file; return 0."""
        self.path.write_text(self.text)
        return 0


Step: TypeAlias = Run | Write


def show(steps: Sequence[Step]) -> str:
    """Return the steps as a shell script."""
    lines = []
    for step in steps:
        lines += [f"# {line}".rstrip() for line in step.comment.splitlines()]
        lines.append(step.shown())
    return "\n".join(lines) + "\n"


def execute(steps: Sequence[Step]) -> int:
    """Execute the steps until one fails; return the exit code of the last."""
    for step in steps:
        if code := step.execute():
            return code
    return 0


def as_yaml(value: Any) -> str:
    """Return a value as YAML, one line for each line of its texts."""
    return str(
        yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1e6)
    )


class _Dumper(yaml.SafeDumper):
    """A dumper of scripts as they are, and of values without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value again instead of a reference to it."""
        return True


def _script(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if text.endswith("\n") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _script)


def _here_document(text: str) -> str:
    """Return a here-document that holds the text as it is."""
    end = "EOF"
    while end in text.splitlines():
        end += "F"
    return f" <<'{end}'\n{text.removesuffix(chr(10))}\n{end}"


class Parser(argparse.ArgumentParser):
    """A parser of a launcher's flags; what follows ``--`` belongs to medjax train."""

    def __init__(self, about: str | None, module: str) -> None:
        """Define the flags that all launchers have.

        Args:
            about: Docstring of the launcher.
            module: Its name, such as ``launch.gke``.
        """
        super().__init__(
            prog=f"python -m {module}",
            usage="%(prog)s FLAGS -- --config=… --workdir=…",
            description=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "--name", default="medjax", help="name of the run there (%(default)s)"
        )
        self.add_argument(
            "--dry_run",
            action="store_true",
            help="print every command and file, and do nothing",
        )

    def error(self, message: str) -> NoReturn:
        """Report a mistake in one line."""
        raise UserError(f"{message}; see --help")


def split(words: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return the flags of the launcher, and the arguments of medjax train.

    Raises:
        UserError: If the second part has no ``--config`` or no ``--workdir``.
    """
    own, training = list(words), []
    if "--" in own:
        at = own.index("--")
        own, training = own[:at], own[at + 1 :]
    if {"-h", "--help"} & set(own):
        return own, ()
    for flag in ("--config", "--workdir"):
        if not any(word == flag or word.startswith(f"{flag}=") for word in training):
            raise UserError(
                f"{flag} is missing: the arguments of medjax train follow after --, "
                "as in FLAGS -- --config=cxr_controlnet:v6e --workdir=gs://BUCKET/RUN"
            )
    return own, tuple(training)


def check_name(name: str) -> None:
    """Raise UserError unless every platform accepts a name."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"--name={name}: expected at most 40 small letters, digits and hyphens, "
            "beginning with a letter and not ending with a hyphen"
        )


def check_least(flag: str, value: int, least: int = 1) -> None:
    """Raise UserError if the value of a flag is too small."""
    if value < least:
        raise UserError(f"--{flag}={value}: expected at least {least}")


def start(
    parser: Parser,
    launch: Callable[[argparse.Namespace, tuple[str, ...]], int],
    words: Sequence[str] | None = None,
) -> int:
    """Parse a command line and launch; return the exit code.

    Args:
        parser: Parser of the launcher's flags.
        launch: Launches, from the flags and the arguments of medjax train.
        words: The command line without the program; that of the process by default.
    """
    try:
        own, training = split(sys.argv[1:] if words is None else words)
        flags = parser.parse_args(own)
        check_name(flags.name)
        return launch(flags, training)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR_EXIT_CODE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE


def show_or_execute(steps: Sequence[Step], dry_run: bool) -> int:
    """Show the steps, or execute them; return the exit code."""
    if dry_run:
        print(show(steps), end="")
        return 0
    return execute(steps)
