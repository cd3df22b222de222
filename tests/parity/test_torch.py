"""The networks' numbers are torch's: relative L2 error at most 1e-5 in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from medjax.pretrained import load_controlnet, load_stable_diffusion  # noqa: E402
from medjax.pretrained.tiny import tiny_tokenizer  # noqa: E402
from tests.models import networks  # noqa: E402

LIMIT = 1e-5
TIMESTEPS = [3, 801]


@pytest.fixture(scope="module", params=list(networks.UNETS))
def pair(request, tmp_path_factory):
    """A torch Stable Diffusion with ControlNet, and what we load from its files."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    theirs = StableDiffusionPipeline(
        unet=networks.unet(kind),
        vae=networks.vae(kind),
        text_encoder=networks.text_encoder(kind),
        tokenizer=tiny_tokenizer(),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    theirs.save_pretrained(folder / "sd")
    controlnet = networks.controlnet(kind)
    controlnet.save_pretrained(folder / "controlnet")
    ours = load_stable_diffusion(folder / "sd", route="safetensors")
    return (
        kind,
        (theirs, controlnet),
        (ours, load_controlnet(folder / "controlnet", route="safetensors")),
    )


def inputs(kind):
    """Latents, text embeddings and a picture, as torch has them."""
    generator = torch.Generator().manual_seed(0)
    height, width = networks.SIZES[kind]
    features = networks.UNETS[kind]["cross_attention_dim"]
    return (
        torch.randn(2, 4, height, width, generator=generator),
        torch.randn(2, 7, features, generator=generator),
        torch.rand(2, 3, 8 * height, 8 * width, generator=generator),
    )


def nhwc(tensor):
    return jnp.asarray(tensor.numpy()).transpose(0, 2, 3, 1)


def error(ours, theirs):
    theirs = np.asarray(theirs, np.float64)
    return np.linalg.norm(np.asarray(ours, np.float64) - theirs) / np.linalg.norm(
        theirs
    )


def apply(network, *inputs, **options):
    return network.module.apply({"params": network.params}, *inputs, **options)


def test_unet_alone(pair):
    kind, (theirs, _), (ours, _) = pair
    latents, text, _ = inputs(kind)
    with torch.no_grad():
        expected = theirs.unet(latents, torch.tensor(TIMESTEPS), text).sample
    run = jax.jit(lambda z, e: apply(ours.unet, z, jnp.array(TIMESTEPS), e))
    assert error(run(nhwc(latents), jnp.asarray(text.numpy())), nhwc(expected)) < LIMIT


@pytest.mark.parametrize(
    "only_mid_control", [False, pytest.param(True, marks=pytest.mark.release)]
)
def test_controlnet_and_unet_with_its_residuals(pair, only_mid_control):
    kind, (theirs, controlnet), (ours, ours_controlnet) = pair
    latents, text, picture = inputs(kind)
    timesteps = torch.tensor(TIMESTEPS)
    with torch.no_grad():
        down, mid = controlnet(
            latents,
            timesteps,
            text,
            picture,
            conditioning_scale=0.7,
            return_dict=False,
        )
        expected = theirs.unet(
            latents,
            timesteps,
            text,
            down_block_additional_residuals=(
                [torch.zeros_like(x) for x in down] if only_mid_control else down
            ),
            mid_block_additional_residual=mid,
        ).sample

    @jax.jit
    def run(z, e, c):
        t = jnp.array(TIMESTEPS)
        down, mid = apply(ours_controlnet, z, t, e, c, 0.7)
        used = None if only_mid_control else down
        return (*down, mid, apply(ours.unet, z, t, e, used, mid))

    got = run(nhwc(latents), jnp.asarray(text.numpy()), nhwc(picture))
    for ours_array, tensor in zip(got, (*down, mid, expected), strict=True):
        assert error(ours_array, nhwc(tensor)) < LIMIT


def test_autoencoder(pair):
    kind, (theirs, _), (ours, _) = pair
    _, _, picture = inputs(kind)
    images = 2 * picture[:, :, :40, :24] - 1
    with torch.no_grad():
        posterior = theirs.vae.encode(images).latent_dist
        decoded = theirs.vae.decode(posterior.mean).sample
    mean, logvar = apply(ours.vae, nhwc(images), method="encode")
    assert error(mean, nhwc(posterior.mean)) < LIMIT
    assert error(logvar, nhwc(posterior.logvar)) < LIMIT
    again = apply(ours.vae, nhwc(posterior.mean), method="decode")
    assert error(again, nhwc(decoded)) < LIMIT


def test_text_encoder(pair):
    _, (theirs, _), (ours, _) = pair
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 99, (2, 77)))
    with torch.no_grad():
        expected = theirs.text_encoder(ids).last_hidden_state
    got = apply(ours.text_encoder, jnp.asarray(ids.numpy()))
    assert error(got, expected.numpy()) < LIMIT


def test_schedule(pair):
    _, (theirs, _), (ours, _) = pair
    np.testing.assert_allclose(
        ours.schedule.alphas_cumprod, theirs.scheduler.alphas_cumprod.numpy(), rtol=1e-4
    )
