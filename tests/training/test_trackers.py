"""Trackers get numbers and generated images, and never stop a run."""

import dataclasses
import json
import logging
import socket
from pathlib import Path

import numpy as np
import pytest

from medjax.errors import UserError
from medjax.runs.config import parse
from medjax.training import trackers
from medjax.training.loop import train
from medjax.training.trackers import Trackers, shareable
from tests.tiny_unconditional import get_config


class Recorder:
    """A tracker in memory."""

    def __init__(self, *_):
        self.scalars, self.images, self.closed = {}, {}, False

    def log(self, step, scalars):
        self.scalars.setdefault(step, {}).update(scalars)

    def log_image(self, step, name, image):
        self.images[step, name] = image

    def close(self, failed):
        self.closed = True


class Failing(Recorder):
    """A tracker whose every call fails."""

    calls = 0

    def log(self, step, scalars):
        type(self).calls += 1
        raise ConnectionError("no route to host")


def config(*names, **log):
    made = get_config()
    made.train.steps = 1
    made.log.update(trackers=names, **log)
    return parse(made)


@pytest.fixture
def recorder(monkeypatch):
    made = Recorder()
    monkeypatch.setitem(trackers._TRACKERS, "tensorboard", lambda *_: made)
    return made


def test_unknown_trackers_are_refused_by_name():
    with pytest.raises(UserError, match=r"log\.trackers=.*did you mean 'wandb'"):
        config("wanbd")


def test_one_that_is_not_installed_is_named_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install wandb"):
        train(config("wandb"), tmp_path)


@pytest.mark.parametrize("real", [False, True])
def test_real_images_go_to_a_tracker_only_if_asked_for(recorder, tmp_path, real):
    train(config("tensorboard", real_images=real), tmp_path)
    assert recorder.closed
    assert recorder.scalars[1].keys() >= {"train/loss", "val/loss"}
    page = recorder.images[1, "samples"]
    # The columns are "generated" and "real", and two images are sampled.
    whole = np.asarray(sample_page(tmp_path))
    assert (page.shape == whole.shape) == real
    assert page.shape[1] < whole.shape[1] or real


def sample_page(workdir: Path):
    from PIL import Image

    return Image.open(workdir / "samples" / "0000001.png").convert("RGB")


def test_one_that_fails_is_dropped_with_one_warning(
    recorder, monkeypatch, tmp_path, caplog
):
    monkeypatch.setitem(trackers._TRACKERS, "wandb", Failing)
    with Trackers(config("wandb", "tensorboard"), tmp_path, None) as both:
        both.log(1, {"a": 1.0})
        both.log(2, {"a": 2.0})
    assert Failing.calls == 1
    assert recorder.scalars == {1: {"a": 1.0}, 2: {"a": 2.0}}
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "wandb failed" in line
    assert "ConnectionError: no route to host" in line


def test_one_that_cannot_open_is_dropped(recorder, monkeypatch, tmp_path, caplog):
    def broken(*_):
        raise OSError("no space")

    monkeypatch.setitem(trackers._TRACKERS, "wandb", broken)
    with Trackers(config("wandb", "tensorboard"), tmp_path, None) as both:
        both.log(1, {"a": 1.0})
    assert recorder.scalars
    assert "OSError: no space. Training continues" in caplog.text


@pytest.mark.parametrize("root", ["/data/scans", "~/ward7/scans", "gs://x/y/scans"])
def test_no_path_of_this_machine_is_shared(root):
    run = config()
    data = dataclasses.replace(run.data, root=root, cache="not/there/yet")
    shared = shareable(dataclasses.replace(run, data=data))
    assert (shared["data.root"], shared["data.cache"]) == (Path(root).name, "yet")
    assert shared["train.steps"] == 1


@pytest.mark.ci
def test_a_resumed_run_continues_its_run_at_weights_and_biases(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = config("wandb")
    for restored in (None, 1):
        with Trackers(run, tmp_path, restored) as opened:
            opened.log(2, {"train/loss": 0.5})
            opened.log_image(2, "samples", np.zeros((4, 6, 3), np.uint8))
            assert opened._open, "wandb failed"
        assert opened._open, "wandb failed at its end"
    kept = json.loads((tmp_path / "wandb.json").read_text())["id"]
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert all(kept in file.name for file in files)
    content = b"".join(file.read_bytes() for file in files)
    assert b"train/loss" in content
    assert str(tmp_path).encode() not in content
    assert socket.gethostname().encode() not in content
    assert list(tmp_path.glob("wandb/*/files/media/images/*.png"))
