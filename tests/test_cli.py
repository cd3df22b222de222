"""Every mistake on a command line gives one line and exit code 2."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from medjax.cli import writable_folder
from tests import in_process

COMMAND = """
import dataclasses
import errno
import logging
import os
from typing import Literal
from absl import flags
from ml_collections import config_flags
from medjax import cli, configuration
from medjax.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config")
flags.mark_flag_as_required("config")
WORKDIR = flags.DEFINE_string("workdir", None, "", required=True)

@dataclasses.dataclass(frozen=True)
class Optim:
    rate: float = 1.0
    steps: int | None = None
    clip: float | None = 1.0
    nesterov: bool = False
    pair: tuple[float, float] = (1.0, 2.0)
    kind: Literal["constant", "cosine"] = "constant"

def main(argv):
    logging.getLogger("medjax.x").info("our line")
    logging.getLogger("absl").info("a library's line")
    print(configuration.parse(CONFIG.value.optim, Optim, "config.optim"))
    if WORKDIR.value == "bad":
        raise UserError("workdir is bad")
    if WORKDIR.value == "memory":
        class JaxRuntimeError(RuntimeError): pass
        raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
    if WORKDIR.value == "compiler":
        class JaxRuntimeError(RuntimeError): pass
        raise JaxRuntimeError("INTERNAL: a bug")
    if WORKDIR.value in ("EIO", "ENOSPC", "EACCES", "ENOENT"):
        number = getattr(errno, WORKDIR.value)
        raise OSError(number, os.strerror(number), "some.file")
    if WORKDIR.value == "bug":
        raise RuntimeError("a bug")

if __name__ == "__main__":
    cli.run(main)
"""

CONFIG = """
from medjax.configuration import to_config_dict
from medjax.errors import UserError, nearest
from __main__ import Optim

def get_config(variant=""):
    if variant not in ("", "demo"):
        raise UserError(f"no variant '{variant}': demo{nearest(variant, ['demo'])}")
    return to_config_dict({"optim": Optim(rate=2.0 if variant else 1.0)})
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "command.py").write_text(COMMAND)
    (folder / "optim.py").write_text(CONFIG)
    (folder / "broken.py").write_text("def get_config(variant=''):\n    return x\n")
    (folder / "text.txt").touch()
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return in_process.script(folder / "command.py", *arguments)


def run_apart(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the command in its own process."""
    repository = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, "command.py", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config=optim.py:demo", "--workdir=w", "--config.optim.steps=7"],
        ["--config=optim.py", "--workdir=w", "--config.optim.rate=ab"],
        ["--config=optim.py", "--workdir=bad"],
        ["--config=optim.py", "--workdir=bug"],
        ["--config=optim.py", "--workdir=w", "--debug"],
        ["--config=optim.py", "--workdir=bad", "--debug"],
        ["--help"],
    ],
)
def test_a_process_of_its_own_makes_no_difference(folder, arguments):
    """So the other tests, without their own process, are valid for users' processes."""
    apart, within = run_apart(folder, *arguments), run(folder, *arguments)
    assert within.returncode == apart.returncode
    if "--help" in arguments:
        assert "--workdir" in apart.stdout and "--workdir" in within.stdout
        return
    assert within.stdout == apart.stdout
    assert "Traceback" in apart.stderr or within.stderr == apart.stderr
    assert within.stderr.splitlines()[-1] == apart.stderr.splitlines()[-1]


def test_overrides_reach_the_parsed_config(folder):
    result = run(
        folder,
        "--config=optim.py:demo",
        "--workdir=w",
        "--config.optim.steps=7",
        "--config.optim.clip=None",
        "--config.optim.nesterov",
        "--config.optim.pair=3,4",
        "--config.optim.kind=cosine",
    )
    assert result.returncode == 0, result.stderr
    expected = "rate=2.0, steps=7, clip=None, nesterov=True, pair=(3.0, 4.0)"
    assert expected in result.stdout
    assert "kind='cosine'" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=optin.py"], "no such config file; did you mean 'optim.py'?"),
        (["--config=optim.py:dem"], "no variant 'dem': demo; did you mean 'demo'?"),
        (["--config.optim.rate=2"], "give --config=FILE too"),
        (["--config=optim.py", "--config.optim.rat=2"], "did you mean 'optim.rate'?"),
        (["--config=optim.py", "--config.opt.clip=2"], "did you mean 'optim.clip'?"),
        (["--config=optim.py", "--config.rate=2"], "did you mean 'optim.rate'?"),
        (["--config=optim.py", "--config.optim.rate=ab"], "rate=ab: Expected a number"),
        (
            ["--config=optim.py", "--config.optim.steps=1.5"],
            "=1.5: Expected an int",
        ),
        (["--config=optim.py", "--config.optim.rate=None"], "--config.optim.rate=None"),
        (["--config=optim.py", "--config.optim.kind=cosin"], "did you mean 'cosine'?"),
        (["--config=optim.py", "--config.optim=3"], "set one of them, --config.optim."),
        (["--config=broken.py"], "--config=broken.py: line 2: NameError: name 'x' is"),
        (["--config=text.txt"], "no such config file; here are broken.py, "),
        (["--config=optim.py", "--nodebug=1"], "nodebug"),
        (["--config=optim.py", "--wrkdir=x"], "--wrkdir; did you mean 'workdir'?"),
        (["--config=optim.py", "stray"], "unexpected 'stray'"),
        (["--config=optim.py", "--workdir=bad"], "workdir is bad"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(folder, arguments, message):
    result = run(folder, "--workdir=w", *arguments)
    assert result.returncode == 2
    last = result.stderr.removeprefix("our line\n")
    assert last.startswith("error: ")
    assert last.count("\n") == 1
    assert message in last


@pytest.mark.parametrize(
    ("given", "missing"),
    [("--config=optim.py", "--workdir"), ("--workdir=w", "--config")],
)
def test_a_required_flag_is_missed(folder, given, missing):
    result = run(folder, given)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert f"{missing} is missing" in result.stderr


def test_our_logs_are_shown_and_the_libraries_only_with_debug(folder):
    arguments = ("--config=optim.py", "--workdir=w")
    assert run(folder, *arguments).stderr == "our line\n"
    assert "a library's line" in run(folder, *arguments, "--debug").stderr


def test_debug_shows_the_traceback_and_a_bug_always_has_one(folder):
    result = run(folder, "--config=optim.py", "--workdir=bad", "--debug")
    assert result.returncode != 0
    assert "Traceback" in result.stderr
    result = run(folder, "--config=optim.py", "--workdir=bug")
    assert result.returncode == 1
    assert "RuntimeError: a bug" in result.stderr


@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        (
            "memory",
            "a device is out of memory: .* 9 bytes.*gradient_accumulation_steps",
        ),
        ("EIO", r"the disk failed: Input/output error \(some\.file\)"),
        ("ENOSPC", "the disk failed: No space left"),
        ("EACCES", "the disk failed: Permission denied"),
    ],
)
def test_what_a_machine_refuses_is_one_line(folder, workdir, message):
    result = run(folder, "--config=optim.py", f"--workdir={workdir}")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert re.match(f"error: {message}", result.stderr.splitlines()[-1])
    debug = run(folder, "--config=optim.py", f"--workdir={workdir}", "--debug")
    assert debug.returncode == 2
    assert "Traceback" in debug.stderr


@pytest.mark.parametrize("workdir", ["compiler", "ENOENT"])
def test_other_errors_of_theirs_are_bugs(folder, workdir):
    result = run(folder, "--config=optim.py", f"--workdir={workdir}")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_a_home_is_written_out(monkeypatch, tmp_path):
    """The shell does not expand it in --workdir=~/run."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert writable_folder("~/run", "--workdir") == tmp_path / "run"
