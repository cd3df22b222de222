"""Both painters draw the same, at a size where one can wait for it."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from bench import sample
from medjax.errors import UserError


@pytest.mark.release
def test_the_command_writes_what_it_measured(tmp_path, monkeypatch):
    flags = f"--network=tiny --size=32 --repeats=1 --out={tmp_path}"
    monkeypatch.setattr("sys.argv", ["sample", *flags.split()])
    sample.main()
    (page,) = tmp_path.glob("sample-tiny-*.json")
    rows = json.loads(page.read_text())["tables"]["tiny, 32²: 1 turns of 1"]
    assert [row["painter"] for row in rows] == ["medjax", "torch"]
    assert rows[0]["mean of the images"] == pytest.approx(
        rows[1]["mean of the images"], abs=1e-3
    )
    assert all(row["seconds per image"]["median"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("flags", "said"),
    [("--size=100", "multiple of 64"), ("--repeats=0", "least 1"), ("--dtype=x", "=x")],
)
def test_mistakes_are_told_before_anything_is_measured(flags, said, monkeypatch):
    monkeypatch.setattr("sys.argv", ["sample", *flags.split()])
    with pytest.raises(UserError, match=said):
        sample.main()
