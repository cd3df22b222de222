"""The tracks without captions go out to PyTorch, and make the same images there."""

import json

import jax
import numpy as np
import pytest

from medjax.diffusion.sampling_config import SamplingConfig
from medjax.errors import UserError
from medjax.export import export
from medjax.exporting.image_parity import image_error, measure_image_parity
from medjax.pretrained import load_stable_diffusion
from medjax.pretrained.safetensors_io import (
    read_tensors,
    stored_tensors,
    write_tensors,
)
from medjax.runs.open_run import load_run, trained_autoencoder
from medjax.sampling.generate import generate
from medjax.sampling.source import load_source
from medjax.tasks.drawing import Request
from medjax.tasks.latent_scaling import decode, encode_mean
from tests.exporting import tracks, without_medjax
from tests.exporting.without_medjax import GUIDANCE, STEPS

pytest.importorskip("torch", reason="torch absent")


def ours(run, given):
    """Return the image of medjax from the same noise, or of the same image."""
    if run.config.eval.sampling() is None:
        trained = trained_autoencoder(run)

        @jax.jit
        def both_ways(weights, images):
            latents = encode_mean(trained.module, weights, images)
            return decode(trained.module, weights, latents)

        return np.asarray(both_ways(trained.weights, given[None])[0])
    classes = run.model.task.unet.num_classes
    scale = GUIDANCE if classes else 1.0
    sampling = SamplingConfig("ddim", STEPS, guidance_scale=scale)
    request = Request(0, noise=given, label=1 if classes else None)
    (image,) = generate(run.model, [request], sampling, (tracks.SIZE, tracks.SIZE))
    return image


@pytest.mark.ci
def test_images_without_medjax_are_ours(runs, exports):
    without_medjax.sample_all(exports)
    for name in tracks.RUNS:
        made = np.load(exports / f"{tracks.export_name(name)}.npz")
        image = ours(load_run(runs / name), made["given"])
        assert image.shape == (tracks.SIZE, tracks.SIZE, 1) and image.std() > 0.01
        assert image_error(image, made["made"])["psnr_db"] >= 60, name


@pytest.mark.ci
def test_parity_is_small_and_recorded(exports):
    networks = {
        "pipeline-knee": {"unet"},
        "pytorch-brain": {"unet", "encoder", "decoder"},
        "pytorch-brain_autoencoder": {"encoder", "decoder"},
    }
    for name, expected in networks.items():
        report = json.loads((exports / name / "parity.json").read_text())
        assert report["networks"].keys() == expected
        for error in report["networks"].values():
            assert 0 < error["relative_l2"] <= 1e-4
        assert ("image" in report) == ("unet" in expected)
        assert report.get("image", {"psnr_db": 60})["psnr_db"] >= 60


@pytest.mark.ci
def test_defaults_are_those_of_the_run(runs, tmp_path):
    folder = export(runs / "brain", tmp_path / "x", parity=False)
    about = json.loads((folder / "medjax.json").read_text())
    assert about["classes"] == ["AD", "NC"] and about["image_size"] == tracks.SIZE
    assert (about["sampler"], about["steps"]) == ("ddim", 50)
    assert (about["guidance_scale"], about["eta"]) == (2.0, 0.0)


@pytest.mark.ci
@pytest.mark.parametrize("name", tracks.RUNS)
def test_it_is_no_base_of_medjax(name, runs, tmp_path):
    folder = export(runs / name, tmp_path / "x", parity=False)
    for load in (
        load_stable_diffusion,
        lambda source: load_source(pretrained=str(source)),
    ):
        with pytest.raises(UserError, match="x' contains a model without captions. Ex"):
            load(folder)


@pytest.mark.ci
def test_a_swapped_tensor_is_seen(runs, tmp_path, monkeypatch):
    """Two weights of one shape change places, so everything still loads."""
    from medjax.exporting import for_torch

    save = for_torch.save_for_torch

    def save_swapped(network, folder, dtype):
        save(network, folder, dtype)
        swap(folder / "model.safetensors")

    monkeypatch.setattr(for_torch, "save_for_torch", save_swapped)
    with pytest.raises(UserError, match="unet differs from the run's: its relative"):
        export(runs / "knee", tmp_path / "x", format="pytorch", parity=True)
    assert not (tmp_path / "x").exists()


def swap(file):
    tensors = dict(read_tensors(stored_tensors(file)))
    first, second = (
        f"unet.mid_block.attentions.0.to_{name}.weight" for name in ("q", "v")
    )
    tensors[first], tensors[second] = tensors[second], tensors[first]
    write_tensors(file, tensors)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param("knee", "float16", marks=pytest.mark.ci),
        pytest.param("brain/autoencoder", "bfloat16", marks=pytest.mark.ci),
        pytest.param("knee", "bfloat16", marks=pytest.mark.release),
        pytest.param("brain", "float16", marks=pytest.mark.release),
        pytest.param("brain", "bfloat16", marks=pytest.mark.release),
        pytest.param("brain/autoencoder", "float16", marks=pytest.mark.release),
    ],
)
def test_a_lower_precision_is_stored_measured_and_not_refused(
    name, dtype, runs, tmp_path
):
    half = export(runs / name, tmp_path / "x", dtype=dtype, parity=True)
    for file in half.rglob("*.safetensors"):
        stored = stored_tensors(file).values()
        assert {str(tensor.dtype) for tensor in stored} == {dtype}
    report = json.loads((half / "parity.json").read_text())
    assert report["stored"] == dtype
    error = max(one["relative_l2"] for one in report["networks"].values())
    assert 1e-4 < error < 0.1


@pytest.mark.ci
def test_formats_that_cannot_store_a_model_are_refused(runs, tmp_path):
    message = "not available for runs of task unconditional. Expected --format=pytorch$"
    with pytest.raises(UserError, match=message):
        export(runs / "brain", tmp_path / "x", format="pipeline")
    with pytest.raises(UserError, match="Expected --format=pytorch$"):
        export(runs / "brain/autoencoder", tmp_path / "x", format="vae")


@pytest.mark.release
@pytest.mark.parametrize(
    ("save", "changes"),
    [
        (tracks.save_ddpm, {"variant": "published", **tracks.CONV}),
        (tracks.save_ddpm, tracks.CONV | {"data__classes": ("a", "b")}),
        (tracks.save_ddpm, tracks.UNET | {"channels": 3, "layers_per_block": 2}),
        (tracks.save_ddpm, tracks.UNET | {"attention_levels": ()}),
        (
            tracks.save_ddpm,
            tracks.UNET
            | {
                "diffusion__rescale_betas_zero_snr": True,
                "diffusion__prediction_type": "sample",
                "diffusion__beta_schedule": "scaled_linear",
                "diffusion__num_train_timesteps": 37,
            },
        ),
        (
            tracks.save_ldm,
            {"save_autoencoder": tracks.save_kl, "residual": True, **tracks.CONV},
        ),
    ],
)
@pytest.mark.parametrize("format", [None, "pytorch"])
def test_other_settings_are_the_same_too(tmp_path, save, changes, format):
    if "data__classes" in changes:
        changes = changes | {
            "data__phantoms": brain_phantoms(),
            "data__classes": ("AD", "NC"),
        }
    save(tmp_path / "run", **changes)
    folder = export(tmp_path / "run", tmp_path / "x", format=format)
    report = json.loads((folder / "parity.json").read_text())
    for error in report["networks"].values():
        assert error["relative_l2"] <= 1e-4
    assert report["image"]["psnr_db"] >= 60


def brain_phantoms():
    from configs import brain_ldm

    return brain_ldm.get_config("demo").data.phantoms


@pytest.mark.release
def test_parity_fails_for_another_model(runs, tmp_path):
    from medjax.pretrained.torch_images import load_modeling

    raw = export(
        runs / "brain", tmp_path / "x", weights="raw", parity=False, format="pytorch"
    )
    averaged = load_run(runs / "brain").model
    report = measure_image_parity(averaged, load_modeling(raw), ("torch",))
    assert report["networks"]["unet"]["relative_l2"] > 1e-2
    assert report["image"]["psnr_db"] < 60
