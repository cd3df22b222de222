"""Images: the same whatever the batch or the devices, and heeding what is asked."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import meshes
from medjax.diffusion import schedule as S
from medjax.diffusion.guidance import guide
from medjax.diffusion.sampling_config import SamplingConfig
from medjax.errors import UserError
from medjax.meshes import MeshConfig
from medjax.models.controlnet import ControlNet, config_from_unet
from medjax.pretrained import Network
from medjax.pretrained.tiny import tiny_stable_diffusion
from medjax.sampling.generate import generate
from medjax.tasks.drawing import Request
from medjax.tasks.latent_diffusion import LatentDiffusion
from tests.smallest import smallest_stable_diffusion
from tests.tasks import small

pytestmark = pytest.mark.devices(8)

SIZE = (16, 24)
SIDE = (8, 12, 4)


@pytest.fixture(scope="module")
def sd():
    """Return a Stable Diffusion with a ControlNet that is heard."""
    base = smallest_stable_diffusion()
    config = config_from_unet(base.unet.config, base.vae.module.downsampling)
    module = ControlNet.from_config(config)
    params = module.init_from_unet(base.unet.params, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: x + 0.05 * rng.standard_normal(x.shape).astype(np.float32), params
    )
    return dataclasses.replace(base, controlnet=Network(module, params, config))


def requests(count):
    rng = np.random.default_rng(1)
    edges = (rng.random((count, *SIZE, 1)) < 0.2).repeat(3, -1).astype(np.float32)
    prompts = ("cardiomegaly", "no finding", "left pleural effusion")
    return [Request(i, prompts[i % 3], "nodule", edges[i]) for i in range(count)]


def draw(sd, asked, mesh=(1, 1, 1), batch_size=1, size=SIZE, **sampling):
    sampling = {"sampler": "ddpm", "steps": 4, "guidance_scale": 2.0} | sampling
    count = int(np.prod(mesh))
    where = meshes.make_mesh(MeshConfig(*mesh), jax.devices()[:count])
    options = SamplingConfig(**sampling)
    made = generate(sd, asked, options, size, where, batch_size=batch_size)
    return np.stack(list(made))


@pytest.fixture(scope="module")
def alone(sd):
    """Five images that one device draws one by one."""
    return draw(sd, requests(5))


@pytest.mark.parametrize(
    ("mesh", "batch_size"),
    [
        # Two images for each part of the batch.
        pytest.param((2, 2, 2), 8, marks=pytest.mark.ci),
        pytest.param((1, 1, 1), 3, marks=pytest.mark.release),
        pytest.param((8, 1, 1), 8, marks=pytest.mark.release),
        pytest.param((2, 2, 2), 4, marks=pytest.mark.release),
    ],
)
def test_an_image_is_the_same_whatever_the_batch_and_the_devices(
    sd, alone, mesh, batch_size
):
    assert alone.shape == (5, *SIZE, 3)
    assert np.abs(alone).max() <= 1
    assert np.abs(alone[0] - alone[3]).max() > 0.1
    got = draw(sd, requests(5), mesh, batch_size)
    # In [-1, 1]: an eighth of a gray value.
    np.testing.assert_allclose(got, alone, atol=1 / 255 / 4)


@pytest.mark.ci
def test_where_an_image_stands_among_the_others_does_not_matter(sd, alone):
    np.testing.assert_allclose(draw(sd, requests(5)[3:]), alone[3:], atol=1e-5)


def test_without_a_mesh_the_first_device_draws(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "medjax.sampling.generate.generate_stages",
        lambda *given, **_: asked.append(given) or iter([np.zeros((2, *SIZE, 3))]),
    )
    (image,) = generate(tiny_stable_diffusion(), [Request(0)], SamplingConfig(), SIZE)
    assert image.shape == (*SIZE, 3)
    *_, size, mesh = asked[0]
    assert size == SIZE
    assert list(mesh.devices.flat) == jax.devices()[:1]


class Dials(LatentDiffusion):
    """Networks that add up what they are given, so that all of it can be told."""

    def encode(self, nets, batch, keys):
        return batch["images"][:, ::2, ::2, :1].repeat(4, -1)

    def decode(self, nets, latents):
        return latents

    def embed_text(self, nets, text_ids):
        return text_ids[:, :1, None].astype(float)

    def denoise(self, nets, z, t, text, condition, scale):
        control = scale * condition[:, ::2, ::2, :1]
        text = text.mean(axis=(1, 2)).reshape(-1, 1, 1, 1)
        return jnp.tanh(z) * (0.9 + t.reshape(-1, 1, 1, 1) / 1e4) + 0.1 * text * control


def dialled(changes=None, frames=1, **sampling):
    rng = np.random.default_rng(1)
    batch = {
        "text_ids": np.array([[1], [2]]),
        "conditioning_image": rng.random((2, *SIZE, 3), np.float32),
        "images": rng.uniform(-1, 1, (2, *SIZE, 3)).astype(np.float32),
    }
    # Of the small task, whose autoencoder halves images into 4 channels.
    task, _ = small.make()
    model = Dials(
        **{
            field.name: getattr(task.model, field.name)
            for field in dataclasses.fields(task.model)
        }
    )
    keys = jax.random.split(jax.random.key(0), 2)
    options = SamplingConfig(**{"steps": 4, "guidance_scale": 2.0} | sampling)
    batch = {n: jnp.asarray(x) for n, x in (batch | (changes or {})).items()}
    stages = np.asarray(model.draw({}, batch, keys, options, SIZE, frames))
    return stages if frames > 1 else stages[0]


@pytest.mark.ci
def test_all_that_is_asked_matters():
    plain = dialled()
    np.testing.assert_array_equal(dialled(), plain)
    for option in (
        {"guidance_scale": 1.0},
        {"guidance_rescale": 0.7},
        {"eta": 1.0},
        {"conditioning_scale": 0.5},
        {"control_start": 0.5},
        {"control_end": 0.5},
        {"strength": 0.5},
        {"steps": 5},
        {"sampler": "euler"},
    ):
        assert np.abs(dialled(**option) - plain).max() > 1e-3, option
    for change in (
        {"text_ids": np.array([[3], [3]])},
        {"null_text_ids": np.array([[3], [3]])},
        {"conditioning_image": np.zeros((2, *SIZE, 3), np.float32)},
        {"noise": np.zeros((2, *SIDE), np.float32)},
    ):
        assert np.abs(dialled(change) - plain).max() > 1e-3, change


def test_the_image_to_begin_from_matters_from_image_to_image_alone():
    other = {"images": np.ones((2, *SIZE, 3), np.float32)}
    np.testing.assert_array_equal(dialled(other), dialled())
    assert np.abs(dialled(other, strength=0.5) - dialled(strength=0.5)).max() > 0.1


def test_frames_of_a_changed_image_are_never_blank():
    # Of 10 steps 3 are taken.
    how = {"steps": 10, "strength": 0.3}
    stages = dialled(frames=8, **how)
    assert len(stages) == 4
    assert (np.abs(stages).max(axis=(1, 2, 3, 4)) > 0.1).all()
    np.testing.assert_allclose(stages[-1], dialled(**how), atol=1e-6)


def test_without_guidance_the_negative_caption_is_not_read():
    other = {"null_text_ids": np.array([[3], [3]])}
    plain = dialled(guidance_scale=1.0)
    np.testing.assert_array_equal(dialled(other, guidance_scale=1.0), plain)


def test_the_control_is_heard_in_its_part_of_the_steps():
    silent = dialled(conditioning_scale=0.0)
    no_control = {"conditioning_image": np.zeros((2, *SIZE, 3), np.float32)}
    np.testing.assert_array_equal(dialled(no_control), silent)
    np.testing.assert_array_equal(dialled(control_start=0.01, control_end=0.2), silent)
    np.testing.assert_array_equal(dialled(control_end=1.0), dialled())


def test_rescaled_guidance_is_that_of_diffusers():
    torch = pytest.importorskip("torch")
    pipelines = pytest.importorskip("diffusers.pipelines.stable_diffusion")
    rescale = pipelines.pipeline_stable_diffusion.rescale_noise_cfg
    rng = np.random.default_rng(0)
    without, given = rng.standard_normal((2, 3, 4, 5, 6), np.float32)
    theirs = torch.from_numpy(without + 7.5 * (given - without))
    want = rescale(theirs, torch.from_numpy(given), 0.7)
    got = guide(jnp.asarray(without), jnp.asarray(given), 7.5, 0.7)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (15, 24)}, "size=15x24: expected multiples of 2, such as 14 or 16"),
        ({"sampler": "pndm"}, "pndm does not support prediction_type=sample"),
        ({"eta": 0.5, "sampler": "euler"}, "eta=0.5 with sampler euler"),
        ({"sampler": "ddmi"}, "unknown sampler 'ddmi'"),
        ({"steps": 0}, "steps is 0"),
        ({"strength": 0.1}, "at least one of the 4 steps"),
        ({"control_start": 0.5, "control_end": 0.5}, "control_start=0.5"),
        ({"guidance_rescale": 2.0}, "guidance_rescale is 2.0, expected a fraction"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_any_image(sd, change, message):
    schedule = S.make_schedule(sd.schedule.config, "sample")
    with pytest.raises(UserError, match=message):
        draw(dataclasses.replace(sd, schedule=schedule), requests(1), **change)
