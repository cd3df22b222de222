"""The tracks without captions go out to PyTorch, and make the same images there."""

import ast
import json
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from medjax.diffusion import samplers
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.errors import UserError
from medjax.export import export
from medjax.exporting.image_parity import image_error, measure_image_parity
from medjax.pretrained.modeling_file import modeling_file
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

torch = pytest.importorskip("torch", reason="torch absent")

RUNS = {"knee": "pipeline", "brain": "pytorch", "brain/autoencoder": "pytorch"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a run of each track, without networks of more than 16 channels."""
    folder = tmp_path_factory.mktemp("runs")
    tracks.save_ddpm(folder / "knee")
    tracks.save_ldm(folder / "brain")
    return folder


@pytest.fixture(scope="module")
def exports(runs):
    """The folder of an export of each run, compared with PyTorch."""
    pytest.importorskip("diffusers", reason="diffusers absent")
    folder = runs / "exports"
    for name, format in RUNS.items():
        export(runs / name, folder / f"{format}-{name.replace('/', '_')}")
    (folder / "size.json").write_text(str(tracks.SIZE))
    return folder


def run_python(*words, cwd):
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


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
    run_python(without_medjax.__file__, str(exports), cwd=exports)
    for name, format in RUNS.items():
        file = exports / f"{format}-{name.replace('/', '_')}.npz"
        made = np.load(file)
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
def test_a_card_says_what_it_is_and_its_code_runs(exports, tmp_path):
    said = {
        "pipeline-knee": ("DDIMPipeline", "eta=1", "library_name: diffusers"),
        "pytorch-brain": ('labels=["AD"]', "guidance_scale=2", "`AD`, `NC`"),
        "pytorch-brain_autoencoder": ('.convert("L")', "library_name: pytorch"),
    }
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    for name, words in said.items():
        folder = shutil.copytree(exports / name, tmp_path / name / name)
        card = (folder / "README.md").read_text()
        assert all(word in card for word in (*words, "| val/loss |")), name
        assert "stable-diffusion" not in card and "license: apache-2.0" in card
        Image.fromarray(pixels).save(folder.parent / "image.png")
        code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
        assert len([line for line in code.splitlines() if line]) <= 14
        run_python("-c", code, cwd=folder.parent)
        file = "reconstruction" if "autoencoder" in name else "image"
        image = Image.open(folder.parent / f"{file}.png")
        assert (image.mode, image.size) == ("L", (tracks.SIZE, tracks.SIZE))
        # Python left its compiled form there, and this is not a foreign file.
        again = export_again(exports, name, folder)
        assert not (again / "__pycache__").exists()


def export_again(exports, name, folder):
    run = exports.parent / name.partition("-")[2].replace("_", "/")
    return export(run, folder, parity=False, overwrite=True)


@pytest.mark.ci
def test_defaults_are_those_of_the_run(runs, tmp_path):
    folder = export(runs / "brain", tmp_path / "x", parity=False)
    about = json.loads((folder / "medjax.json").read_text())
    assert about["classes"] == ["AD", "NC"] and about["image_size"] == tracks.SIZE
    assert (about["sampler"], about["steps"]) == ("ddim", 50)
    assert about["guidance_scale"] == 2.0
    with pytest.raises(UserError, match="x: is an export without captions, which Py"):
        load_source(pretrained=str(folder))


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
        export(runs / "brain", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def swap(file):
    tensors = dict(read_tensors(stored_tensors(file)))
    first, second = (
        f"unet.mid_block.attentions.0.to_{name}.weight" for name in ("q", "v")
    )
    tensors[first], tensors[second] = tensors[second], tensors[first]
    write_tensors(file, tensors)


@pytest.mark.release
def test_a_lower_precision_is_stored_and_measured(runs, tmp_path):
    half = export(runs / "brain", tmp_path / "x", dtype="bfloat16")
    stored = stored_tensors(half / "model.safetensors").values()
    assert {str(tensor.dtype) for tensor in stored} == {"bfloat16"}
    error = json.loads((half / "parity.json").read_text())["networks"]["unet"]
    assert 1e-4 < error["relative_l2"] < 0.05


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


@pytest.mark.parametrize(
    ("sampler", "eta", "steps"), [("ddim", 1.0, 7), ("ddpm", 0.0, 10), ("ddim", 0.5, 3)]
)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_steps_with_fresh_noise_are_those_of_our_samplers(sampler, eta, steps, kind):
    """For a network that is a fixed function, with the same noise in every step."""
    from medjax.diffusion.schedule import make_schedule
    from medjax.pretrained.modeling.image_diffusion import ImageDiffusion

    settings = {
        "num_train_timesteps": 100,
        "beta_schedule": "linear",
        "beta_start": 1e-3,
        "beta_end": 0.1,
        "rescale_betas_zero_snr": False,
    }

    class Net(torch.nn.Module):
        def forward(self, z, t, labels):
            return torch.sin(3 * z) * (1 - t[:, None, None, None] / 200)

    model = ImageDiffusion(Net(), None, [], [], [], kind, settings)
    shape = (1, 1, 4, 6)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    seeded = torch.Generator().manual_seed(1)
    made = model.sample(
        noise, None, steps, sampler=sampler, eta=eta, generator=seeded
    ).numpy()
    again = torch.Generator().manual_seed(1)
    fresh = jnp.stack(
        [jnp.asarray(torch.randn(shape, generator=again).numpy()) for _ in range(steps)]
    )
    schedule = make_schedule({**settings, "timestep_spacing": "trailing"}, kind)
    plan = samplers.make_plan(sampler, schedule, steps, eta)

    @jax.jit
    def draw(start):
        return samplers.sample(
            plan,
            lambda z, t, step: jnp.sin(3 * z) * (1 - t[:, None, None, None] / 200),
            start,
            lambda step: fresh[step],
        )

    expected = jnp.clip(draw(jnp.asarray(noise.numpy())), -1, 1)
    assert np.linalg.norm(made - expected) <= 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    "classes", [("ImageDiffusion", "UNet2D", "VQVAE"), ("ConvUNet", "AutoencoderKL")]
)
def test_modeling_is_one_file_of_what_is_needed(classes, tmp_path):
    text = modeling_file(classes)
    tree = ast.parse(text)
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert defined >= set(classes)
    assert ("ConvUNet" in defined) == ("ConvUNet" in classes)
    assert "medjax" not in text.partition('"""\n')[2].replace("without medjax", "")
    names = [n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)]
    assert len(names) == len(set(names))
    file = tmp_path / "modeling.py"
    file.write_text(text)
    for check in (("check",), ("format", "--check")):
        config = f"{without_medjax.__file__.partition('/tests/')[0]}/pyproject.toml"
        words = [sys.executable, "-m", "ruff", *check, "--config", config, str(file)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_bytes_and_images_are_each_others_inverse():
    from medjax.pretrained.modeling.files import from_pixels, to_pixels

    for shape in ((2, 4, 6), (2, 4, 6, 3)):
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        images = from_pixels(pixels)
        assert images.shape == (2, 3 if len(shape) == 4 else 1, 4, 6)
        assert images.min() >= -1 and images.max() <= 1
        np.testing.assert_array_equal(to_pixels(images), pixels)


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
