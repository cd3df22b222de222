"""Configs are found by path, by name, and beside the config that names them."""

import ast
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from medjax import config_files
from medjax.config_files import find_config, load_config, named_beside
from medjax.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_bare_name_is_one_that_comes_with_medjax(elsewhere):
    found = find_config("config", "cxr_controlnet:demo")
    assert found == f"{CONFIGS / 'cxr_controlnet.py'}:demo"
    assert load_config("config", "knee_ddpm").task == "unconditional"
    assert config_files.packaged_names() == sorted(p.stem for p in CONFIGS.glob("*.py"))


def test_a_wheel_has_them_inside_the_package(elsewhere, monkeypatch):
    inside = elsewhere / "medjax" / "_configs"
    inside.mkdir(parents=True)
    (inside / "only.py").write_text(
        "def get_config(variant=''):\n    return {'a': 1}\n"
    )
    monkeypatch.setattr(config_files, "_PACKAGE", inside.parent)
    assert config_files.packaged_names() == ["only"]
    assert load_config("config", "only") == {"a": 1}


def test_an_existing_path_wins(elsewhere):
    (elsewhere / "cxr_controlnet.py").write_text("def get_config():\n    return {}\n")
    assert find_config("config", "cxr_controlnet.py") == "cxr_controlnet.py"
    # A name is not a path, whatever files are here.
    assert str(CONFIGS) in find_config("config", "cxr_controlnet")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("cxr_controlnt", "did you mean 'cxr_controlnet'?"),
        ("configs/cxr_controlnt.py:demo", "did you mean 'cxr_controlnet'?"),
        ("mine.p", "did you mean 'mine.py'?"),
        ("zzz", "here are mine.py"),
        ("", "--config= is empty. Expected a config: --config=brain_ldm"),
    ],
)
def test_a_missing_config_names_the_nearest_and_all_names(elsewhere, file, words):
    (elsewhere / "mine.py").touch()
    with pytest.raises(UserError, match=re.escape(words)) as raised:
        find_config("config", file)
    if file:
        assert "brain_ldm, brain_vqvae" in str(raised.value)


def naming(file: str) -> ConfigDict:
    return ConfigDict({"model": {"autoencoder_config": file}})


@pytest.mark.parametrize(
    ("named", "by", "found"),
    [
        ("first.py:a", "own/second.py", "own/first.py:a"),
        ("first:a", "own/second.py:b", "own/first.py:a"),
        ("deep/first.py", "own/second.py", "own/deep/first.py"),
        ("/first.py", "own/second.py", None),
        ("brain_vqvae", "own/second.py", None),
        ("brain_vqvae:demo", str(CONFIGS / "brain_ldm.py"), None),
        ("", "own/second.py", None),
    ],
)
def test_a_first_stage_is_found_from_the_config_that_names_it(
    elsewhere, named, by, found
):
    """The file of the same name in the working folder is not used."""
    for folder in (elsewhere, elsewhere / "own"):
        folder.mkdir(exist_ok=True)
        (folder / "first.py").touch()
    changed = named_beside(naming(named), by)
    assert changed == ({} if found is None else {"model.autoencoder_config": found})


def test_a_copy_of_a_packaged_config_names_the_copy_beside_it(elsewhere):
    for name in ("brain_ldm", "brain_vqvae"):
        text = (CONFIGS / f"{name}.py").read_text(encoding="utf-8")
        (elsewhere / f"{name}.py").write_text(text, encoding="utf-8")
    config = load_config("config", "brain_ldm.py:demo")
    changed = named_beside(config, "brain_ldm.py:demo")
    assert changed == {"model.autoencoder_config": "brain_vqvae.py:demo"}


def test_configs_import_only_what_a_wheel_has():
    for path in CONFIGS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in ("medjax", "ml_collections"), path
            assert not isinstance(node, ast.Import), path


def test_each_first_stage_that_a_packaged_config_names_is_packaged(elsewhere):
    for name in ("brain_ldm", "phantom_sd"):
        config = load_config("config", name)
        first = load_config("autoencoder_config", config.model.autoencoder_config)
        assert first.task in ("vq_vae", "autoencoder_kl")
