"""Every user mistake gives one clear line and exit code 2, and no file is lost."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from medjax.prepare import prepare
from tests import in_process
from tests.commands import files, medjax, one_line
from tests.images import write_image
from tests.mistakes import Mistake, exporting, preparing, sampling, training

# Some mistakes are about meshes.
pytestmark = pytest.mark.devices(8)

MISTAKES = [
    mistake
    for table in (training, preparing, exporting, sampling)
    for mistake in table.MISTAKES
]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder with images, ``raw``, and the same images prepared, ``data``."""
    folder = tmp_path_factory.mktemp("input")
    for number in range(24):
        write_image(folder / "raw" / f"{number}.png", 24, 24, seed=number)
    prepare("folder", folder / "raw", folder / "data")
    return folder


def contents(folders: Sequence[Path]) -> dict[Path, bytes]:
    return {path: text for folder in folders for path, text in files(folder).items()}


def typed(mistake: Mistake, arguments: list[str]) -> subprocess.CompletedProcess:
    """Run the command, in its own process if that matters."""
    if mistake.env or mistake.apart:
        # The hub's library reads its variables when it is imported.
        return medjax(mistake.command, *arguments, env=os.environ | mistake.env)
    return in_process.medjax(mistake.command, *arguments)


def marked(mistake: Mistake) -> object:
    """Return a row. Rows with their own process run in the `ci` tier."""
    marks = [pytest.mark.ci] if mistake.apart or mistake.env else []
    return pytest.param(mistake, id=mistake.name, marks=marks)


@pytest.mark.parametrize("mistake", [marked(one) for one in MISTAKES])
def test_a_mistake_is_one_line_and_nothing_is_lost(mistake: Mistake, base: Path):
    folder = base / mistake.name.replace(" ", "_").replace(",", "")
    folder.mkdir()
    mistake.setup(folder)
    names = {"dir": folder, "data": base / "data", "raw": base / "raw"}
    # Other tests may leave files beside these folders.
    precious = (folder, base / "raw", base / "data")
    before = contents(precious)
    done = typed(mistake, [one.format(**names) for one in mistake.arguments])
    line = one_line(done)
    for words in mistake.words:
        assert words.format(**names) in line
    after = contents(precious)
    assert before == {path: after.get(path) for path in before}
    new = {path.relative_to(folder).parts for path in after.keys() - before.keys()}
    assert not any("checkpoints" in parts for parts in new)
    if mistake.command in ("prepare", "export", "sample"):
        assert after.keys() == before.keys()


def test_debug_shows_where_it_was_raised():
    done = medjax("prepare", "--dataset=x", "--source=x", "--out=x", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "UserError: --dataset=x" in done.stderr
