"""Both routes on the same torch networks: the same bits, and the same strictness.

The networks have what diffusers' Flax classes can have: 32 groups everywhere.
"""

import pytest

torch = pytest.importorskip("torch", reason="torch absent")
diffusers = pytest.importorskip("diffusers", reason="diffusers absent")
transformers = pytest.importorskip("transformers", "4.57", reason="transformers absent")
if int(transformers.__version__.split(".")[0]) > 4:
    pytest.skip("transformers with Flax absent", allow_module_level=True)

from medjax.errors import UserError  # noqa: E402
from medjax.pretrained import load_controlnet, load_stable_diffusion  # noqa: E402
from medjax.pretrained.tiny import tiny_tokenizer  # noqa: E402
from medjax.pretrained.tokenizer import save_tokenizer  # noqa: E402
from tests.models import networks  # noqa: E402
from tests.pretrained.small import assert_same  # noqa: E402

UNET = {
    "block_out_channels": (32,),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 40,
    "use_linear_projection": True,
    "down_block_types": ("CrossAttnDownBlock2D",),
}
VAE = {
    "block_out_channels": (32,),
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
}
PARTS = ("unet", "vae", "text_encoder")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    up = ("CrossAttnUpBlock2D",)
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(tiny_tokenizer(), folder)
    return diffusers.StableDiffusionPipeline(
        unet=networks.draw(
            diffusers.UNet2DConditionModel(**UNET, up_block_types=up, sample_size=8)
        ),
        vae=networks.draw(diffusers.AutoencoderKL(**VAE)),
        text_encoder=networks.text_encoder("odd"),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder),
        # Has no Flax class.
        scheduler=diffusers.UniPCMultistepScheduler(steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
    )


@pytest.fixture(scope="module")
def folders(pipeline, tmp_path_factory):
    """Return the folders of torch's two formats."""
    folder = tmp_path_factory.mktemp("sd")
    pipeline.save_pretrained(folder / "safetensors")
    pipeline.save_pretrained(folder / "bin", safe_serialization=False)
    return folder


@pytest.fixture(scope="module")
def expected(folders):
    return load_stable_diffusion(folders / "safetensors", route="safetensors")


@pytest.mark.ci
@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.release)]
)
def test_trees_are_bit_identical(folders, expected, form, dtype):
    both = load_stable_diffusion(folders / form, dtype, route="flax-pipelines")
    if dtype != "float32":
        expected = load_stable_diffusion(folders / "safetensors", dtype)
    for name in PARTS:
        assert_same(getattr(both, name).params, getattr(expected, name).params)
        assert getattr(both, name).module == getattr(expected, name).module
    assert both.schedule.config == expected.schedule.config


@pytest.mark.ci
def test_auto_takes_the_pipelines_where_there_are_no_safetensors(folders, expected):
    loaded = load_stable_diffusion(folders / "bin")
    assert_same(loaded.unet.params, expected.unet.params)
    with pytest.raises(UserError, match="safetensors is missing"):
        load_stable_diffusion(folders / "bin", route="safetensors")


@pytest.mark.ci
def test_flaxs_own_files_are_read_without_torch(folders, expected, tmp_path):
    flax_pipeline, params = diffusers.FlaxStableDiffusionPipeline.from_pretrained(
        folders / "bin",
        from_pt=True,
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
    )
    flax_pipeline.unet.save_pretrained(tmp_path / "unet", params=params["unet"])
    flax_pipeline.vae.save_pretrained(tmp_path / "vae", params=params["vae"])
    flax_pipeline.text_encoder.save_pretrained(
        tmp_path / "text_encoder", params=params["text_encoder"]
    )
    for name in ("model_index.json", "tokenizer", "scheduler"):
        (tmp_path / name).symlink_to(folders / "bin" / name)
    loaded = load_stable_diffusion(tmp_path)
    for name in PARTS:
        assert_same(getattr(loaded, name).params, getattr(expected, name).params)


@pytest.mark.ci
@pytest.mark.parametrize("safe", [True, False])
def test_a_controlnet_by_both_routes(tmp_path, safe):
    before = networks.draw(diffusers.ControlNetModel(**UNET), 1)
    before.save_pretrained(tmp_path / "safetensors")
    before.save_pretrained(tmp_path / "given", safe_serialization=safe)
    expected = load_controlnet(tmp_path / "safetensors", route="safetensors")
    loaded = load_controlnet(tmp_path / "given", route="flax-pipelines")
    assert_same(loaded.params, expected.params)


@pytest.mark.ci
def test_bfloat16_files_by_both_routes(tmp_path):
    before = networks.draw(diffusers.ControlNetModel(**UNET), 1).to(torch.bfloat16)
    before.save_pretrained(tmp_path)
    assert_same(
        load_controlnet(tmp_path, route="flax-pipelines").params,
        load_controlnet(tmp_path, route="safetensors").params,
    )


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_the_pipelines_may_neither_drop_nor_draw_weights(
    form, pipeline, folders, tmp_path
):
    for name in ("model_index.json", "tokenizer", "scheduler", "unet", "vae"):
        (tmp_path / name).symlink_to(folders / form / name)
    state = pipeline.text_encoder.state_dict()
    state["text_model.spare.weight"] = state.pop("text_model.final_layer_norm.weight")
    pipeline.text_encoder.save_pretrained(
        tmp_path / "text_encoder", state_dict=state, safe_serialization=form != "bin"
    )
    with pytest.raises(UserError) as error:
        load_stable_diffusion(tmp_path, route="flax-pipelines")
    assert "missing: text_model.final_layer_norm.weight" in str(error.value)
    assert "unexpected: text_model.spare.weight" in str(error.value)


@pytest.mark.ci
def test_what_flax_classes_cannot_hold_is_said(tmp_path):
    networks.controlnet("odd").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="Try route='safetensors'"):
        load_controlnet(tmp_path, route="flax-pipelines")
