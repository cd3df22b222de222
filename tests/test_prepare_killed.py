"""A replacement of prepared data that is killed leaves the old data or the new."""

import json
import shutil
from pathlib import Path

import pytest

from medjax.data.datasets import builder
from medjax.data.datasets.report import REPORT
from medjax.data.prepared import PreparedSource
from medjax.data.roots import find_dataset
from medjax.errors import UserError
from medjax.prepare import prepare
from tests.images import write_image
from tests.killed import kills

EVERYTHING_TRAINS = {"train": 1.0, "validation": 0.0, "test": 0.0}


def prepared(source: Path, out: Path, **options) -> dict:
    return prepare("folder", source, out, fractions=EVERYTHING_TRAINS, **options)


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.ci
def test_a_kill_at_any_step_leaves_the_old_data_or_the_new(tmp_path, monkeypatch):
    sources, wholes, out = {}, {}, tmp_path / "out"
    for name, count in (("old", 2), ("new", 3)):
        sources[name] = tmp_path / f"images of {name}"
        for number in range(count):
            write_image(sources[name] / f"{number}.png", seed=number)
        wholes[name] = tmp_path / name
        prepared(sources[name], wholes[name])

    class Copies:
        """Moves into place in one step what TFDS would write for the new images."""

        def __init__(self, survey, fractions, settings, folder):
            self.folder, self.unreadable = folder, []
            self.stored = {"train": list(survey.entries)}

        def write(self):
            (spare / "folder").rename(self.folder / "folder")

    monkeypatch.setattr(builder, "SurveyBuilder", Copies)
    versions = [content(whole / "folder" / "1.0.0") for whole in wholes.values()]
    spare = tmp_path / "spare"

    def replace():
        prepared(sources["new"], out, overwrite=True)

    def start():
        for folder, whole in ((out, "old"), (spare, "new")):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(wholes[whole], folder)

    # Each place, and the number of images found there.
    seen = {}
    start()
    for _ in kills(replace, out):
        found = find_dataset(out)
        version = versions.index(content(found))
        place = str(found.relative_to(out)), version
        if place not in seen:
            seen[place] = len(PreparedSource(found, "train"))
        # Whichever data set it is, its report is put beside it, and nothing is lost.
        with pytest.raises(UserError, match="already has folder"):
            prepared(sources["new"], out)
        assert find_dataset(out) == out / "folder" / "1.0.0"
        report = json.loads((out / REPORT).read_text())
        assert report["splits"]["train"]["examples"] == version + 2
        # The same command does all of the work.
        shutil.rmtree(spare)
        shutil.copytree(wholes["new"], spare)
        replace()
        assert sorted(path.name for path in out.iterdir()) == ["folder", REPORT]
        assert content(find_dataset(out)) == versions[1]
        start()
    assert content(find_dataset(out)) == versions[1]
    assert seen == {
        ("folder/1.0.0", 0): 2,
        (".folder.before/1.0.0", 0): 2,
        ("folder/1.0.0", 1): 3,
    }
