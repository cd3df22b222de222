"""Folders in and out, without torch; and what is said when it cannot be done."""

import dataclasses
import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from medjax import trees
from medjax.errors import UserError
from medjax.pretrained import (
    Network,
    load_controlnet,
    load_controlnet_config,
    load_stable_diffusion,
    save_controlnet,
    save_stable_diffusion,
)
from tests.pretrained.small import assert_same, network, rewrite, stable_diffusion

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    """Where a ControlNet is saved."""
    save_controlnet(network("controlnet"), tmp_path / "net")
    return tmp_path / "net"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    sd = stable_diffusion()
    folder = tmp_path_factory.mktemp("sd")
    save_stable_diffusion(sd, folder)
    return sd, folder


@pytest.mark.parametrize(
    "kind", ["sd1", "sd2", pytest.param("odd", marks=pytest.mark.ci)]
)
def test_a_controlnet_comes_back_bit_for_bit(kind, tmp_path):
    saved = network("controlnet", kind)
    save_controlnet(saved, tmp_path)
    loaded = load_controlnet(tmp_path)
    assert_same(loaded.params, saved.params)
    assert saved.config.items() <= loaded.config.items()
    assert loaded.module == saved.module


def test_a_stable_diffusion_comes_back_bit_for_bit(whole, tmp_path):
    sd, folder = whole
    loaded = load_stable_diffusion(folder)
    for name in ("unet", "vae", "text_encoder"):
        assert_same(getattr(loaded, name).params, getattr(sd, name).params)
    text = "Chest X-ray with cardiomegaly"
    assert loaded.tokenizer(text)["input_ids"] == sd.tokenizer(text)["input_ids"]
    assert loaded.schedule.config == sd.schedule.config | {
        "_diffusers_version": loaded.schedule.config["_diffusers_version"]
    }
    np.testing.assert_array_equal(
        loaded.schedule.alphas_cumprod, sd.schedule.alphas_cumprod
    )
    save_stable_diffusion(loaded, tmp_path)
    # How a tokenizer is written is transformers' affair.
    again, first = (
        {f.relative_to(home): f.read_bytes() for f in home.rglob("*") if f.is_file()}
        for home in (tmp_path, folder)
    )
    assert again.keys() == first.keys()
    for file in again:
        assert file.parts[0] == "tokenizer" or again[file] == first[file], file


def test_the_index_says_what_torch_pipelines_need(whole):
    index = json.loads((whole[1] / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    assert index["safety_checker"] == [None, None]


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("asked", [jnp.float32, jnp.bfloat16])
def test_any_stored_dtype_becomes_the_one_asked_for(folder, stored, asked):
    before = load_controlnet(folder).params
    rewrite(
        folder / WEIGHTS, lambda t: {name: x.astype(stored) for name, x in t.items()}
    )
    loaded = load_controlnet(folder, dtype=asked)
    assert loaded.module.dtype == asked
    assert_same(loaded.params, trees.cast(trees.cast(before, stored), asked))


def test_bfloat16_weights_are_stored_as_such(tmp_path):
    saved = network("controlnet", dtype="bfloat16")
    save_controlnet(saved, tmp_path)
    assert {x.dtype.name for x in load_file(tmp_path / WEIGHTS).values()} == {
        "bfloat16"
    }
    assert_same(load_controlnet(tmp_path, dtype="bfloat16").params, saved.params)


def test_a_text_encoders_config_says_the_stored_dtype(whole, tmp_path):
    _, folder = whole
    half = load_stable_diffusion(folder, dtype=jnp.bfloat16)
    config = {**half.text_encoder.config, "torch_dtype": "float32"}
    encoder = Network(half.text_encoder.module, half.text_encoder.params, config)
    save_stable_diffusion(
        type(half)(half.unet, half.vae, encoder, half.tokenizer, half.schedule),
        tmp_path,
    )
    written = json.loads((tmp_path / "text_encoder" / "config.json").read_text())
    assert written["torch_dtype"] == "bfloat16"


def test_shards_are_read(folder):
    expected = load_controlnet(folder).params
    tensors = load_file(folder / WEIGHTS)
    names, stem = list(tensors), WEIGHTS.removesuffix(".safetensors")
    weight_map = {}
    for i, held in enumerate((names[::2], names[1::2])):
        shard = f"{stem}-{i + 1:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in held}, folder / shard)
        weight_map |= dict.fromkeys(held, shard)
    (folder / WEIGHTS).unlink()
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_same(load_controlnet(folder).params, expected)


def test_the_half_precision_variant_is_read_where_it_is_the_only_one(folder):
    expected = load_controlnet(folder).params
    half = folder / "diffusion_pytorch_model.fp16.safetensors"
    (folder / WEIGHTS).rename(half)
    assert_same(load_controlnet(folder).params, expected)
    rewrite(half, lambda t: {n: x.astype(np.float16) for n, x in t.items()})
    low = load_controlnet(folder).params
    save_controlnet(network("controlnet"), folder)
    assert_same(load_controlnet(folder).params, expected)
    assert not np.array_equal(low["conv_in"]["kernel"], expected["conv_in"]["kernel"])


@pytest.mark.parametrize("old", ["dense", "convolution"])
def test_old_autoencoders_names_are_read(whole, tmp_path, old):
    sd, _ = whole
    save_stable_diffusion(sd, tmp_path)
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors):
        renamed = {}
        for name, tensor in tensors.items():
            module, _, leaf = name.rpartition(".")
            for modern, deprecated in new.items():
                if module.endswith(f"attentions.0.{modern}"):
                    module = module.removesuffix(modern) + deprecated
                    if old == "convolution" and leaf == "weight":
                        tensor = tensor[:, :, None, None]
            renamed[f"{module}.{leaf}"] = tensor
        assert renamed.keys() != tensors.keys()
        return renamed

    rewrite(tmp_path / "vae" / WEIGHTS, rename)
    assert_same(load_stable_diffusion(tmp_path).vae.params, sd.vae.params)


def test_weights_that_do_not_fit_are_named_with_their_file(folder):
    def spoil(tensors):
        del tensors["controlnet_mid_block.bias"]
        tensors["conv_in.weight"] = tensors["conv_in.weight"][:-1]
        return tensors | {"lora.up.weight": np.zeros(3, np.float32)}

    rewrite(folder / WEIGHTS, spoil)
    with pytest.raises(UserError) as error:
        load_controlnet(folder)
    for part in (
        str(folder / WEIGHTS),
        "controlnet_mid_block.bias",
        "lora.up.weight",
        "conv_in.weight (15, 4, 3, 3) instead of (16, 4, 3, 3)",
    ):
        assert part in str(error.value)


def test_weights_that_do_not_fit_are_not_saved(tmp_path):
    net = network("controlnet")
    flat = trees.flatten(net.params)
    flat["extra/kernel"] = flat.pop("conv_in/bias")
    with pytest.raises(UserError, match=r"missing: conv_in/bias; .*: extra/kernel"):
        save_controlnet(
            Network(net.module, trees.unflatten(flat), net.config), tmp_path
        )
    assert not (tmp_path / WEIGHTS).exists()


def test_a_hub_id_without_the_hub_says_what_was_tried():
    with pytest.raises(UserError) as error:
        load_stable_diffusion("nobody/no-such-model")
    message = str(error.value)
    assert "\n" not in message
    for part in ("nobody/no-such-model", "no such local folder", "hub id", "hf auth"):
        assert part in message


@pytest.mark.parametrize(
    ("source", "said"),
    [("no/such/folder", "owner/name"), ("./missing", "no such local folder")],
)
def test_what_can_be_no_hub_id_is_said_to_be_none(source, said):
    with pytest.raises(UserError, match=said):
        load_controlnet(source)


def test_a_file_of_a_folder_is_loaded_by_its_folder(folder):
    with pytest.raises(UserError, match="give their folder"):
        load_controlnet(folder / WEIGHTS)


def test_missing_files_are_named(folder):
    with pytest.raises(UserError, match="scheduler_config.json is missing"):
        load_stable_diffusion(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=f"{WEIGHTS} is missing"):
        load_controlnet(folder, route="safetensors")
    (folder / "config.json").write_text("[")
    with pytest.raises(UserError, match="not valid JSON"):
        load_controlnet(folder)


def test_route_and_dtype_are_checked(folder):
    with pytest.raises(UserError, match="did you mean 'safetensors'"):
        load_controlnet(folder, route="safetensor")
    with pytest.raises(UserError, match="int32"):
        load_controlnet(folder, dtype=jnp.int32)


def test_a_pipelines_controlnet_comes_and_goes_with_it(whole, tmp_path):
    sd, folder = whole
    assert load_stable_diffusion(folder, controlnet=True).controlnet is None
    steered = dataclasses.replace(sd, controlnet=network("controlnet"))
    save_stable_diffusion(steered, tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionControlNetPipeline"
    assert index["controlnet"] == ["diffusers", "ControlNetModel"]
    assert load_stable_diffusion(tmp_path).controlnet is None
    loaded = load_stable_diffusion(tmp_path, controlnet=True)
    assert_same(loaded.controlnet.params, steered.controlnet.params)
    assert loaded.controlnet.module == steered.controlnet.module
    assert_same(loaded.unet.params, sd.unet.params)
    index["controlnet"] = ["diffusers.pipelines.controlnet", "MultiControlNetModel"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="MultiControlNetModel. Expected ControlNetMo"):
        load_stable_diffusion(tmp_path, controlnet=True)


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_weights_are_stored_as_asked_for(whole, tmp_path, stored):
    sd, _ = whole
    save_stable_diffusion(sd, tmp_path, dtype=stored)
    for name in ("unet", "vae", "text_encoder"):
        expected = trees.cast(trees.cast(getattr(sd, name).params, stored), "float32")
        assert_same(getattr(load_stable_diffusion(tmp_path), name).params, expected)
    half, whole_file = (
        (home / "unet" / WEIGHTS).stat().st_size for home in (tmp_path, whole[1])
    )
    assert half < 0.7 * whole_file


def test_a_weight_that_a_dtype_cannot_hold_is_named(tmp_path):
    net = network("controlnet")
    net.params["conv_in"]["bias"][0] = 1e5
    with pytest.raises(UserError, match=r"conv_in.bias reaches 1e\+05, .*bfloat16"):
        save_controlnet(net, tmp_path, dtype="float16")
    save_controlnet(net, tmp_path, dtype="bfloat16")
    with pytest.raises(UserError, match="int32"):
        save_controlnet(net, tmp_path, dtype="int32")


def test_a_controlnets_configuration_needs_no_weights(folder):
    (folder / WEIGHTS).unlink()
    config = load_controlnet_config(folder)
    assert config["conditioning_embedding_out_channels"] == [4, 8]
