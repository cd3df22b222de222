"""`medjax COMMAND`, `python -m medjax COMMAND`, and the names in `import medjax`."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import medjax
from medjax import __main__ as program
from medjax import trees
from medjax.config_files import load_config
from tests import in_process

REPOSITORY = Path(__file__).parents[1]
HEAVY = ("jax", "flax", "transformers", "tensorflow_datasets", "cv2", "matplotlib")


def docstring(command: str) -> str:
    source = REPOSITORY / "medjax" / f"{command.replace('-', '_')}.py"
    return ast.get_docstring(ast.parse(source.read_text(encoding="utf-8")))


def test_help_lists_each_command_with_the_first_line_of_its_docstring(capsys):
    assert program.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in program.COMMANDS:
        assert f"{command:<14}  {docstring(command).splitlines()[0]}\n" in shown
    assert "medjax train --config=cxr_controlnet:demo --workdir=RUN" in shown


@pytest.mark.parametrize("command", ["trian", "crossvalidate", "Sample"])
def test_an_unknown_command_names_the_nearest(capsys, command):
    assert program.main([command, "--workdir=x"]) == program.USAGE_EXIT_CODE
    (line,) = capsys.readouterr().err.splitlines()
    want = {"trian": "train", "crossvalidate": "cross-validate", "Sample": "sample"}
    assert line.startswith(f"error: unknown command '{command}'")
    assert line.endswith(f"did you mean '{want[command]}'?")


def test_no_command_shows_the_commands_and_is_a_mistake(capsys):
    assert program.main([]) == program.USAGE_EXIT_CODE
    assert "cross-validate" in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys):
    assert program.main(["--version"]) == 0
    assert capsys.readouterr().out == f"medjax {medjax.__version__}\n"


def python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


LIGHT = f"""
import sys, time
begin = time.perf_counter()
import medjax
seconds = time.perf_counter() - begin
assert set(medjax.__all__) <= set(dir(medjax))
loaded = [name for name in {HEAVY} if name in sys.modules]
print(loaded, [name for name in sys.modules if name.startswith("medjax.")])
sys.exit(seconds > 0.2 and f"{{seconds}} s")
"""


def test_the_package_is_imported_at_once():
    # A busy machine may sometimes take longer.
    tries = [python(LIGHT) for _ in range(3)]
    assert {done.stdout for done in tries} == {"[] []\n"}
    assert any(done.returncode == 0 for done in tries), [done.stderr for done in tries]


def test_each_name_that_the_package_offers_is_there():
    for name in medjax.__all__:
        assert getattr(medjax, name) is not None
    assert medjax.load_run.__module__ == "medjax.runs.open_run"
    with pytest.raises(AttributeError, match="no attribute 'load_runs'"):
        medjax.load_runs  # noqa: B018


def test_what_type_checkers_see_is_what_the_package_offers():
    tree = ast.parse((REPOSITORY / "medjax/__init__.py").read_text(encoding="utf-8"))
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in guarded.body for alias in node.names}
    assert {*seen, "__version__"} == set(medjax.__all__)
    homes = {name: medjax._HOMES.get(name, "medjax.pretrained") for name in seen}
    assert homes == seen


HELP = f"""
import sys
from medjax.__main__ import main
try:
    main([sys.argv[1], "--help"])
finally:
    print([name for name in {HEAVY} if name in sys.modules])
"""


@pytest.mark.parametrize("command", program.COMMANDS)
def test_help_of_a_command_shows_its_docstring_and_loads_little(command):
    done = python(HELP, command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(docstring(command))
    assert done.stdout.endswith("\n[]\n")
    assert f"\n    medjax {command} --" in done.stdout
    assert "--[no]debug" in done.stdout


def test_help_with_a_config_lists_its_keys_and_values(tmp_path):
    named = "cxr_controlnet:demo"
    done = in_process.typed(["train", f"--config={named}", "--help"], tmp_path)
    assert done.returncode == 0, done.stderr
    listed = dict(re.findall(r"\n  --config\.(\S+?)=(.*)\n      \S", done.stdout))
    config = load_config("config", named)
    values = trees.flatten(config.to_dict())
    del values["task"]
    assert listed == {k.replace("/", "."): repr(v) for k, v in values.items()}
    assert re.search(r"--workdir=VALUE\n      .*\(required\)\n", done.stdout)
    wrong = in_process.typed(["train", "--config=cxr_controlnt", "--help"], tmp_path)
    assert wrong.returncode == program.USAGE_EXIT_CODE
    assert "did you mean 'cxr_controlnet'?" in wrong.stderr


@pytest.mark.ci
def test_the_installed_program_the_package_and_the_module_answer_alike(tmp_path):
    """The installed program calls what the entry point names."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    entry = EntryPoint("medjax", project["scripts"]["medjax"], "console_scripts")
    assert entry.load() is program.main
    script = f"import sys; from {entry.module} import {entry.attr} as main; main()"
    typed = ["--dataset=foldr", f"--source={tmp_path}", "--out=x"]
    ways = (
        ["-c", script, "prepare"],
        ["-m", "medjax", "prepare"],
        ["-m", "medjax.prepare"],
    )
    answers = set()
    for way in ways:
        done = subprocess.run(
            [sys.executable, *way, *typed],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        answers.add((done.returncode, done.stdout, done.stderr))
    ((code, _, error),) = answers
    assert code == program.USAGE_EXIT_CODE
    assert "did you mean 'folder'?" in error
