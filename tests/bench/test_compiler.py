"""The compiler's figures of both steps, at a tiny size and for this machine."""

import json

import pytest

pytest.importorskip("diffusers")

from bench import compiler, report


@pytest.mark.release
def test_the_command_writes_figures_of_each_competitor(tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "figures_folder", lambda: tmp_path / "figures")
    flags = "--network=tiny --size=32 --batch=2 --dtype=float32 --topology=local"
    monkeypatch.setattr("sys.argv", ["compiler", *flags.split(), f"--out={tmp_path}"])
    report.run(compiler.main)
    (page,) = tmp_path.glob("compiler-tiny-*.md")
    content = json.loads(page.with_suffix(".json").read_text())
    (rows,) = content["tables"].values()
    assert [row["competitor"] for row in rows] == list(compiler.COMPETITORS)
    theirs, ours, *_, again = rows
    # The same networks, and what remat computes again.
    assert ours["TFLOP"] == pytest.approx(theirs["TFLOP"], rel=0.25)
    assert again["TFLOP"] > ours["TFLOP"]
