"""The cards of models without captions state true facts, and their code runs."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from medjax.diffusion.sampling_config import SamplingConfig
from medjax.export import export
from medjax.exporting.formats import Export
from medjax.exporting.image_card_texts import sample_code
from medjax.exporting.model_card import model_card
from medjax.runs.open_run import load_run
from tests import fake_hub
from tests.exporting import tracks, without_medjax

FIRST = re.compile(r"```python\n(.*?)```", re.DOTALL)


def run_card(folder, before=""):
    """Run the code of a card beside its folder, without medjax; return the image."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(folder.parent / "image.png")
    code = FIRST.search((folder / "README.md").read_text())[1]
    assert len([line for line in code.splitlines() if line]) <= 14
    done = without_medjax.run_code(before + code, folder.parent)
    assert done.returncode == 0, done.stderr
    name = "reconstruction" if "reconstruction.png" in code else "image"
    image = Image.open(folder.parent / f"{name}.png")
    assert (image.mode, image.size) == ("L", (tracks.SIZE, tracks.SIZE))
    return image


def test_the_process_of_the_code_cannot_import_medjax(tmp_path):
    done = without_medjax.run_code("import medjax", tmp_path)
    assert "ModuleNotFoundError: import of medjax halted" in done.stderr


@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("knee", ("DDIMPipeline", "eta=1", "library_name: diffusers")),
        ("brain", ('labels=["AD"]', "guidance_scale=2", "`AD`, `NC`")),
        ("brain/autoencoder", ('.convert("L")', "library_name: pytorch")),
    ],
)
def test_a_card_says_what_it_is_and_its_code_runs(name, words, runs, exports, tmp_path):
    place = tracks.export_name(name)
    folder = shutil.copytree(exports / place, tmp_path / place)
    card = (folder / "README.md").read_text()
    assert all(word in card for word in (*words, "| val/loss |")), name
    assert "stable-diffusion" not in card and "license: apache-2.0" in card
    assert "replace each folder name" in card and str(tmp_path) not in card
    run_card(folder)
    # Python may leave its compiled form there. It is not a foreign file.
    (folder / "__pycache__").mkdir(exist_ok=True)
    again = export(runs / name, folder, parity=False, overwrite=True)
    assert not (again / "__pycache__").exists()


@pytest.mark.parametrize("name", tracks.RUNS)
def test_an_export_is_pushed_to_a_private_repository(name, runs, tmp_path, monkeypatch):
    hub = fake_hub.install(monkeypatch)
    folder = export(runs / name, tmp_path / "x", parity=False, push_to="me/scans")
    (kind, repository, options), (_, sent) = hub.calls
    assert (kind, repository) == ("create", "me/scans")
    assert options == {"private": True, "exist_ok": True}
    assert (sent["folder_path"], sent["repo_id"]) == (folder, "me/scans")
    assert sent["commit_message"] == "Step 2, by medjax"
    card = (folder / "README.md").read_text()
    code = FIRST.search(card)[1]
    compile(code, "card", "exec")
    loads = "from_pretrained(\n    " if name == "knee" else "snapshot_download("
    assert f'{loads}"me/scans"' in code and "replace each folder name" not in card


@pytest.mark.ci
@pytest.mark.parametrize("name", ["brain", "brain/autoencoder"])
def test_the_code_of_a_pushed_card_runs(name, runs, tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="torch absent")
    fake_hub.install(monkeypatch)
    folder = export(runs / name, tmp_path / "x", parity=False, push_to="me/scans")
    downloads = "import huggingface_hub\nhuggingface_hub.snapshot_download = "
    run_card(folder, f"{downloads}{{'me/scans': {str(folder)!r}}}.__getitem__\n")


@pytest.mark.parametrize(
    ("sampler", "eta", "pipeline", "own"),
    [
        ("ddim", 0.0, "DDIMPipeline", ""),
        ("ddim", 0.5, "DDIMPipeline", "eta=0.5"),
        ("ddpm", 0.0, "DDPMPipeline", 'sampler="ddpm"'),
        ("dpmpp_2m", 0.0, "DDIMPipeline", ""),
    ],
)
def test_the_code_samples_as_the_run_does(sampler, eta, pipeline, own, runs):
    run = load_run(runs / "knee")
    changes = {"sampler": sampler, "sampler_eta": eta, "sampler_steps": 37}
    evaluation = dataclasses.replace(run.config.eval, **changes)
    config = dataclasses.replace(run.config, eval=evaluation)
    run = dataclasses.replace(run, config=config)
    for kind in ("pipeline", "pytorch"):
        card = model_card(run, Export("x", kind, "float32"))
        code = FIRST.search(card)[1]
        compile(code, "card", "exec")
        assert "steps=37" in code
        assert ("This code has no dpmpp_2m and uses ddim" in card) == (
            sampler == "dpmpp_2m"
        )
        if kind == "pipeline":
            assert f"import {pipeline}\n" in code
            assert ("eta" in code) == (pipeline == "DDIMPipeline")
        else:
            assert (own in code) and ("generator=generator" in code) == bool(own)


def test_a_class_with_quotation_marks_is_a_string_of_python():
    label = 'grade "2"'
    code = sample_code(SamplingConfig("ddim", guidance_scale=1.0), (label,))
    assert eval(f"dict({code['labels']})") == {"labels": [label]}


@pytest.mark.release
@pytest.mark.parametrize("format", ["pipeline", "pytorch"])
def test_the_code_of_ddpm_runs(format, tmp_path):
    pytest.importorskip("torch", reason="torch absent")
    pytest.importorskip("diffusers", reason="diffusers absent")
    changes = {"eval__sampler": "ddpm", "eval__sampler_eta": 0.0}
    tracks.save_ddpm(tmp_path / "run", **tracks.UNET, **changes)
    run_card(export(tmp_path / "run", tmp_path / "x", format=format, parity=False))
