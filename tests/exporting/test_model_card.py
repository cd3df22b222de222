"""Model cards state true facts, and their code runs."""

import dataclasses
import functools
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load

import medjax
from configs.cxr_controlnet import VARIANTS, get_config
from medjax.data.config import DataConfig
from medjax.data.phantoms import PhantomsConfig
from medjax.data.pipeline import dataset_identity
from medjax.exporting.formats import Export
from medjax.exporting.model_card import command, config_file, model_card
from medjax.pretrained.tiny import tiny_stable_diffusion
from medjax.runs.config import parse
from medjax.runs.open_run import Run

PIPELINE = Export("chests", "pipeline", "float16")
# A card does not depend on the weights.
SD = functools.cache(tiny_stable_diffusion)


def run(variant="", base="", dataset="", **changes) -> Run:
    """Return a run of which only the card is wanted, on phantoms by default."""
    own = {"source": dataset, "fingerprint": Path(dataset).name}
    config = get_config(variant)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    config.model.pretrained = base
    phantoms = DataConfig(
        phantoms=PhantomsConfig(findings=tuple(config.data.phantoms.findings))
    )
    return Run(
        model=SD(),
        config=parse(config),
        step=700,
        weights="ema",
        trained=("controlnet",),
        metrics={"val/loss": 0.125, "host_memory_gib": 3.0, "train/loss": 0.5},
        base={"source": base, "fingerprint": "b" * 16},
        dataset=own if dataset else dataset_identity(phantoms),
    )


def metadata(text, folder):
    (folder / "README.md").write_text(text)
    return metadata_load(folder / "README.md")


def block(text, kind, number=0):
    """Return one of the card's blocks of code."""
    return re.findall(rf"```{kind}\n(.*?)```", text, re.S)[number]


@pytest.mark.parametrize("variant", VARIANTS)
def test_its_config_is_the_runs(variant):
    config = run(variant, base="stabilityai/stable-diffusion-2-1").config
    scope = {}
    exec(config_file(config), scope)
    assert parse(scope["get_config"]()) == config
    assert command(config) == "python -m medjax.train --config=config.py --workdir=DIR"


def test_no_place_of_this_machine_is_told(tmp_path):
    (tmp_path / "start").mkdir()
    places = {
        "data__root": str(tmp_path / "secret" / "cohort"),
        "model__controlnet": str(tmp_path / "start"),
    }
    secret = run(
        base=str(tmp_path / "base"), dataset=str(tmp_path / "cohort"), **places
    )
    for export in (PIPELINE, Export("x", "single_file", "float32", "control_x.safe")):
        text = model_card(secret, export)
        assert str(tmp_path) not in text and "secret" not in text
    assert "`base`" in text and "`start`" in text and "`cohort`" in text
    assert command(secret.config).endswith(
        "--config.data.root=DATA --config.model.pretrained=BASE "
        "--config.model.controlnet=CONTROLNET"
    )
    scope = {}
    exec(config_file(secret.config), scope)
    config = scope["get_config"]()
    config.data.root, config.model.pretrained = (
        places["data__root"],
        secret.base["source"],
    )
    config.model.controlnet = places["model__controlnet"]
    assert parse(config) == secret.config


def test_metadata_are_the_hubs(tmp_path):
    text = model_card(run(base="stabilityai/stable-diffusion-2-1"), PIPELINE)
    found = metadata(text, tmp_path)
    assert found["license"] == "openrail++"
    assert found["base_model"] == "stabilityai/stable-diffusion-2-1"
    assert found["library_name"] == "diffusers"
    assert found["pipeline_tag"] == "text-to-image"
    assert "controlnet" in found["tags"]
    assert ModelCardData(**found).to_dict() == found
    found = metadata(model_card(run("demo"), PIPELINE), tmp_path)
    assert found["license"] == "apache-2.0" and "base_model" not in found


def test_licences_are_named_or_said_to_be_unknown(tmp_path):
    text = model_card(run(data__root=str(tmp_path / "none")), PIPELINE)
    assert "Licence: unknown. The data were not found" in text
    text = model_card(run("demo"), PIPELINE)
    assert "Licence: Apache-2.0, because medjax computed the data." in text
    text = model_card(run(model__controlnet="lllyasviel/sd-controlnet-canny"), PIPELINE)
    assert (
        "`lllyasviel/sd-controlnet-canny` (licence: openrail). This licence also "
        "applies to this ControlNet." in text
    )
    base = tmp_path / "base"
    base.mkdir()
    assert "license: unknown\n" in model_card(run(base=str(base)), PIPELINE)
    # An export of ours is a base too, and hands on what it says.
    other = run(base="stable-diffusion-v1-5/stable-diffusion-v1-5")
    (base / "README.md").write_text(model_card(other, PIPELINE))
    again = model_card(run(base=str(base)), PIPELINE)
    assert "license: creativeml-openrail-m\n" in again


def test_prepared_data_speak_for_themselves(tmp_path):
    from medjax.prepare import prepare
    from tests.images import write_image

    for number in range(24):
        write_image(tmp_path / "raw" / f"{number}.png", 24, 24, seed=number)
    prepare("folder", tmp_path / "raw", tmp_path / "data")
    made = run(data__root=str(tmp_path / "data"))
    known = dataclasses.replace(made, dataset=dataset_identity(made.config.data))
    text = model_card(known, PIPELINE)
    assert "`folder/1.0.0` (fingerprint" in text and "train (" in text
    assert "Licence: unknown, because the prepared data do not state it." in text
    # Other data in its place are not the run's.
    assert "data were not found" in model_card(made, PIPELINE)


def test_condition_and_measures_are_told():
    text = model_card(run("demo"), PIPELINE)
    assert "Canny edges, white on black (OpenCV, thresholds 100 and 200" in text
    assert "Gaussian blur with σ = 1 px)" in text
    assert "| val/loss | 0.125 |" in text and "host_memory_gib" not in text
    assert "after 700 steps with 8 images each" in text
    assert "also trained" not in text
    both = dataclasses.replace(run("demo"), trained=("controlnet", "unet"), metrics={})
    text = model_card(both, PIPELINE)
    assert "The U-Net was also trained." in text
    assert "No metrics were measured at this step." in text


@pytest.mark.parametrize("kind", ["pipeline", "controlnet", "single_file"])
def test_its_code_is_python(kind):
    export = Export("me/chests", kind, "bfloat16", "control_x.safetensors")
    code = block(model_card(run(base="a/b"), export), "python")
    compile(code, "card", "exec")
    assert '"me/chests' in code and "torch.bfloat16" in code
    assert ("control_x.safetensors" in code) == (kind == "single_file")
    assert ('"a/b"' in code) == (kind != "pipeline")


def test_its_code_samples_as_the_run_does():
    ours = run("demo", eval__sampler_steps=37, eval__guidance_scale=3.5)
    code = block(model_card(ours, PIPELINE), "python")
    assert "num_inference_steps=37, guidance_scale=3.5" in code


@pytest.mark.parametrize(
    ("name", "base", "kind", "told"),
    [
        ("me/chests", "a/b", "controlnet", False),
        ("me/chests", "/there/base", "controlnet", True),
        ("me/chests", "/there/base", "pipeline", False),
        ("chests", "a/b", "pipeline", True),
    ],
)
def test_folders_in_its_code_are_said_to_be_ones(name, base, kind, told):
    text = model_card(run(base=base), Export(name, kind, "float16"))
    assert ("replace each folder name" in text) == told


def test_phantom_sd_is_a_folder_that_diffusers_can_read():
    text = model_card(run(base="phantom-sd"), Export("x", "controlnet", "float32"))
    place = "medjax/pretrained/phantom_sd"
    assert f'"{place}", controlnet=controlnet' in text
    assert (Path(medjax.__file__).parents[1] / place / "model_index.json").is_file()
