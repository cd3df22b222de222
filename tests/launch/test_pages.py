"""The launchers' own pages: each command on them is one that a launcher takes."""

import importlib
import re
import shlex

import pytest

from launch import gce, gke, skypilot, slurm, tpu_vm
from tests.pages import DOCS, REPOSITORY, blocks

LAUNCHERS = {one.__name__: one for one in (gce, gke, skypilot, slurm, tpu_vm)}
README = REPOSITORY / "launch" / "README.md"
PAGE = DOCS / "how_to" / "cloud.md"
COMMANDS = [
    words[2:]
    for block in blocks(PAGE)
    for words in block.commands
    if words[:2] == ["python", "-m"]
]
EXAMPLES = [
    shlex.split(text.replace("\\\n", " "))[2:]
    for one in LAUNCHERS.values()
    for text in re.findall(r"^    (python -m (?:.*\\\n)*.*)$", one.__doc__, re.M)
]


@pytest.mark.parametrize("words", [*COMMANDS, *EXAMPLES], ids=lambda one: one[0])
def test_each_command_can_be_launched(words, capsys):
    module, *rest = words
    launcher = importlib.import_module(module)
    assert launcher.main(["--dry_run", *rest]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out
    training = dict(word.split("=", 1) for word in rest[rest.index("--") + 1 :])
    recipe, _, variant = training["--config"].partition(":")
    assert f"{variant}=" in (REPOSITORY / "configs" / f"{recipe}.py").read_text()
    assert "--workdir" in training


def test_each_launcher_has_an_example_on_the_page_and_in_its_help():
    assert {words[0] for words in COMMANDS} == LAUNCHERS.keys()
    assert {words[0] for words in EXAMPLES} == LAUNCHERS.keys()


def test_a_page_promises_buckets_only_if_medjax_can_write_to_them():
    pyproject = (REPOSITORY / "pyproject.toml").read_text()
    able = re.search(r"^gcs = ", pyproject, re.MULTILINE) is not None
    assert ("cannot write to a bucket yet" in PAGE.read_text()) != able
    assert ("cannot write to `gs://` yet" in README.read_text()) != able
    for file in ("Dockerfile", "skypilot.py"):
        installs = re.findall(r"\.\[.*?\]", (README.parent / file).read_text())
        assert all("gcs" in one for one in installs) or not able


def test_flags_that_the_documentation_allows_exist():
    links = (DOCS / "_ext" / "medjax_docs" / "links.py").read_text()
    allowed = re.search(r"_OTHERS = frozenset\((.*?)\n\)", links, re.DOTALL)[1]
    others = set(re.findall(r'"(\w+)"', allowed))
    assert "slices" in others
    known = {
        name.removeprefix("--")
        for one in LAUNCHERS.values()
        for action in one.parser()._actions
        for name in action.option_strings
    }
    assert others - {"only"} <= known


@pytest.mark.parametrize("name", LAUNCHERS)
def test_help_needs_nothing_else(name, capsys):
    with pytest.raises(SystemExit) as ended:
        LAUNCHERS[name].main(["--help"])
    assert ended.value.code == 0
    assert "-- --config=" in capsys.readouterr().out


def test_links_and_files_of_the_readme_exist():
    text = README.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (README.parent / target).exists(), target
    listed = set(re.findall(r"^\| `(\S+)` \|", text, re.M))
    assert listed <= {path.name for path in README.parent.iterdir()}
