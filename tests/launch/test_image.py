"""The Dockerfile, without a container engine: its steps, with recorded programs."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.pages import REPOSITORY

FILE = REPOSITORY / "launch" / "Dockerfile"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
TARGETS = ("cpu", "cuda", "tpu")
SCRIPTS = sorted((REPOSITORY / "launch").glob("*.sh"))


def instructions():
    """Return the instructions of each stage, by its name."""
    text = re.sub(r"^#.*\n", "", FILE.read_text(), flags=re.MULTILINE)
    stages, parents, now = {}, {}, []
    for line in text.replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            parent, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()
            parents[name], now = parent, []
            stages[name] = now
        elif word:
            now.append((word, rest))
    return {name: [*stages.get(parents[name], []), *stages[name]] for name in stages}


STAGES = instructions()


def ignored(path):
    """Tell whether the image cannot see a file, by the rules of a .dockerignore."""
    found = False
    for line in (FILE.parent / "Dockerfile.dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            if any(fnmatch.fnmatch(part, pattern) for part in (path, *path.split("/"))):
                found = not line.startswith("!")
    return found


def copied():
    for word, rest in STAGES["base"]:
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                yield source, target


def test_the_targets_are_those_of_the_page():
    assert tuple(STAGES)[1:] == TARGETS


def test_each_copied_file_exists_and_is_visible():
    assert list(copied())
    for source, _ in copied():
        assert (REPOSITORY / source).exists()
        assert not ignored(source)


@pytest.mark.parametrize(
    "path", [".git/config", "workdirs/a", "data/x", ".env", "docs"]
)
def test_nothing_else_is_visible(path):
    assert ignored(path)


def test_what_the_wheel_needs_is_copied():
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    needed |= {*wheel["packages"], *wheel["force-include"], "constraints.txt"}
    assert needed <= {source for source, _ in copied()}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("extras", ["", ",evaluation"])
def test_the_steps_of_a_target_run(target, extras, recorder, tmp_path):
    folder = tmp_path / "image"
    folder.mkdir()
    for source, _ in copied():
        from_ = REPOSITORY / source
        copy = shutil.copy if from_.is_file() else _empty
        copy(from_, folder / source)
    environment = os.environ | {"EXTRAS": extras}
    for word, rest in STAGES[target]:
        if word == "RUN":
            subprocess.run(["sh", "-c", rest], cwd=folder, env=environment, check=True)
    calls = [words for words, _ in recorder.calls()]
    installs = [words for words in calls if words[0] == "pip"]
    assert len(installs) == (1 if (target, extras) == ("cpu", "") else 2)
    known = PROJECT["project"]["optional-dependencies"]
    for words in installs:
        assert words[1:4] == ["install", "-c", "constraints.txt"]
        chosen = re.fullmatch(r"\.(?:\[(.*)\])?", words[4])[1]
        assert set(chosen.split(",") if chosen else ()) <= known.keys()


def _empty(source, target):
    target.mkdir()


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_medjax_and_not_as_root(target):
    last = dict(STAGES[target])
    assert last["USER"] == "medjax"
    assert last["ENTRYPOINT"] == '["medjax"]'
    assert "medjax" in PROJECT["project"]["scripts"]
    order = [word for word, _ in STAGES[target]]
    assert "RUN" not in order[order.index("USER") :]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda one: one.name)
def test_shellcheck_finds_nothing(script):
    beside = Path(sys.executable).with_name("shellcheck")
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert program, "shellcheck is not installed: make install"
    done = subprocess.run([program, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
