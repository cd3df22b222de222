"""The competitors compute the same, at a size where one can wait for it."""

import dataclasses
import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from bench import report, step
from bench.lora_competitors import CONTESTS
from bench.networks import Settings
from bench.workers import OutOfMemory
from medjax.errors import UserError

TINY = Settings("tiny", size=32, batch=2)
# The last loss over the first: adapters are few.
LEARNT = {"controlnet": 0.999, "lora": 0.99999}


@pytest.mark.release
@pytest.mark.parametrize("trains", CONTESTS)
def test_all_competitors_learn_alike(trains):
    if trains == "lora":
        pytest.importorskip("peft")
    names = list(CONTESTS[trains])
    settings = dataclasses.replace(TINY, trains=trains)
    rows = step.measure(names, settings, 2, repeats=2, accelerated=False)
    assert [row["competitor"] for row in rows] == names
    first, last = zip(
        *(map(float, row["loss"].split(",")) for row in rows), strict=True
    )
    assert first == pytest.approx([first[0]] * len(names), rel=1e-3)
    # The optimiser moved all of them, by the same way.
    assert last[0] < first[0] * LEARNT[trains]
    assert last == pytest.approx([last[0]] * len(names), rel=1e-3)
    assert rows[0]["medjax / it"].values == (1.0, 1.0)
    assert all(len(row["seconds per step"].values) == 4 for row in rows)
    assert all(0.1 < row["peak memory, GiB"] < 20 for row in rows)


def test_losses_that_differ_are_refused():
    step.check_losses({"medjax": 1.0, "torch": 1.0009}, TINY, accelerated=False)
    for other in (1.002, float("nan")):
        with pytest.raises(UserError, match="losses differ"):
            step.check_losses({"medjax": 1.0, "torch": other}, TINY, accelerated=False)


@pytest.mark.release
def test_the_command_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    flags = "--network=tiny --size=32 --dtype=float32 --competitors=torch"
    flags += " --steps=2 --repeats=1"
    monkeypatch.setattr("sys.argv", ["step", *flags.split(), f"--out={tmp_path}"])
    report.run(step.main)
    (page,) = tmp_path.glob("step-tiny-*.md")
    content = json.loads(page.with_suffix(".json").read_text())
    (row,) = content["tables"]["tiny, 32²: 1 turns of 2 steps"]
    assert row["competitor"] == "torch"
    assert len(row["seconds per step"]["values"]) == 2
    assert page.read_text() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--competitors=medjax,flex", "did you mean 'flax'"),
        ("--trains=lora --competitors=flax", "expected some of medjax, torch"),
        ("--dtype=float16", "expected float32 or bfloat16"),
        ("--size=100", "multiple of 64"),
        ("--batch=0", "expected numbers of at least 1"),
        ("--repeats=0", "at least 1"),
        ("--steps=-1", "at least 1"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(flags, said, monkeypatch):
    monkeypatch.setattr("sys.argv", ["step", *flags.split()])
    with pytest.raises(UserError, match=said):
        step.main()


def test_who_runs_out_of_memory_is_left_out_of_larger_batches(monkeypatch):
    def measure(names, settings, *_):
        if settings.batch > 1 and "flax" in names:
            raise OutOfMemory("flax", "it is full")
        return [{"competitor": name, "batch": settings.batch} for name in names]

    monkeypatch.setattr(step, "measure", measure)
    choices = [Settings("tiny", 32, batch) for batch in (1, 2, 4)]
    rows = step.compare(["medjax", "flax"], choices, 1, repeats=1, accelerated=True)
    got = [(row["competitor"], row["batch"]) for row in rows]
    assert got == [("medjax", 1), ("flax", 1), ("medjax", 2), ("medjax", 4)]


@pytest.mark.ci
def test_a_competitor_that_fails_says_why():
    with pytest.raises(UserError, match="torch failed: .*float7"):
        step.measure(
            ["torch"],
            Settings("tiny", 32, 1, "float7"),
            1,
            repeats=1,
            accelerated=False,
        )
