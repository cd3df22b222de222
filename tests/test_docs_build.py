"""``make docs``: the pages build, and each kind of mistake makes the build fail."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from medjax.runs import config_keys
from tests.pages import DOCS, REPOSITORY

pytest.importorskip("sphinx")

MAKEFILE = (REPOSITORY / "Makefile").read_text()
# Of a page, and words of the warning that it has to give.
MISTAKES = {
    "a broken link": ("[a page](missing.md)", "missing.md"),
    "an unknown heading": ("[a heading](#nowhere)", "nowhere"),
    "an unknown reference": ("{metric}`val/nothing`", "val/nothing"),
    "an unknown key": ("`--config.train.setps=3`", "config.train.setps"),
    "an unknown flag": ("`--overwirte`", "--overwirte"),
    "an unknown generator": ("<!-- generated: poems -->", "poems"),
    "a metric that no task has": ("```{metric} val/luck\nNone.\n```", "val/luck"),
}


@pytest.fixture
def extension(monkeypatch):
    """Import from docs/_ext, and forget it afterwards."""
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    yield
    for name in [name for name in sys.modules if name.startswith("medjax_docs")]:
        del sys.modules[name]


def build(source: Path, out: Path) -> subprocess.CompletedProcess:
    """Build as the Makefile does."""
    options = re.search(r"-m sphinx (.*) docs docs/_build", MAKEFILE)[1].split()
    return subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(source), str(out)],
        cwd=REPOSITORY,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.ci
def test_the_documentation_builds_without_a_warning(tmp_path):
    done = build(DOCS, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    shown = (tmp_path / "reference" / "config.html").read_text()
    assert 'id="config-key-config.train.steps"' in shown


@pytest.mark.ci
def test_each_mistake_makes_the_build_fail(tmp_path):
    source = tmp_path / "docs"
    source.mkdir()
    conf = (DOCS / "conf.py").read_text()
    moved = conf.replace("Path(__file__).resolve().parents[1]", repr(REPOSITORY))
    assert moved != conf
    (source / "conf.py").write_text(moved.replace("PosixPath", "Path"))
    text = "\n\n".join(f"## {name}\n\n{page}" for name, (page, _) in MISTAKES.items())
    (source / "index.md").write_text(f"# Mistakes\n\n{text}\n")
    done = build(source, tmp_path / "out")
    assert done.returncode != 0
    for name, (_, words) in MISTAKES.items():
        assert words in done.stderr, name


def test_each_key_and_flag_is_described(extension):
    from medjax_docs import commands, configs

    assert configs.write()[1] == []
    assert commands.write()[1] == []


def test_a_key_without_a_description_is_named(extension, monkeypatch):
    from medjax_docs import configs

    @dataclasses.dataclass
    class Section:
        """A section.

        Attributes:
            known: Described,
                on two lines.
        """

        known: int = 1
        unknown: int = 2

    found = tuple(config_keys.keys_of(Section, "data"))
    assert found[0].text == "Described,\non two lines."
    monkeypatch.setattr(configs, "config_keys", lambda task: found)
    monkeypatch.setattr(configs, "keys", configs.keys.__wrapped__)
    assert configs.write()[1] == ["config.data.unknown has no description"]


def test_a_flag_without_a_help_text_is_named(extension):
    from medjax_docs import commands

    values = flags.FlagValues()
    flags.DEFINE_string("mute", None, "", flag_values=values)
    _, problems = commands._entry("train", commands._flag(values["mute"]))
    assert problems == ["medjax train --mute has no help text"]


def test_flags_are_forgotten_after_they_are_read(extension):
    from medjax_docs import commands

    before = set(flags.FLAGS)
    commands.command_flags.cache_clear()
    names = {flag.name for flag in commands.command_flags("export")}
    assert {"workdir", "to", "debug"} <= names
    ours = set(flags.FLAGS) - before - {"help", "helpfull", "helpshort", "helpxml"}
    assert not ours & names
