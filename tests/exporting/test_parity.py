"""Exports in float32 whose networks differ in PyTorch are refused; others are not."""

import json

import pytest

from medjax.errors import UserError
from medjax.exporting import parity
from medjax.exporting.formats import FORMATS, Export
from medjax.exporting.parity import MAX_ERROR, write_parity
from tests.exporting.test_model_card import SD, run

FOLDERS = [name for name in FORMATS if name not in ("single_file", "lora", "kohya")]


def write(monkeypatch, folder, export, error):
    """Write a report in which the second of two networks has this error."""
    networks = {"vae": {"relative_l2": 1e-6}, "unet": {"relative_l2": error}}
    monkeypatch.setattr(parity, "_measured", lambda *_: {"networks": networks})
    write_parity(run(), SD(), folder, export)
    return json.loads((folder / "parity.json").read_text())


@pytest.mark.parametrize("format", FOLDERS)
def test_float32_has_a_limit(format, monkeypatch, tmp_path):
    export = Export("x", format, "float32")
    assert write(monkeypatch, tmp_path, export, MAX_ERROR)["stored"] == "float32"
    with pytest.raises(UserError, match="unet differs .* is 1.1e-04. Expected at most"):
        write(monkeypatch, tmp_path, export, 1.1e-4)
    with pytest.raises(UserError, match="unet computes NaN. .* an earlier --step"):
        write(monkeypatch, tmp_path, export, float("nan"))


@pytest.mark.parametrize("format", FOLDERS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_lower_precisions_have_none_and_their_error_is_recorded(
    format, dtype, monkeypatch, tmp_path
):
    report = write(monkeypatch, tmp_path, Export("x", format, dtype), 0.01)
    assert report["stored"] == dtype
    assert report["networks"]["unet"]["relative_l2"] == 0.01
