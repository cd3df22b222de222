"""Original files: to the tree that diffusers' own conversion gives, or an error."""

import json

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import save_file

from medjax.errors import UserError
from medjax.models.clip_text import CLIPText
from medjax.pretrained import (
    layout,
    ldm_config,
    ldm_names,
    load_controlnet,
    load_stable_diffusion,
    names,
    save_stable_diffusion,
)
from medjax.pretrained.tiny import tiny_tokenizer
from medjax.pretrained.tokenizer import save_tokenizer
from medjax.trees import flatten
from tests.pretrained import original
from tests.pretrained.original import CLIP, CONTROLNET, OPEN_CLIP, UNET, VAE
from tests.pretrained.small import assert_same

SIZES = {"sd1": original.SD1, "sd2": original.SD2}
PARTS = layout.STABLE_DIFFUSION


@pytest.fixture
def beside(tmp_path):
    """A folder with a tokenizer, where checkpoints are put."""
    save_tokenizer(tiny_tokenizer(), tmp_path / "tokenizer")
    return tmp_path


def write(file, tensors):
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, file)
    return file


def write_by_torch(file, tensors, trainer=True):
    torch = pytest.importorskip("torch", reason="torch absent")
    state = {name: torch.from_numpy(np.array(x)) for name, x in tensors.items()}
    content = {"state_dict": state, "epoch": 1, "pytorch-lightning_version": "1.4.2"}
    torch.save(content if trainer else state, file)
    return file


def by_diffusers(kind, state, folder):
    """Convert by diffusers' functions, and write the networks as diffusers does."""
    torch = pytest.importorskip("torch", reason="torch absent")
    pytest.importorskip("diffusers", reason="diffusers absent")
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
    from diffusers.loaders import single_file_utils as convert
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = SIZES[kind]
    state = {name: torch.from_numpy(np.array(x)) for name, x in state.items()}
    levels = len(sizes["widths"])
    down = ["CrossAttn" * attends + "DownBlock2D" for attends in sizes["attends"]]
    shared = {
        "block_out_channels": sizes["widths"],
        "layers_per_block": sizes["layers"],
        "cross_attention_dim": sizes["text"],
        "down_block_types": down,
        "attention_head_dim": [1, 2] if kind == "sd2" else 8,
        "use_linear_projection": kind == "sd2",
    }
    up = [name.replace("Down", "Up") for name in reversed(down)]
    unet = UNet2DConditionModel(**shared, up_block_types=up, sample_size=64)
    unet.load_state_dict(convert.convert_ldm_unet_checkpoint(state, unet.config))
    unet.save_pretrained(folder / "unet")
    hint = sizes["hint"]
    net = ControlNetModel(**shared, conditioning_embedding_out_channels=hint)
    net.load_state_dict(convert.convert_controlnet_checkpoint(state, net.config))
    net.save_pretrained(folder / "controlnet")
    vae = AutoencoderKL(
        block_out_channels=sizes["vae"]["widths"],
        layers_per_block=sizes["vae"]["layers"],
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
    )
    kept = {name: x for name, x in state.items() if ".loss." not in name}
    vae.load_state_dict(convert.convert_ldm_vae_checkpoint(kept, vae.config))
    vae.save_pretrained(folder / "vae")
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=sizes["clip"]["words"],
            hidden_size=sizes["clip"]["width"],
            intermediate_size=4 * sizes["clip"]["width"],
            num_hidden_layers=sizes["clip"]["layers"],
            num_attention_heads=1,
            hidden_act="gelu" if kind == "sd2" else "quick_gelu",
        )
    )
    if kind == "sd2":
        converted = convert.convert_open_clip_checkpoint(text, state)
        # That function leaves out what is SD2's last layer by its number, 23.
        last = f"encoder.layers.{sizes['clip']['layers']}."
        converted = {n: x for n, x in converted.items() if last not in n}
    else:
        converted = convert.convert_ldm_clip_checkpoint(state)
        converted.pop("text_model.embeddings.position_ids")
    text.load_state_dict(converted)
    text.save_pretrained(folder / "text_encoder")
    save_tokenizer(tiny_tokenizer(), folder / "tokenizer")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
@pytest.mark.parametrize(
    "ending", [pytest.param("ckpt", marks=pytest.mark.ci), "safetensors"]
)
def test_it_is_the_tree_that_diffusers_conversion_gives(kind, ending, beside):
    shapes = original.whole(SIZES[kind])
    shapes.add(CONTROLNET, original.controlnet(SIZES[kind]))
    weights = original.drawn(shapes)
    if kind == "sd1":
        weights |= original.extras(shapes)
    by_diffusers(kind, weights, beside / "converted")
    writer = write_by_torch if ending == "ckpt" else write
    file = writer(beside / f"x.{ending}", weights)
    got, expected = (load_stable_diffusion(x) for x in (file, beside / "converted"))
    for name in PARTS:
        assert_same(getattr(got, name).params, getattr(expected, name).params)
        assert getattr(got, name).module == getattr(expected, name).module, name
    net = load_controlnet(file)
    expected = load_controlnet(beside / "converted" / "controlnet")
    assert_same(net.params, expected.params)
    assert net.module == expected.module


@pytest.mark.parametrize("prefix", [CONTROLNET, ""])
@pytest.mark.parametrize("ending", ["pth", "pt", "bin", "safetensors"])
def test_a_controlnet_alone_is_that_of_the_whole(prefix, ending, tmp_path):
    weights = original.drawn(original.controlnet(original.SD1))
    whole = write(
        tmp_path / "whole.safetensors",
        {CONTROLNET + name: x for name, x in weights.items()}
        | original.drawn(original.whole(original.SD1)),
    )
    named = {prefix + name: x for name, x in weights.items()}
    file = tmp_path / f"control.{ending}"
    if ending == "safetensors":
        write(file, named)
    else:
        write_by_torch(file, named, trainer=False)
    net = load_controlnet(file, dtype="bfloat16")
    assert_same(net.params, load_controlnet(whole, dtype="bfloat16").params)
    assert net.module.conditioning_embedding_out_channels == (4, 8, 8, 16)


@pytest.mark.ci
def test_what_is_loaded_can_be_saved_and_loaded(beside):
    weights = original.drawn(original.whole(original.SD1), np.float16)
    sd = load_stable_diffusion(write(beside / "x.safetensors", weights))
    assert sd.schedule.config["beta_schedule"] == "scaled_linear"
    assert sd.schedule.alphas_cumprod.shape == (1000,)
    assert sd.vae.module.scaling_factor == 0.18215
    save_stable_diffusion(sd, beside / "saved")
    again = load_stable_diffusion(beside / "saved")
    for name in PARTS:
        assert_same(getattr(sd, name).params, getattr(again, name).params)
        assert getattr(sd, name).module == getattr(again, name).module
    assert json.loads((beside / "saved/unet/config.json").read_text())["sample_size"]


def test_a_measured_scale_of_the_latents_is_kept(beside):
    weights = original.drawn(original.whole(original.SD1))
    weights["scale_factor"] = np.float32(0.5).reshape(())
    sd = load_stable_diffusion(write(beside / "x.safetensors", weights))
    assert sd.vae.module.scaling_factor == 0.5


@pytest.mark.parametrize("scale", [[], [1.0, 2.0], np.nan, np.inf])
def test_a_scale_of_the_latents_that_is_none_is_refused(beside, scale):
    weights = original.drawn(original.whole(original.SD1))
    weights["scale_factor"] = np.asarray(scale, np.float32)
    file = write(beside / "x.safetensors", weights)
    with pytest.raises(UserError, match="scale_factor is .*Expected one finite number"):
        load_stable_diffusion(file)


def test_the_text_encoders_shorter_names_are_read(beside):
    weights = original.drawn(original.whole(original.SD1))
    short = {name.replace("text_model.", ""): x for name, x in weights.items()}
    a, b = (
        load_stable_diffusion(write(beside / "x.safetensors", named))
        for named in (weights, short)
    )
    assert_same(a.text_encoder.params, b.text_encoder.params)


def networks_at_full_size():
    """Return each network of SD1.5: its module, its table, its original shapes."""
    sizes = original.SD15
    parts = PARTS | layout.CONTROLNET
    made = {
        "unet": (original.unet(sizes), ldm_config.unet_config, ldm_names.unet_table),
        "vae": (original.vae(sizes), ldm_config.vae_config, ldm_names.vae_table),
        "controlnet": (
            original.controlnet(sizes),
            ldm_config.controlnet_config,
            ldm_names.controlnet_table,
        ),
        "text_encoder": (original.clip(sizes), ldm_config.clip_config, lambda _: {}),
    }
    for name, (shapes, config_of, table_of) in made.items():
        module = parts[name].module.from_config(config_of(shapes, "FILE"))
        yield name, module, table_of(module), shapes


@pytest.mark.ci
def test_nothing_of_stable_diffusion_1_5_is_missing_or_left_over():
    # As published: the numbers of tensors in v1-5-pruned.ckpt, without position_ids,
    # and in control_sd15_canny.pth.
    counts = {"unet": 686, "vae": 248, "text_encoder": 196, "controlnet": 340}
    for name, module, table, shapes in networks_at_full_size():
        expected = {p: x.shape for p, x in flatten(module.param_shapes()).items()}
        assert len(expected) == len(shapes) == counts[name], name

        def naming(path, table=table):
            return tuple(ldm_names.renamed(n, table) for n in names.torch_names(path))

        found = names.match(expected, shapes, name, naming)
        assert set(found.values()) == shapes.keys()


def test_the_configurations_are_those_of_stable_diffusion_1_5():
    for name, module, _, _ in networks_at_full_size():
        if name == "text_encoder":
            large = {"hidden_size": 768, "intermediate_size": 3072}
            assert module == CLIPText.from_config(large | {"num_attention_heads": 12})
        elif name == "vae":
            assert module == type(module)()
        else:
            # Ours are SD1.5's by default; lists and numbers for each level are alike.
            assert module == type(module)(), module


def test_the_table_goes_back():
    for _, module, table, shapes in networks_at_full_size():
        back = {original: name for name, original in table.items()}
        assert len(back) == len(table)
        for path in flatten(module.param_shapes()):
            name = names.torch_names(path)[0]
            there = ldm_names.renamed(name, table)
            assert there in shapes
            assert ldm_names.renamed(there, back) == name


def test_what_is_unknown_is_named(beside):
    weights = original.drawn(original.whole(original.SD1))
    weights["modle.diffusion_model.x"] = np.ones(2, np.float32)
    file = write(beside / "x.safetensors", weights)
    with pytest.raises(UserError, match="modle.diffusion_model.x.*mean 'model'"):
        load_stable_diffusion(file)
    with pytest.raises(UserError, match="modle.diffusion_model.x"):
        load_controlnet(file)


def spoiled(change):
    weights = original.drawn(original.whole(original.SD1))
    change(weights)
    return weights


def renamed_to(new, old):
    def change(weights):
        weights[new] = weights.pop(old)

    return change


BAD = {
    "misspelt": (
        renamed_to(UNET + "out.0.wieght", UNET + "out.0.weight"),
        ["missing: out.0.weight", "unexpected: out.0.wieght", UNET],
    ),
    "extra in a network": (
        lambda w: w.update({VAE + "encoder.mid.attn_2.q.weight": np.ones((2, 2))}),
        ["unexpected: encoder.mid.attn_2.q.weight", VAE],
    ),
    "what shows the size": (
        renamed_to(UNET + "out.3.weight", UNET + "out.2.weight"),
        ["out.2.weight is missing", "did you mean 'out.3.weight'"],
    ),
    "of another rank": (
        lambda w: w.update({UNET + "input_blocks.0.0.weight": np.ones(3)}),
        ["input_blocks.0.0.weight", "(3,)"],
    ),
    "of another shape": (
        lambda w: w.update({CLIP + "text_model.final_layer_norm.bias": np.ones(3)}),
        ["text_model.final_layer_norm.bias (3,) instead of (64,)"],
    ),
    "without a network": (
        lambda w: [w.pop(n) for n in list(w) if n.startswith(VAE)],
        ["contains no first_stage_model.*"],
    ),
    "diffusers' names": (
        lambda w: (w.clear(), w.update({"conv_in.weight": np.ones((3, 4, 3, 3))})),
        ["conv_in.weight", "give their folder"],
    ),
    "widths that no group fits": (
        lambda w: (
            w.clear(),
            w.update(
                original.drawn(original.whole(original.SD1 | {"widths": (24, 48)}))
            ),
        ),
        ["not divisible by 32"],
    ),
}


@pytest.mark.parametrize(("change", "said"), BAD.values(), ids=BAD)
def test_weights_that_do_not_fit_are_named(change, said, beside):
    file = write(beside / "x.safetensors", spoiled(change))
    with pytest.raises(UserError) as error:
        load_stable_diffusion(file)
    for part in said:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_without_a_controlnet_says_so(tmp_path):
    file = write(
        tmp_path / "x.safetensors", original.drawn(original.whole(original.SD1))
    )
    with pytest.raises(UserError, match=r"contains no control_model\.\*"):
        load_controlnet(file)
    with pytest.raises(UserError, match="flax-pipelines|Flax pipelines"):
        load_controlnet(file, route="flax-pipelines")
    with pytest.raises(UserError, match="none.ckpt' is missing"):
        load_controlnet(tmp_path / "none.ckpt")


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_the_tokenizer_comes_from_the_hub(kind, tmp_path, monkeypatch):
    save_tokenizer(tiny_tokenizer(), tmp_path / "hub")
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    weights = original.drawn(original.whole(SIZES[kind]))
    sd = load_stable_diffusion(write(tmp_path / "x.safetensors", weights))
    assert asked == [("openai/clip-vit-large-patch14", ["*.json", "merges.txt"])]
    # SD2's captions are filled up with another token.
    assert sd.tokenizer.pad_token == ("!" if kind == "sd2" else "<|endoftext|>")


def test_a_tokenizer_that_is_not_there_or_does_not_fit(beside):
    sizes = original.SD1 | {"clip": original.SD1["clip"] | {"words": 50}}
    weights = original.drawn(original.whole(sizes))
    with pytest.raises(UserError, match="tokens, but its text encoder has 50"):
        load_stable_diffusion(write(beside / "x.safetensors", weights))
    (beside / "tokenizer").rename(beside / "elsewhere")
    with pytest.raises(UserError) as error:
        load_stable_diffusion(beside / "x.safetensors")
    for part in ("'tokenizer' beside it", "openai/clip-vit-large-patch14"):
        assert part in str(error.value)


def test_extras_are_skipped_and_only_they(beside):
    shapes = original.whole(original.SD1)
    weights = original.drawn(shapes)
    extras = original.extras(shapes)
    plain = load_stable_diffusion(write(beside / "x.safetensors", weights))
    full = load_stable_diffusion(write(beside / "y.safetensors", weights | extras))
    for name in PARTS:
        assert_same(getattr(plain, name).params, getattr(full, name).params)
    assert not any(name.startswith(OPEN_CLIP) for name in extras)
