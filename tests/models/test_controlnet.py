"""A ControlNet begins as the U-Net's encoder, and says nothing yet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import trees
from medjax.errors import UserError
from medjax.models.controlnet import COPIED, ControlNet, config_from_unet
from medjax.models.unet_2d_condition import UNet2DCondition

CONFIG = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
}


ONE_LEVEL = CONFIG | {
    "block_out_channels": (8,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "norm_num_groups": 4,
}


def made(config):
    """Return a U-Net and a ControlNet, each with its weights."""
    unet = UNet2DCondition.from_config(config)
    unet_params = unet.init_params(jax.random.key(0))
    controlnet = ControlNet.from_config(config_from_unet(config, 4))
    params = controlnet.init_from_unet(unet_params, jax.random.key(1))
    return unet, unet_params, controlnet, params


@pytest.fixture(scope="module")
def networks():
    return made(CONFIG)


def inputs(seed=2, height=6, width=5):
    a, b, c = jax.random.split(jax.random.key(seed), 3)
    return (
        jax.random.normal(a, (2, height, width, 4)),
        jnp.array([1, 900]),
        jax.random.normal(b, (2, 7, 12)),
        jax.random.uniform(c, (2, 4 * height, 4 * width, 3)),
    )


def test_copy_is_exact_and_complete(networks):
    _, unet_params, controlnet, params = networks
    flat, original = trees.flatten(params), trees.flatten(unet_params)
    copied = [path for path in flat if path.startswith(COPIED)]
    assert len(copied) > 50
    for path in copied:
        np.testing.assert_array_equal(flat[path], original[path])
    drawn = trees.flatten(controlnet.param_shapes())
    assert {p: v.shape for p, v in flat.items()} == {
        p: v.shape for p, v in drawn.items()
    }


def test_residuals_are_exactly_zero_at_the_start(networks):
    unet, unet_params, controlnet, params = networks
    latents, timesteps, text, picture = inputs()
    down, mid = jax.jit(controlnet.apply)(
        {"params": params}, latents, timesteps, text, picture
    )
    assert all((x == 0).all() for x in [*down, mid])
    apply = jax.jit(unet.apply)
    without = apply({"params": unet_params}, latents, timesteps, text)
    given = apply({"params": unet_params}, latents, timesteps, text, down, mid)
    np.testing.assert_array_equal(without, given)


@pytest.mark.ci
def test_all_of_it_gets_a_gradient_after_one_update(networks):
    unet, unet_params, controlnet, params = networks

    def loss(params):
        latents, *rest = inputs()
        down, mid = controlnet.apply({"params": params}, latents, *rest)
        return (
            unet.apply({"params": unet_params}, latents, *rest[:2], down, mid) ** 2
        ).mean()

    step = jax.jit(
        lambda p: jax.tree.map(lambda a, g: a - 0.1 * g, p, jax.grad(loss)(p))
    )
    for _ in range(3):
        before, params = params, step(params)
    same = [
        path
        for path, leaf in trees.flatten(params).items()
        if (leaf == trees.flatten(before)[path]).all()
    ]
    assert same == []


@pytest.mark.ci
def test_scale_multiplies_and_bgr_reverses(networks):
    _, _, controlnet, params = networks
    params = jax.tree.map(lambda x: x + 0.01, params)
    latents, timesteps, text, picture = inputs()
    call = jax.jit(controlnet.apply)
    down, mid = call({"params": params}, latents, timesteps, text, picture)
    half, half_mid = call({"params": params}, latents, timesteps, text, picture, 0.5)
    np.testing.assert_allclose(half[2], 0.5 * down[2], rtol=1e-6)
    each, _ = call(
        {"params": params}, latents, timesteps, text, picture, jnp.array([1.0, 0.0])
    )
    np.testing.assert_allclose(each[2][0], down[2][0], rtol=1e-6)
    assert (each[2][1] == 0).all()
    np.testing.assert_allclose(half_mid, 0.5 * mid, rtol=1e-6)
    bgr = controlnet.clone(controlnet_conditioning_channel_order="bgr")
    _, reversed_mid = jax.jit(bgr.apply)(
        {"params": params}, latents, timesteps, text, picture[..., ::-1]
    )
    np.testing.assert_allclose(reversed_mid, mid, rtol=1e-5, atol=1e-6)


@pytest.mark.ci
@pytest.mark.parametrize("policy", ["attention", "full"])
def test_remat_changes_no_gradient(policy):
    unet, unet_params, _, _ = made(ONE_LEVEL)
    latents, timesteps, text, _ = inputs()

    def gradient(module):
        def loss(params):
            return (
                module.apply({"params": params}, latents, timesteps, text) ** 2
            ).sum()

        return jax.jit(jax.grad(loss))(unet_params)

    plain, again = gradient(unet), gradient(unet.clone(remat=policy))
    again = trees.flatten(again)
    for path, leaf in trees.flatten(plain).items():
        # Biases before a norm have no effect: their gradients are rounding alone.
        error = np.linalg.norm(again[path] - leaf)
        assert error <= 1e-4 * np.linalg.norm(leaf) + 1e-3, path


@pytest.mark.ci
def test_forward_mode_agrees_with_reverse_mode():
    """⟨J v, g⟩ = ⟨v, Jᵀ g⟩, through both networks."""
    unet, unet_params, controlnet, params = made(ONE_LEVEL)
    latents, timesteps, text, picture = inputs()
    rng = np.random.default_rng(0)

    def drawn(x):
        return jnp.asarray(0.1 * rng.standard_normal(x.shape), x.dtype)

    params = jax.tree.map(lambda x: x + drawn(x), params)

    def predict(latents, params):
        given = (latents, timesteps, text)
        residuals = controlnet.apply({"params": params}, *given, picture)
        return unet.apply({"params": unet_params}, *given, *residuals)

    at, along = (latents, params), jax.tree.map(drawn, (latents, params))
    output, change = jax.jit(lambda x, v: jax.jvp(predict, x, v))(at, along)
    gradient = drawn(output)
    gradients = jax.jit(lambda x, g: jax.vjp(predict, *x)[1](g))(at, gradient)
    products = jax.tree.map(lambda v, g: (v * g).sum(), along, gradients)
    reverse = sum(jax.tree.leaves(products))
    np.testing.assert_allclose((change * gradient).sum(), reverse, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn='gelu'"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "AttnDownBlock2D"),
        ({"norm_num_groups": 7}, "7 groups"),
        ({"attention_head_dim": [2]}, "2 levels"),
        ({"key_of_a_later_version": "on"}, "key_of_a_later_version"),
    ],
)
def test_what_is_not_computed_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        UNet2DCondition.from_config({**CONFIG, **change})


def test_autoencoders_that_shrink_otherwise_are_refused():
    with pytest.raises(UserError, match="16×"):
        config_from_unet(CONFIG, 16)


def test_a_controlnet_for_another_base_is_refused(networks):
    unet, _, controlnet, _ = networks
    controlnet.check_fits(unet, 4)
    with pytest.raises(UserError, match="downsampling 4, not 8"):
        controlnet.check_fits(unet, 8)
    wide = config_from_unet(CONFIG | {"cross_attention_dim": 20}, 4)
    with pytest.raises(UserError, match="cross_attention_dim 20, not 12"):
        ControlNet.from_config(wide).check_fits(unet, 4)


@pytest.mark.parametrize("key", ["global_pool_conditions", "resnet_skip_time_act"])
def test_an_option_that_is_switched_on_and_not_computed_is_refused(key):
    config = config_from_unet(CONFIG, 4)
    ControlNet.from_config(config | {key: False})
    with pytest.raises(UserError, match=key):
        ControlNet.from_config(config | {key: True})
