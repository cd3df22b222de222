"""The two routes give the same bits; where the Flax one cannot be taken, it says so."""

import importlib.metadata
import importlib.util

import pytest

from medjax.errors import UserError
from medjax.pretrained import flax_pipelines, load_controlnet, save_controlnet
from tests.pretrained.small import network


def without(monkeypatch, **versions):
    """Let these libraries have these versions; None is none at all."""
    find, version = importlib.util.find_spec, importlib.metadata.version
    monkeypatch.setattr(
        flax_pipelines.importlib.util,
        "find_spec",
        lambda name: versions[name] and "spec" if name in versions else find(name),
    )
    monkeypatch.setattr(
        flax_pipelines.importlib.metadata,
        "version",
        lambda name: versions[name] if name in versions else version(name),
    )


@pytest.mark.parametrize(
    "versions",
    [
        {"diffusers": None, "transformers": "5.1.0"},
        {"diffusers": "0.40.1", "transformers": "4.57.6"},
        {"diffusers": "0.39.0", "transformers": "5.0.0rc1"},
    ],
)
def test_without_the_pinned_pair_the_error_says_what_is_there(
    versions, monkeypatch, tmp_path
):
    save_controlnet(network("controlnet"), tmp_path)
    without(monkeypatch, **versions)
    with pytest.raises(UserError) as error:
        load_controlnet(tmp_path, route="flax-pipelines")
    message = str(error.value)
    assert "\n" not in message
    for part in ('pip install "medjax[flax-pipelines]"', "0.39.0", "4.57.6"):
        assert part in message
    for name, version in versions.items():
        assert f"{name} {version or 'missing'}" in message


def test_versions_with_flax_are_enough(monkeypatch):
    without(monkeypatch, diffusers="0.39.0", transformers="4.57.6")
    flax_pipelines.check_installed()


def test_without_torch_the_error_says_so(monkeypatch, tmp_path):
    save_controlnet(network("controlnet"), tmp_path)
    without(monkeypatch, diffusers="0.39.0", transformers="4.57.6", torch=None)
    with pytest.raises(UserError, match=r"torch, which is not installed.*safetensors"):
        load_controlnet(tmp_path, route="flax-pipelines")
