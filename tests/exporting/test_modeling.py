"""``modeling.py`` samples as medjax does, and contains what a model needs."""

import ast
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.diffusion import samplers
from medjax.diffusion.schedule import make_schedule
from medjax.pretrained.modeling_file import modeling_file
from tests.pages import REPOSITORY

torch = pytest.importorskip("torch", reason="torch absent")

SCHEDULE = {
    "num_train_timesteps": 100,
    "beta_schedule": "linear",
    "beta_start": 1e-3,
    "beta_end": 0.1,
    "rescale_betas_zero_snr": False,
}


class Net(torch.nn.Module):
    """A fixed function in place of a U-Net of latents or pixels."""

    channels, downsampling = 1, 2

    def forward(self, z, t, labels):
        given = 0 if labels is None else labels[:, None, None, None]
        return torch.sin(3 * z + given) * (1 - t[:, None, None, None] / 200)


def model(kind="epsilon", classes=(), label_dropout=0.0):
    from medjax.pretrained.modeling.image_diffusion import ImageDiffusion

    return ImageDiffusion(Net(), None, [], [], classes, label_dropout, kind, SCHEDULE)


def noise(number=1):
    return model().noise(number, 4, 6, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("sampler", "eta", "steps"),
    [("ddim", 1.0, 7), ("ddpm", 0.0, 10), ("ddim", 0.5, 29)],
)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_steps_with_fresh_noise_are_those_of_our_samplers(sampler, eta, steps, kind):
    """For a network that is a fixed function, with the same noise in every step."""
    # With 29 of 100 steps, NumPy rounds to one timestep too many, which is -1.
    start, shape = noise(), (1, 1, 4, 6)
    seeded = torch.Generator().manual_seed(1)
    made = (
        model(kind)
        .sample(start, None, steps, sampler=sampler, eta=eta, generator=seeded)
        .numpy()
    )
    again = torch.Generator().manual_seed(1)
    fresh = jnp.stack(
        [jnp.asarray(torch.randn(shape, generator=again).numpy()) for _ in range(steps)]
    )
    schedule = make_schedule({**SCHEDULE, "timestep_spacing": "trailing"}, kind)
    plan = samplers.make_plan(sampler, schedule, steps, eta)

    @jax.jit
    def draw(z):
        return samplers.sample(
            plan,
            lambda z, t, step: jnp.sin(3 * z) * (1 - t[:, None, None, None] / 200),
            z,
            lambda step: fresh[step],
        )

    expected = jnp.clip(draw(jnp.asarray(start.numpy())), -1, 1)
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
        config = ("--config", REPOSITORY / "pyproject.toml")
        words = [sys.executable, "-m", "ruff", *check, *config, file]
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


@pytest.mark.parametrize("total", [37, 100, 250])
def test_timesteps_are_those_of_our_samplers(total):
    from medjax.pretrained.modeling.image_diffusion import spaced_timesteps

    config = {**SCHEDULE, "timestep_spacing": "trailing", "num_train_timesteps": total}
    schedule = make_schedule(config, "epsilon")
    for steps in range(1, total + 1):
        plan = samplers.make_plan("ddim", schedule, steps)
        assert spaced_timesteps(total, steps) == plan.timesteps.tolist(), steps


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps=0: expected 1 to 100"),
        ({"steps": 101}, "steps=101: expected 1 to 100"),
        ({"sampler": "dpm"}, "sampler='dpm': expected 'ddim' or 'ddpm'"),
        ({"eta": 1.5}, "eta=1.5: expected 0 to 1 with ddim, and 0 with ddpm"),
        ({"eta": 0.5, "sampler": "ddpm"}, "eta=0.5: expected 0 to 1 with ddim, and 0"),
        ({"labels": ["a", "c"]}, "label 'c': expected one of a, b"),
        ({"labels": ["a"]}, "1 labels for 2 images"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        model(classes=("a", "b"), label_dropout=0.1).sample(noise(2), **settings)


def test_a_model_that_always_had_a_class_needs_one_and_no_guidance():
    always = model(classes=("a", "b"))
    for settings in ({}, {"labels": ["a"], "guidance_scale": 2.0}):
        with pytest.raises(ValueError, match="one of a, b for each image, and guidan"):
            always.sample(noise(), **settings)
    made = always.sample(noise(), labels=["b"])
    also = model(classes=("a", "b"), label_dropout=0.1)
    assert torch.equal(made, also.sample(noise(), labels=["b"]))
    for settings in ({}, {"labels": ["a"]}, {"labels": ["b"], "guidance_scale": 2.0}):
        assert not torch.equal(made, also.sample(noise(), **settings))


def test_a_size_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="height=4, width=5: expected multiples of 2"):
        model().noise(1, 4, 5, torch.Generator())


@pytest.mark.parametrize("architecture", ["UNet2D", "ConvUNet"])
def test_all_tensors_are_on_the_device_of_the_model(architecture):
    """The device ``meta`` refuses tensors of other devices, as a GPU does."""
    from medjax.pretrained.modeling import conv_unet, image_diffusion, unet_2d, vq_vae

    sizes = {"channels": 2, "block_out_channels": (4, 4), "layers_per_block": 1}
    if architecture == "UNet2D":
        unet = unet_2d.UNet2D(
            **sizes,
            attention_levels=(1,),
            attention_head_dim=2,
            norm_num_groups=2,
            num_classes=1,
        )
    else:
        unet = conv_unet.ConvUNet(**sizes, residual=True, num_classes=1)
    autoencoder = vq_vae.VQVAE(1, (4, 4), 1, 2, 2, 2, 2, 8)
    parts = (unet, autoencoder, [0.0, 0.0], [1.0, 1.0], ["a"], 0.1, "epsilon", SCHEDULE)
    whole = image_diffusion.ImageDiffusion(*parts).eval().to("meta")
    start = whole.noise(1, 8, 8, torch.Generator()).to("meta")
    settings = {"labels": ["a"], "steps": 2, "guidance_scale": 2.0}
    for more in ({}, {"sampler": "ddpm"}, {"eta": 1.0, "generator": torch.Generator()}):
        images = whole.sample(start, **settings, **more)
        assert (images.device.type, images.shape) == ("meta", (1, 1, 8, 8))
    assert whole.encode(images).shape == start.shape
