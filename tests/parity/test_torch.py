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


@pytest.fixture(
    scope="module",
    params=[
        "sd2",
        pytest.param("sd1", marks=pytest.mark.ci),
        pytest.param("odd", marks=pytest.mark.ci),
        pytest.param("sd1-deep", marks=pytest.mark.release),
        pytest.param("sd2-deep", marks=pytest.mark.release),
    ],
)
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


@pytest.fixture(scope="module")
def compiled(pair):
    """Our U-Net and our ControlNet, each compiled once."""
    _, _, (ours, controlnet) = pair
    t = jnp.array(TIMESTEPS)
    return (
        jax.jit(lambda z, e, down, mid: apply(ours.unet, z, t, e, down, mid)),
        jax.jit(lambda z, e, c: apply(controlnet, z, t, e, c, 0.7)),
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


def run(network, *inputs, method=None):
    """Return what a network computes, compiled as a whole."""
    call = jax.jit(network.module.apply, static_argnames="method")
    return call({"params": network.params}, *inputs, method=method)


@pytest.mark.parametrize("residuals", ["none", "all", "mid"])
def test_unet_and_controlnet(pair, compiled, residuals):
    """The U-Net alone, and with the ControlNet's residuals or the middle one only."""
    kind, (theirs, controlnet), _ = pair
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
        if residuals != "all":
            down = [torch.zeros_like(x) for x in down]
        used = {
            "down_block_additional_residuals": down,
            "mid_block_additional_residual": mid,
        }
        used = {} if residuals == "none" else used
        expected = theirs.unet(latents, timesteps, text, **used).sample
    unet, ours_controlnet = compiled
    z, e, c = nhwc(latents), jnp.asarray(text.numpy()), nhwc(picture)
    ours_down, ours_mid = ours_controlnet(z, e, c)
    if residuals == "all":
        for ours, tensor in zip((*ours_down, ours_mid), (*down, mid), strict=True):
            assert error(ours, nhwc(tensor)) < LIMIT
    else:
        # Zero is none, and compiles once; test_controlnet.py has the other way.
        ours_down = [jnp.zeros_like(x) for x in ours_down]
    if residuals == "none":
        ours_mid = jnp.zeros_like(ours_mid)
    assert error(unet(z, e, list(ours_down), ours_mid), nhwc(expected)) < LIMIT


def test_autoencoder(pair):
    kind, (theirs, _), (ours, _) = pair
    _, _, picture = inputs(kind)
    images = 2 * picture[:, :, :40, :24] - 1
    with torch.no_grad():
        posterior = theirs.vae.encode(images).latent_dist
        decoded = theirs.vae.decode(posterior.mean).sample
    mean, logvar = run(ours.vae, nhwc(images), method="encode")
    assert error(mean, nhwc(posterior.mean)) < LIMIT
    assert error(logvar, nhwc(posterior.logvar)) < LIMIT
    again = run(ours.vae, nhwc(posterior.mean), method="decode")
    assert error(again, nhwc(decoded)) < LIMIT


def test_text_encoder(pair):
    _, (theirs, _), (ours, _) = pair
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 99, (2, 77)))
    with torch.no_grad():
        expected = theirs.text_encoder(ids).last_hidden_state
    got = run(ours.text_encoder, jnp.asarray(ids.numpy()))
    assert error(got, expected.numpy()) < LIMIT


def test_schedule(pair):
    _, (theirs, _), (ours, _) = pair
    np.testing.assert_allclose(
        ours.schedule.alphas_cumprod, theirs.scheduler.alphas_cumprod.numpy(), rtol=1e-4
    )
