"""Every mistake, as a user makes it: one clear line, exit code 2, and nothing lost."""

import os
from pathlib import Path

import pytest

from medjax.prepare import prepare
from tests import forked
from tests.commands import files, medjax, one_line
from tests.images import write_image
from tests.mistakes import Mistake, exporting, preparing, sampling, training

MISTAKES = [
    mistake
    for table in (training, preparing, exporting, sampling)
    for mistake in table.MISTAKES
]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder with images, ``raw``, and the same prepared, ``data``."""
    folder = tmp_path_factory.mktemp("input")
    for number in range(24):
        write_image(folder / "raw" / f"{number}.png", 24, 24, seed=number)
    prepare("folder", folder / "raw", folder / "data")
    return folder


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_one_line_and_nothing_is_lost(mistake: Mistake, base: Path):
    folder = base / mistake.name.replace(" ", "_").replace(",", "")
    folder.mkdir()
    mistake.setup(folder)
    names = {"dir": folder, "data": base / "data", "raw": base / "raw"}
    before = files(base)
    # The hub's variables are read when its library is imported.
    run = medjax if mistake.env else forked.medjax
    done = run(
        mistake.command,
        *(argument.format(**names) for argument in mistake.arguments),
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | mistake.env,
    )
    line = one_line(done)
    for words in mistake.words:
        assert words.format(**names) in line
    after = files(base)
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
