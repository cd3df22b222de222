"""Autoencoders' losses and their parts, the codebook, and what of them trains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import trees
from medjax.data.config import DataConfig
from medjax.errors import UserError
from medjax.models.vq_vae import nearest_codes
from medjax.pretrained import load_autoencoder
from medjax.pretrained.diffusers_format import save_network
from medjax.pretrained.layout import STABLE_DIFFUSION
from medjax.pretrained.tiny import tiny_stable_diffusion
from medjax.tasks.autoencoder_kl import AutoencoderKLConfig, make_autoencoder_kl_task
from medjax.tasks.autoencoder_loss import measure_reconstruction
from medjax.tasks.eval_config import EvalConfig
from medjax.tasks.interface import SamplePage, TaskInputs
from medjax.tasks.latent_scaling import decode, encode_mean
from medjax.tasks.vq_vae import VQVAEConfig
from medjax.training.step import example_keys
from tests.tasks import scratch

KL = AutoencoderKLConfig(
    channels=1,
    block_out_channels=(8, 8),
    layers_per_block=1,
    norm_num_groups=4,
    kl_weight=0.5,
    dtype="float32",
)


def kl_task(model=KL):
    return make_autoencoder_kl_task(
        TaskInputs(model, DataConfig(image_size=16), None, scratch.KEY)
    )


def outcome(assembly, batch):
    keys = example_keys(scratch.KEY, 0, len(batch["images"]))
    frozen = trees.merge(assembly.frozen, assembly.statistics)
    compute = jax.jit(assembly.task.loss, static_argnums=4)
    return compute(assembly.params, frozen, batch, keys, True)


@functools.partial(jax.jit, static_argnums=0)
def encoded(module, network, images):
    """Return what the module makes of images' first channel."""
    return module.apply({"params": network}, images[..., :1], method="encode")


compiled_decode = jax.jit(decode, static_argnums=0)


def test_what_is_decoded_is_the_codebooks():
    book = scratch.trained(scratch.vq_vae())
    codes = np.asarray(book.weights["codebook"])
    numbers = np.arange(16).reshape(1, 4, 4)
    apart = np.linalg.norm(codes[:, None] - codes, axis=-1)
    near = 0.4 * np.min(apart + 1e9 * np.eye(len(codes)))
    way = np.random.default_rng(0).normal(size=(1, 4, 4, codes.shape[-1]))
    way /= np.linalg.norm(way, axis=-1, keepdims=True)
    moved = (near * way).astype(np.float32)
    variables = {"params": book.weights["network"]}
    apply = jax.jit(book.module.apply, static_argnames="method")
    expected = apply(variables, codes[numbers], method="decode")
    got = compiled_decode(book.module, book.weights, codes[numbers] + moved)
    np.testing.assert_allclose(got, np.clip(expected, -1, 1), atol=1e-5)


@pytest.mark.ci
def test_a_page_has_the_reconstructions_and_their_likeness():
    assembly = scratch.vq_vae()
    weights = assembly.params | assembly.statistics
    batch = scratch.batch()
    keys = example_keys(scratch.KEY, 0, 4)
    columns = jax.jit(lambda w, b: assembly.task.sample(w, {}, b, keys, None))(
        weights, batch
    )
    book = scratch.trained(assembly)
    gray = batch["images"][..., :1]
    latents = jax.jit(encode_mean, static_argnums=0)(book.module, book.weights, gray)
    again = compiled_decode(book.module, book.weights, latents)
    np.testing.assert_allclose(columns["original"], gray, atol=1e-6)
    np.testing.assert_allclose(columns["reconstruction"], again, atol=1e-5)
    shown = SamplePage({name: np.asarray(x) for name, x in columns.items()}, {}, [])
    measured = measure_reconstruction(shown, None, EvalConfig())
    psnr = 10 * jnp.log10(4 / jnp.square(gray - again).mean((1, 2, 3)))
    assert measured["psnr_db"] == pytest.approx(float(psnr.mean()), rel=1e-4)
    assert -1 <= measured["ssim"] < 1


@pytest.mark.parametrize("learning", ["ema", "gradient"])
def test_the_loss_is_the_sum_of_its_parts(learning):
    assembly = scratch.vq_vae(codebook_learning=learning, commitment_weight=0.3)
    batch = scratch.batch()
    got = outcome(assembly, batch)
    parts = got.metrics
    expected = parts["reconstruction"] + 0.3 * parts["commitment"]
    if learning == "gradient":
        expected = expected + parts["codebook"]
        np.testing.assert_allclose(parts["codebook"], parts["commitment"], rtol=1e-6)
    np.testing.assert_allclose(got.losses, expected, rtol=1e-6)
    weights = assembly.params | assembly.statistics
    latents = encoded(assembly.task.module, weights["network"], batch["images"])
    codes = weights["codebook"]["codes"]
    nearest = codes[nearest_codes(latents, codes)]
    np.testing.assert_allclose(
        parts["commitment"], jnp.square(latents - nearest).mean((1, 2, 3)), rtol=1e-5
    )


@pytest.mark.ci
def test_each_part_of_the_loss_moves_what_it_should():
    """By hand: codes go to latents, latents to codes, and images through codes."""
    assembly = scratch.vq_vae(codebook_learning="gradient", commitment_weight=0.3)
    module, params = assembly.task.module, assembly.params
    batch, keys = scratch.batch(), example_keys(scratch.KEY, 0, 4)
    images = batch["images"][..., :1]
    codes = params["codebook"]["codes"]
    got = jax.jit(
        jax.grad(lambda p: assembly.task.loss(p, {}, batch, keys, True).losses.sum())
    )(params)

    def encode(network):
        return module.apply({"params": network}, images, method="encode")

    def reconstruction(network, chosen):
        decoded = module.apply({"params": network}, chosen, method="decode")
        return jnp.square(images - decoded).mean((1, 2, 3)).sum()

    @jax.jit
    def by_hand(network):
        latents, back = jax.vjp(encode, network)
        numbers = nearest_codes(latents, codes)
        chosen = codes[numbers]
        pulled = 2 * (chosen - latents) / latents[0].size
        by_code = jnp.zeros_like(codes).at[numbers].add(pulled)
        of_decoder, at_codes = jax.grad(reconstruction, (0, 1))(network, chosen)
        (of_encoder,) = back(at_codes - 0.3 * pulled)
        return by_code, of_encoder, of_decoder

    by_code, of_encoder, of_decoder = by_hand(params["network"])
    np.testing.assert_allclose(got["codebook"]["codes"], by_code, atol=1e-6)
    for name, expected in (("encoder", of_encoder), ("decoder", of_decoder)):
        assert_close = functools.partial(np.testing.assert_allclose, atol=1e-5)
        jax.tree.map(assert_close, got["network"][name], expected[name])


@pytest.mark.parametrize("learning", ["ema", "gradient"])
def test_the_codebook_learns_one_way_or_the_other(learning):
    assembly = scratch.vq_vae(codebook_learning=learning)
    by_gradient = "codebook" in assembly.params
    assert by_gradient == (learning == "gradient")
    assert ("codebook" in assembly.statistics) != by_gradient


@pytest.mark.ci
def test_kl_is_that_of_normal_distributions():
    assembly = kl_task()
    got = outcome(assembly, scratch.batch())
    mean, logvar = encoded(
        assembly.task.module, assembly.params["network"], scratch.batch()["images"]
    )
    kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).mean((1, 2, 3))
    np.testing.assert_allclose(got.metrics["kl"], kl, rtol=1e-5)
    expected = got.metrics["reconstruction"] + 0.5 * kl
    np.testing.assert_allclose(got.losses, expected, rtol=1e-5)


@pytest.mark.ci
def test_training_lowers_the_loss_and_tells_of_the_codebook():
    history, _ = scratch.train(scratch.vq_vae(), 30)
    assert history[-1]["reconstruction"] < 0.7 * history[0]["reconstruction"]
    assert {"perplexity", "codebook_usage", "commitment"} <= set(history[-1])
    assert 1 <= history[-1]["perplexity"] <= 16


@pytest.fixture(scope="module")
def one_update():
    """One update on one device; after more, rounding may choose another entry."""
    return scratch.train(scratch.vq_vae(), 1)


@pytest.mark.ci
def test_averaged_weights_meet_an_averaged_codebook(one_update):
    assembly = scratch.vq_vae()
    _, state = scratch.train(assembly, 1, ema_decay=0.9)
    begin, end = (
        trees.flatten(tree) for tree in (assembly.statistics, state.statistics)
    )
    average = trees.flatten(state.eval_params)
    assert average.keys() == trees.flatten(state.params).keys() | end.keys()
    for path, leaf in end.items():
        # The first decay of the warm-up is 1/10.
        expected = begin[path] + 0.9 * (leaf - begin[path])
        np.testing.assert_allclose(average[path], expected, rtol=1e-4, atol=1e-6)
    _, alone = one_update
    for path, leaf in trees.flatten(alone.eval_params).items():
        own = trees.flatten(alone.params | alone.statistics)[path]
        np.testing.assert_array_equal(leaf, own)


def test_a_published_autoencoder_is_tuned_whole_or_in_its_decoder(tmp_path):
    vae = tiny_stable_diffusion().vae
    save_network(vae, tmp_path, STABLE_DIFFUSION["vae"], None)
    base = load_autoencoder(tmp_path)
    assert trees.fingerprint(base.params) == trees.fingerprint(vae.params)
    whole = kl_task(AutoencoderKLConfig(pretrained=str(tmp_path), dtype="float32"))
    assert whole.frozen == {}
    part = kl_task(
        AutoencoderKLConfig(
            pretrained=str(tmp_path), decoder_only=True, dtype="float32"
        )
    )
    names = {path.split("/")[1] for path in trees.flatten(part.params)}
    assert names == {"decoder", "post_quant_conv"}
    names = {path.split("/")[1] for path in trees.flatten(part.frozen)}
    assert names == {"encoder", "quant_conv"}
    assert part.base["fingerprint"] == trees.fingerprint(vae.params)


@pytest.mark.parametrize(
    ("config", "fields", "said"),
    [
        (VQVAEConfig, {"channels": 4}, "channels=4"),
        (VQVAEConfig, {"codebook_decay": 1.0}, "codebook_decay=1.0"),
        (VQVAEConfig, {"codebook_dead_below": 1.5}, "codebook_dead_below=1.5"),
        (
            VQVAEConfig,
            {"codebook_learning": "gradient", "codebook_decay": 0.5},
            "codebook_decay=0.5: .* codebook_learning=gradient",
        ),
        (VQVAEConfig, {"norm_num_groups": 7}, "not divisible by norm_num_groups=7"),
        (
            AutoencoderKLConfig,
            {"decoder_only": True},
            "decoder_only=True: requires a trained enc",
        ),
        (
            AutoencoderKLConfig,
            {"pretrained": "x", "latent_channels": 16},
            "latent_channels=16: .* pretrained",
        ),
        (AutoencoderKLConfig, {"kl_weight": -1.0}, "kl_weight is -1.0"),
    ],
)
def test_impossible_configs_are_refused(config, fields, said):
    with pytest.raises(UserError, match=said):
        config(**fields)
