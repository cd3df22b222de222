"""A ControlNet in one file comes back, here and through diffusers, to the same bits."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from medjax.errors import UserError
from medjax.models.controlnet import ControlNet
from medjax.pretrained import Network, load_controlnet, save_controlnet
from medjax.pretrained.single_file_out import save_controlnet_file
from tests.pretrained import original
from tests.pretrained.original import CONTROLNET
from tests.pretrained.small import assert_same, network
from tests.pretrained.test_single_file import SIZES, write


def drawn(kind) -> dict[str, np.ndarray]:
    """Return a small ControlNet with every weight drawn, as the original has it."""
    weights = original.drawn(original.controlnet(SIZES[kind]))
    return {CONTROLNET + name: weight for name, weight in weights.items()}


def loaded(kind, folder) -> Network:
    return load_controlnet(write(folder / "first.safetensors", drawn(kind)))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("sd1", "float16"),
        ("sd2", "float32"),
        pytest.param("sd1", "float32", marks=pytest.mark.ci),
        pytest.param("sd2", "float16", marks=pytest.mark.ci),
        pytest.param("sd1", "bfloat16", marks=pytest.mark.ci),
        pytest.param("sd2", "bfloat16", marks=pytest.mark.ci),
    ],
)
def test_the_file_has_the_originals_names_and_values(kind, dtype, tmp_path):
    file = tmp_path / "control_x.safetensors"
    save_controlnet_file(loaded(kind, tmp_path), file, jnp.dtype(dtype))
    written, wanted = load_file(file), drawn(kind)
    assert written.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert written[name].dtype == dtype
        np.testing.assert_array_equal(written[name], weight.astype(dtype), name)
    again = load_controlnet(file, dtype=dtype)
    first = load_controlnet(tmp_path / "first.safetensors", dtype=dtype)
    assert_same(again.params, first.params)
    assert again.module == first.module


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_diffusers_own_conversion_gives_the_weights_of_our_folder(kind, tmp_path):
    torch = pytest.importorskip("torch", reason="torch absent")
    diffusers = pytest.importorskip("diffusers", reason="diffusers absent")
    controlnet = loaded(kind, tmp_path)
    save_controlnet_file(controlnet, tmp_path / "control_x.safetensors")
    save_controlnet(controlnet, tmp_path / "folder")
    by_file = diffusers.ControlNetModel.from_single_file(
        str(tmp_path / "control_x.safetensors"), config=str(tmp_path / "folder")
    )
    by_folder = diffusers.ControlNetModel.from_pretrained(tmp_path / "folder")
    a, b = by_file.state_dict(), by_folder.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_the_channel_order_and_other_things_unseen_are_refused(tmp_path):
    controlnet = loaded("sd1", tmp_path)
    file = tmp_path / "control_x.safetensors"
    for key, value in {
        "controlnet_conditioning_channel_order": "bgr",
        "norm_num_groups": 16,
        "attention_head_dim": [4, 8],
    }.items():
        config = {**controlnet.config, key: value}
        other = dataclasses.replace(controlnet, config=config)
        with pytest.raises(
            UserError, match=rf"configuration, .* {key}=.*readers assume"
        ):
            save_controlnet_file(other, file)
    alike = {**controlnet.config, "attention_head_dim": [8, 8]}
    save_controlnet_file(dataclasses.replace(controlnet, config=alike), file)
    assert load_controlnet(file).module == ControlNet.from_config(controlnet.config)


def test_one_of_other_sizes_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="requires one: .*not divisible by 32"):
        save_controlnet_file(network("controlnet"), tmp_path / "control_x.safetensors")
    assert list(tmp_path.iterdir()) == []
