"""A whole run writes all its files, and stopping and resuming changes nothing."""

import csv
import dataclasses
import functools
import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from medjax import trees
from medjax.errors import Stopped, UserError
from medjax.runs.checkpoints import Checkpoints
from medjax.runs.checksums import damage
from medjax.runs.config import parse
from medjax.runs.read_checkpoint import read_metrics
from medjax.runs.sections import BestConfig
from medjax.training import set_up
from medjax.training.loop import train
from medjax.training.sample_pages import SamplePages
from medjax.training.validation_loss import ValidationLoss
from tests import tiny_demo, tiny_unconditional
from tests.smallest import save_smallest


@pytest.fixture(scope="module")
def small_config(tmp_path_factory):
    """A function that returns a small config of a task, with changes to its plan."""
    base = save_smallest(tmp_path_factory.mktemp("base"))
    return functools.partial(make_small_config, base)


def make_small_config(base, task="controlnet", **train_fields):
    if task == "controlnet":
        config = tiny_demo.get_config()
        config.model.update(pretrained=base, train_unet=False)
    else:
        config = tiny_unconditional.get_config()
    config.data.update(image_size=16, batch_size=8)
    config.data.phantoms.count = 16
    config.optim.update(warmup_fraction=0.0)
    config.eval.update(every=2, sample_every=4, examples=3, samples=2, sampler_steps=2)
    config.train.update(steps=4, log_every=1, checkpoint_every=2, **train_fields)
    return parse(config)


# The smaller one represents the other.
TASKS = [
    pytest.param("unconditional", marks=pytest.mark.ci),
    pytest.param("controlnet", marks=pytest.mark.release),
]


def rows(workdir):
    with (workdir / "metrics.csv").open() as file:
        return {int(row["step"]): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def whole(small_config, tmp_path_factory):
    """A function that returns the workdir and the state of a task's whole run."""

    @functools.cache
    def whole(task):
        workdir = tmp_path_factory.mktemp(task)
        return workdir, train(small_config(task), workdir)

    return whole


@pytest.fixture
def uninterrupted(whole):
    return whole("controlnet")


@pytest.mark.ci
def test_a_set_up_that_fails_closes_the_checkpoints(
    small_config, tmp_path, monkeypatch
):
    closed, close = [], Checkpoints.close

    def fail(*_):
        raise UserError("a mistake once they are open")

    monkeypatch.setattr(Checkpoints, "close", lambda self: closed.append(close(self)))
    monkeypatch.setattr(set_up, "log_summary", fail)
    with pytest.raises(UserError, match="a mistake once they are open"):
        train(small_config(), tmp_path)
    assert len(closed) == 1


@pytest.mark.ci
def test_the_workdir_holds_what_scripts_rely_on(uninterrupted):
    workdir, _ = uninterrupted
    config = json.loads((workdir / "config.json").read_text())
    assert config["train"]["steps"] == 4
    assert config["task"] == "controlnet"
    table = rows(workdir)
    assert list(table) == [1, 2, 3, 4]
    for name in ("train/loss", "train/grad_norm", "train/learning_rate"):
        assert all(float(row[name]) > 0 for row in table.values())
    assert [step for step, row in table.items() if row["val/loss"]] == [2, 4]
    assert 0 <= float(table[4]["val/edge_f1"]) <= 1
    assert 0 <= float(table[4]["val/edge_f1_chance"]) <= 1
    assert float(table[4]["images_per_second"]) > 0
    (page,) = (workdir / "samples").glob("*.png")
    assert page.name == "0000004.png"
    assert Image.open(page).width > 3 * 16
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"2", "4"}
    assert list((workdir / "tensorboard").iterdir())
    assert "controlnet/conv_in/kernel" in (workdir / "parameters.txt").read_text()


@pytest.mark.parametrize("task", TASKS)
def test_a_run_that_stops_and_resumes_is_bit_for_bit_the_same(
    small_config, whole, tmp_path, task
):
    reference, expected = whole(task)
    # The time limit stops it after its first step. Then it validates, samples, saves.
    stopped = train(small_config(task, max_hours=1e-9), tmp_path)
    assert int(stopped.step) == 1
    assert rows(tmp_path)[1]["val/loss"]
    config = small_config(task)
    # It resumes with a cache of images, which changes nothing either.
    data = dataclasses.replace(config.data, cache=str(tmp_path / "cache"))
    state = train(dataclasses.replace(config, data=data), tmp_path)
    ours, theirs = rows(tmp_path), rows(reference)
    for step in (1, 2, 3, 4):
        assert ours[step]["train/loss"] == theirs[step]["train/loss"]
        assert ours[step]["train/grad_norm"] == theirs[step]["train/grad_norm"]
    assert ours[4]["val/loss"] == theirs[4]["val/loss"]
    for name in ("params", "ema_params", "statistics"):
        got = trees.flatten(getattr(state, name))
        for path, leaf in trees.flatten(getattr(expected, name)).items():
            np.testing.assert_array_equal(got[path], leaf, err_msg=path)


@pytest.mark.release
@pytest.mark.parametrize(
    ("task", "kind", "step"),
    [
        ("unconditional", ValidationLoss, 2),
        ("controlnet", ValidationLoss, 2),
        ("controlnet", SamplePages, 4),
    ],
)
def test_an_evaluation_that_a_signal_ends_is_made_up_for(
    small_config, whole, tmp_path, monkeypatch, task, kind, step
):
    reference, expected = whole(task)
    original = kind.run

    def signalled(self, params, frozen):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, params, frozen)

    with monkeypatch.context() as patched:
        patched.setattr(kind, "run", signalled)
        with pytest.raises(Stopped, match=f"SIGTERM at step {step} of 4, saved in"):
            train(small_config(task), tmp_path)
    # The step is recorded, but not the unfinished evaluation.
    assert rows(tmp_path)[step]["train/loss"]
    assert not rows(tmp_path)[step]["val/loss"]
    assert read_metrics(tmp_path / "checkpoints" / str(step)) == {}
    state = train(small_config(task), tmp_path)
    ours, theirs = rows(tmp_path), rows(reference)
    assert list(ours) == [1, 2, 3, 4]
    names = [name for name in theirs[4] if name.startswith("val/")]
    assert "val/loss" in names and (task == "unconditional" or "val/edge_f1" in names)
    for name in ("train/loss", *names):
        assert [r[name] for r in ours.values()] == [r[name] for r in theirs.values()]
    for saved in ("2", "4"):
        mine, other = (
            read_metrics(folder / "checkpoints" / saved)
            for folder in (tmp_path, reference)
        )
        assert mine["val/loss"] == other["val/loss"]
    pages = [folder / "samples" / "0000004.png" for folder in (tmp_path, reference)]
    assert pages[0].read_bytes() == pages[1].read_bytes()
    for path, leaf in trees.flatten(expected.params).items():
        np.testing.assert_array_equal(trees.flatten(state.params)[path], leaf, path)


@pytest.mark.ci
def test_a_run_that_gets_no_better_ends_and_stays_ended(small_config, tmp_path):
    config = small_config("unconditional")
    best = BestConfig(patience=1, min_change=1e9)
    config = dataclasses.replace(
        config,
        best=best,
        eval=dataclasses.replace(config.eval, every=1),
        train=dataclasses.replace(config.train, steps=9),
    )
    # The first validation is the best, the second no better; then one step follows.
    state = train(config, tmp_path)
    assert int(state.step) == 3
    assert (tmp_path / "checkpoints" / "3").is_dir()
    assert int(train(config, tmp_path).step) == 3
    assert list(rows(tmp_path)) == [1, 2, 3]


def test_a_finished_run_does_nothing_more(small_config, uninterrupted):
    workdir, expected = uninterrupted
    before = (workdir / "metrics.csv").read_text()
    state = train(small_config(), workdir)
    assert int(state.step) == int(expected.step)
    assert (workdir / "metrics.csv").read_text() == before


def test_another_config_is_refused(small_config, uninterrupted):
    workdir, _ = uninterrupted
    config = small_config()
    faster = dataclasses.replace(config.optim, learning_rate=1.0)
    with pytest.raises(UserError, match=r"config.optim.learning_rate is 1.0, was "):
        train(dataclasses.replace(config, optim=faster), workdir)


def test_other_data_are_refused(small_config, uninterrupted, monkeypatch):
    workdir, _ = uninterrupted
    other = {"source": "elsewhere", "fingerprint": "0123"}
    monkeypatch.setattr(set_up, "dataset_identity", lambda data: other)
    with pytest.raises(UserError, match="dataset is 'elsewhere'.*was 'phantoms'"):
        train(small_config(), workdir)


@pytest.mark.ci
def test_a_diverging_run_stops_with_the_examples_named(small_config, tmp_path):
    config = small_config("unconditional")
    huge = dataclasses.replace(config.optim, learning_rate=1e38, clip_norm=None)
    with pytest.raises(UserError, match=r"step [234]: loss nan.* 8 of 8 .*'phantom-"):
        train(dataclasses.replace(config, optim=huge), tmp_path)
    with Checkpoints(tmp_path / "checkpoints", {}, {}) as checkpoints:
        assert checkpoints.latest_step in (None, 2)


@pytest.fixture
def signal_at(monkeypatch):
    """Send this process a SIGTERM at a call; fail the test if no handler is set."""

    def fail(number, frame):
        raise AssertionError("nobody listens")

    def signal_at(owner, name):
        original = getattr(owner, name)

        def call(*args, **options):
            os.kill(os.getpid(), signal.SIGTERM)
            return original(*args, **options)

        monkeypatch.setattr(owner, name, call)

    before = signal.signal(signal.SIGTERM, fail)
    yield signal_at
    signal.signal(signal.SIGTERM, before)


def test_a_signal_while_loading_stops_before_the_first_step(
    small_config, tmp_path, signal_at
):
    signal_at(set_up, "make_step")
    with pytest.raises(Stopped, match="SIGTERM at step 0 of 4, nothing to save yet"):
        train(small_config(), tmp_path)


@pytest.mark.release
def test_a_signal_while_the_last_checkpoint_is_written_waits_for_it(
    small_config, tmp_path, signal_at
):
    signal_at(Checkpoints, "close")
    state = train(small_config(max_hours=1e-9), tmp_path)
    assert int(state.step) == 1
    assert damage(tmp_path / "checkpoints" / "1") is None


def test_batches_that_do_not_divide_are_refused_before_anything_is_loaded(
    small_config, tmp_path
):
    config = small_config(gradient_accumulation_steps=3)
    with pytest.raises(UserError, match="gradient_accumulation_steps=3"):
        train(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.release
def test_data_without_a_held_out_split_train_all_the_same(
    small_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(set_up, "held_out", lambda data: None)
    train(small_config(), tmp_path)
    written = rows(tmp_path)
    assert all(not row["val/loss"] for row in written.values())
    assert not any(name.startswith("val/edge") for name in written[4])
    # It is the metric of training examples.
    assert float(written[4]["train/edge_f1"]) >= 0
    assert (tmp_path / "samples" / "0000004.png").is_file()
