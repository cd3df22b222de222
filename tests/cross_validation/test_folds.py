"""Folds train apart, and are scored on what none of them has seen."""

import csv
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from medjax.cross_validation import fold_scores, folds
from medjax.cross_validation.fold_scores import FoldScores
from medjax.cross_validation.folds import cross_validate
from medjax.cross_validation.report import interval
from medjax.data.pipeline import open_dataset
from medjax.errors import Stopped, UserError
from medjax.evaluation import chest
from medjax.evaluation.chest_reader import fit_reader
from medjax.runs import find_checkpoint
from medjax.runs.checksums import write_checksums
from medjax.runs.config import make_config, parse
from medjax.runs.find_checkpoint import best_step
from medjax.runs.open_run import load_run
from medjax.runs.sections import BestConfig
from medjax.training.two_stages import train_stages
from tests.commands import REPOSITORY
from tests.smallest import save_smallest


def small():
    """Return a config of three updates on phantoms of 16 × 16 pixels."""
    config = make_config("text_to_image")
    config.data.update(image_size=16, batch_size=8, folds=2, workers=0)
    config.data.phantoms.count = 24
    config.model.update(pretrained="", dtype="float32")
    config.optim.update(learning_rate=1e-3, warmup_fraction=0.0)
    config.train.update(steps=3, checkpoint_every=1, log_every=1)
    config.eval.update(every=1, examples=8, samples=2, sampler_steps=2)
    return config


class Stub:
    """Data of which only the groups count."""

    def __init__(self, *groups):
        self.groups = groups

    def __len__(self):
        return len(self.groups)

    def __getitem__(self, index):
        raise AssertionError("nothing reads a record")


@pytest.fixture
def stubs(monkeypatch):
    """Data in three splits, training and scoring, all of which a test may replace."""
    splits = {
        "train": Stub("a", "a", "b", "c"),
        "validation": Stub("d", "e"),
        "test": Stub("x", "y", "y"),
    }
    trained, scored = [], []

    def score(fold, *_):
        scored.append(fold)
        return FoldScores(fold, 1, 0.0, {}, {})

    for name, stub in {
        "open_dataset": lambda data, split: splits[split],
        "train_stages": lambda config, folder: trained.append(config.data.fold),
        "score_fold": score,
        "write_report": lambda *_: None,
        "check_efficientnet": lambda: None,
    }.items():
        monkeypatch.setattr(folds, name, stub)
    return splits, trained, scored


def test_all_folds_are_trained_and_scored(stubs, tmp_path):
    _, trained, scored = stubs
    cross_validate(parse(small()), tmp_path, images=3)
    assert trained == scored == [0, 1]


def test_who_is_on_two_sides_is_refused(stubs, tmp_path):
    splits, trained, _ = stubs
    splits["test"] = Stub("x", "b")
    with pytest.raises(UserError, match="are in both the training and"):
        cross_validate(parse(small()), tmp_path, images=2)
    assert not trained


def test_folds_and_a_run_do_not_share_a_folder(stubs, tmp_path):
    _, trained, _ = stubs
    (tmp_path / "run" / "checkpoints" / "2").mkdir(parents=True)
    with pytest.raises(UserError, match="run: contains a run of medjax.train"):
        cross_validate(parse(small()), tmp_path / "run", images=3)
    for fold in range(2):
        (tmp_path / "folds" / f"fold-{fold}").mkdir(parents=True)
    with pytest.raises(UserError, match=r"\(fold-0, fold-1\).*medjax cross-validate"):
        train_stages(parse(small()), tmp_path / "folds")
    assert not trained


def test_one_group_leaves_no_interval(stubs, tmp_path):
    splits, trained, _ = stubs
    splits["test"] = Stub("x", "x", "y")
    with pytest.raises(UserError, match="--images=2: all images are of one patient"):
        cross_validate(parse(small()), tmp_path, images=2)
    assert not trained


@pytest.mark.parametrize("when", ["train_stages", "score_fold"])
def test_a_signal_ends_all_of_it(stubs, tmp_path, monkeypatch, when):
    _, trained, scored = stubs
    before = getattr(folds, when)

    def terminated(*given):
        os.kill(os.getpid(), signal.SIGTERM)
        return before(*given)

    monkeypatch.setattr(folds, when, terminated)
    with pytest.raises(Stopped, match="SIGTERM: stopped after training fold 0"):
        cross_validate(parse(small()), tmp_path, images=3)
    assert trained == [0]
    assert scored == ([] if when == "train_stages" else [0])


@pytest.mark.parametrize(
    ("metric", "step"), [("val/loss", 2), ("val/ssim", 3), ("val/mse", None)]
)
def test_the_best_checkpoint_is_that_of_the_best_measure(
    metric, step, tmp_path, monkeypatch, caplog
):
    kept = {
        1: {"val/loss": math.nan, "val/ssim": 0.1},
        2: {"val/loss": 0.2, "val/ssim": 0.3},
        3: {"val/loss": 0.5, "val/ssim": 0.6},
        4: {"val/loss": 0.3, "val/ssim": 0.4},
        5: {},
    }
    for number in (*kept, 6):
        (tmp_path / "checkpoints" / str(number)).mkdir(parents=True)
        (tmp_path / "checkpoints" / str(number) / "file").touch()
        if number in kept:
            write_checksums(tmp_path / "checkpoints" / str(number))
    monkeypatch.setattr(
        find_checkpoint, "read_metrics", lambda folder: kept[int(folder.name)]
    )
    if step is None:
        with pytest.raises(UserError, match="no checkpoint has the metric val/mse"):
            best_step(tmp_path, BestConfig(metric))
    else:
        assert best_step(tmp_path, BestConfig(metric)) == (step, kept[step][metric])
    assert "ignoring checkpoint 6: checksums.json is missing" in caplog.text


def test_what_was_best_has_to_be_there(tmp_path, monkeypatch):
    """Chosen by another measure, what is left may be anything but the best."""
    (tmp_path / "metrics.csv").write_text("step,val/loss,val/ssim\n1,3,0.9\n2,2,\n")
    monkeypatch.setattr(fold_scores, "best_step", lambda folder, best: (2, 0.5))
    config = dataclasses.replace(parse(small()), best=BestConfig("val/ssim"))
    with pytest.raises(UserError, match="the best val/ssim was not kept"):
        fold_scores.score_fold(
            0, tmp_path, config, open_dataset(config.data, "test"), 3
        )


@pytest.mark.ci
def test_each_fold_is_scored_by_its_best_checkpoint(tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet absent")
    # Enough for answers, if not for right ones.
    monkeypatch.setattr(chest, "fit_reader", lambda: fit_reader(16))
    chosen = small()
    chosen.model.pretrained = save_smallest(tmp_path / "base")
    chosen.train.steps = 2
    chosen.eval.chest_findings = True
    config = parse(chosen)
    loaded, load = [], fold_scores.load_run
    monkeypatch.setattr(
        fold_scores,
        "load_run",
        lambda folder, step, **more: (
            loaded.append((folder.name, step)) or load(folder, step, **more)
        ),
    )
    workdir = tmp_path / "folds"
    scores = cross_validate(config, workdir, images=3)
    assert loaded == [(f"fold-{one.fold}", one.step) for one in scores]
    assert [one.fold for one in scores] == [0, 1]
    for one in scores:
        folder = workdir / f"fold-{one.fold}"
        run = load_run(folder)
        assert (run.config.data.fold, run.step) == (one.fold, 2)
        assert best_step(folder, config.best) == (one.step, one.best)
        # The best of all that were measured, not of those that were kept.
        with (folder / "metrics.csv").open() as file:
            history = [float(row["val/loss"]) for row in csv.DictReader(file)]
        assert one.best == min(history)
        assert all(len(values) == 3 for values in one.each.values())
        # Both are of the same images.
        np.testing.assert_allclose(
            one.each["psnr_db"], -10 * np.log10(one.each["mse"] / 4), rtol=1e-4
        )
        assert (folder / "test.png").is_file()
    told = json.loads((workdir / "cross_validation.json").read_text())
    for name, found in told["metrics"].items():
        assert found["mean"] == pytest.approx(np.mean(found["folds"])), name
        if found["interval_95"]:
            low, high = found["interval_95"]
            assert low <= found["mean"] <= high
    measured = told["metrics"].keys()
    expected = ["agreement", "agreement_chance", "presence_unasked"]
    assert {f"pneumothorax_{one}" for one in expected} <= measured
    page = (workdir / "cross_validation.md").read_text()
    rows = [line.split()[1] for line in page.splitlines() if line[:2] == "| "][2:]
    assert rows == sorted(measured) and "`…_agreement_chance`" in page
    assert "| psnr_db |" in page and "captions of 3 test examples" in page
    best = min(scores, key=lambda one: one.best)
    assert f"--workdir={workdir}/fold-{best.fold} --step={best.step} --to" in page
    # A second call trains and draws nothing, and finds the same.
    before = (workdir / "fold-1" / "metrics.csv").read_text()
    again = cross_validate(config, workdir, images=3)
    assert (workdir / "fold-1" / "metrics.csv").read_text() == before
    assert len(loaded) == 2
    for one, other in zip(scores, again, strict=True):
        np.testing.assert_array_equal(one.each["ssim"], other.each["ssim"])


def start(folder, steps):
    """Cross-validate the tiny adapters in two folds, in a process of its own."""
    flags = {
        "data.folds": 2,
        "data.phantoms.count": 24,
        "train.steps": steps,
        "train.checkpoint_every": 1,
        "train.log_every": 1,
        "eval.every": 1,
        "eval.sample_every": steps,
    }
    command = ("-m", "medjax.cross_validate", "--config=tests/tiny_lora.py")
    given = [f"--config.{name}={value}" for name, value in flags.items()]
    with folder.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, *command, *given, f"--workdir={folder}", "--images=3"],
            cwd=REPOSITORY,
            stderr=log,
        )


@pytest.mark.release
def test_what_is_killed_in_its_second_fold_goes_on_there(tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet absent")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole, steps=6).wait() == 0, whole.with_suffix(".log").read_text()
    process = start(killed, steps=6)
    while len(list((killed / "fold-1" / "checkpoints").glob("[0-9]"))) < 2:
        assert process.poll() is None, killed.with_suffix(".log").read_text()
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (killed / "cross_validation.json").exists()
    assert start(killed, steps=6).wait() == 0
    *_, resumed = re.findall(
        r"resuming after step (\d) of 6", killed.with_suffix(".log").read_text()
    )
    assert 1 <= int(resumed) < 6
    both = [
        (folder / "cross_validation.json").read_text() for folder in (whole, killed)
    ]
    ours, theirs = (json.loads(text)["metrics"] for text in both)
    assert ours == theirs
    tables = []
    for folder in (whole, killed):
        with (folder / "fold-1" / "metrics.csv").open() as file:
            names = ("step", "train/loss", "val/loss", "val/ssim")
            tables.append([[row[n] for n in names] for row in csv.DictReader(file)])
    assert tables[0] == tables[1]


def test_an_interval_is_of_groups():
    random = np.random.default_rng(1)
    of_group = random.normal(size=20)
    groups = [f"p{number % 20}" for number in range(200)]
    values = np.tile(of_group, 10)[None]
    low, high = interval(values, groups)
    alone = interval(values, [str(number) for number in range(200)])
    assert low < values.mean() < high
    # Ten images of a patient tell no more than one.
    expected = 2 * 1.96 * of_group.std() / np.sqrt(20)
    assert high - low == pytest.approx(expected, rel=0.15)
    assert alone[1] - alone[0] < 0.5 * (high - low)


def test_equal_values_leave_no_interval():
    assert interval(np.full((3, 6), 0.5), list("aabbcc")) == (0.5, 0.5)


def test_what_cannot_be_compared_is_refused(tmp_path):
    def start(images=3, **changes):
        config = small()
        for key, value in changes.items():
            config.update_from_flattened_dict({key.replace("__", "."): value})
        cross_validate(parse(config), tmp_path, images)

    with pytest.raises(UserError, match=r"data\.folds=0"):
        start(data__folds=0)
    with pytest.raises(UserError, match="max_hours"):
        start(train__max_hours=1.0)
    with pytest.raises(UserError, match="keep_best=0"):
        start(train__keep_best=0)
    with pytest.raises(UserError, match=r"a multiple of .*checkpoint_every=1$"):
        start(train__checkpoint_every=2)
    with pytest.raises(
        UserError, match=r"--images=4: .* at most 3, the size of the test"
    ):
        start(images=4)
    with pytest.raises(UserError, match="18 groups"):
        start(data__phantoms__count=16, data__folds=19, images=2)
    brains = parse(make_config("unconditional"))
    data = dataclasses.replace(brains.data, folds=2)
    with pytest.raises(
        UserError, match="task=unconditional: .*this task has no captions"
    ):
        cross_validate(dataclasses.replace(brains, data=data), tmp_path, 3)
    assert not any(tmp_path.iterdir())
