"""From torch and back to torch: every network, every tensor, strictly."""

import json

import pytest

torch = pytest.importorskip("torch", reason="torch absent")
diffusers = pytest.importorskip("diffusers", reason="diffusers absent")

from transformers import CLIPTextModel, CLIPTokenizer  # noqa: E402

from medjax.pretrained import (  # noqa: E402
    load_controlnet,
    load_stable_diffusion,
    save_controlnet,
    save_stable_diffusion,
)
from medjax.pretrained.tiny import tiny_stable_diffusion  # noqa: E402
from medjax.pretrained.tokenizer import save_tokenizer  # noqa: E402
from tests.models import networks  # noqa: E402
from tests.pretrained.small import network  # noqa: E402

KINDS = ("sd1", "sd2", "odd")
# SD2's has a different number of heads at each level, so it stands for all.
MARKED = ["sd2", *(pytest.param(k, marks=pytest.mark.release) for k in ("sd1", "odd"))]
CLASSES = {
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
    "text_encoder": CLIPTextModel,
}
SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "clip_sample": False,
    "steps_offset": 1,
}


def pipeline(kind, folder):
    """Return a torch pipeline of small networks, with a tokenizer from `folder`."""
    save_tokenizer(tiny_stable_diffusion().tokenizer, folder)
    return diffusers.StableDiffusionPipeline(
        unet=networks.unet(kind),
        vae=networks.vae(kind),
        text_encoder=networks.text_encoder(kind),
        tokenizer=CLIPTokenizer.from_pretrained(folder),
        scheduler=diffusers.DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
    )


def strictly(cls, folder):
    """Load by torch, and see that nothing was missing or left over."""
    module, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return module


def assert_same_state(first, second):
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name


def assert_same_config(first, second):
    """Compare two `config.json`; lists of defaults and paths aside."""
    a, b = (
        json.loads((folder / "config.json").read_text()) for folder in (first, second)
    )
    for config in (a, b):
        config.pop("_name_or_path", None)
        config.pop("dtype", None)
        config.pop("torch_dtype", None)
    assert a == b


@pytest.mark.ci
@pytest.mark.parametrize("kind", MARKED)
def test_a_pipeline_goes_through_us_unchanged(kind, tmp_path):
    before = pipeline(kind, tmp_path / "tokenizer")
    before.save_pretrained(tmp_path / "torch")
    save_stable_diffusion(load_stable_diffusion(tmp_path / "torch"), tmp_path / "ours")
    for name, cls in CLASSES.items():
        module = strictly(cls, tmp_path / "ours" / name)
        assert_same_state(getattr(before, name), module)
        assert_same_config(tmp_path / "torch" / name, tmp_path / "ours" / name)

    after = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "ours")
    assert isinstance(after.scheduler, diffusers.DDIMScheduler)
    assert torch.equal(after.scheduler.alphas_cumprod, before.scheduler.alphas_cumprod)
    text = "Chest X-ray with cardiomegaly, 57-year-old woman"
    options = {"padding": "max_length", "max_length": 20}
    assert (
        after.tokenizer(text, **options)["input_ids"]
        == before.tokenizer(text, **options)["input_ids"]
    )


@pytest.mark.parametrize("kind", MARKED)
def test_a_controlnet_goes_through_us_unchanged(kind, tmp_path):
    before = networks.controlnet(kind)
    before.save_pretrained(tmp_path / "torch")
    save_controlnet(load_controlnet(tmp_path / "torch"), tmp_path / "ours")
    after = strictly(diffusers.ControlNetModel, tmp_path / "ours")
    assert_same_state(before, after)
    assert_same_config(tmp_path / "torch", tmp_path / "ours")


def test_a_controlnet_of_ours_loads_in_torch(tmp_path):
    save_controlnet(network("controlnet", "sd2"), tmp_path)
    assert strictly(diffusers.ControlNetModel, tmp_path).config.norm_num_groups == 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_exact(dtype, tmp_path):
    before = networks.controlnet("odd").to(dtype)
    before.save_pretrained(tmp_path / "torch")
    name = str(dtype).removeprefix("torch.")
    loaded = load_controlnet(tmp_path / "torch", dtype=name)
    save_controlnet(loaded, tmp_path / "ours")
    after = diffusers.ControlNetModel.from_pretrained(
        tmp_path / "ours", torch_dtype=dtype
    )
    assert_same_state(before, after)


def test_shards_and_variants_as_diffusers_writes_them(tmp_path):
    before = networks.controlnet("odd")
    before.save_pretrained(tmp_path, max_shard_size="50KB", variant="fp16")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    save_controlnet(load_controlnet(tmp_path), tmp_path / "ours")
    assert_same_state(before, strictly(diffusers.ControlNetModel, tmp_path / "ours"))


def test_the_tiny_one_runs_in_torch(tmp_path):
    sd = tiny_stable_diffusion()
    save_stable_diffusion(sd, tmp_path)
    for name, cls in CLASSES.items():
        strictly(cls, tmp_path / name)
    torch_pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    torch_pipeline.set_progress_bar_config(disable=True)
    images = torch_pipeline(
        "chest x-ray", num_inference_steps=1, height=16, width=16, output_type="np"
    ).images
    assert images.shape == (1, 16, 16, 3)
