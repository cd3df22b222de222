"""The U-Nets without text: diffusers' numbers, the published sizes, and their norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import trees
from medjax.errors import UserError
from medjax.models.conv_unet import ConvUNet
from medjax.models.unet_2d import UNet2D
from medjax.pretrained.names import to_torch, torch_names

SMALL = {
    "channels": 2,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_levels": (1,),
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}


@pytest.mark.parametrize("levels", [(1,), pytest.param((), marks=pytest.mark.ci)])
def test_unet_2d_is_that_of_diffusers(levels):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    ours = UNet2D(**SMALL | {"attention_levels": levels}, num_classes=2)
    params, _ = ours.init_variables(jax.random.key(0))
    theirs = diffusers.UNet2DModel(
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=(
            "DownBlock2D",
            "AttnDownBlock2D" if levels else "DownBlock2D",
        ),
        up_block_types=("AttnUpBlock2D" if levels else "UpBlock2D", "UpBlock2D"),
        add_attention=bool(levels),
        attention_head_dim=4,
        norm_num_groups=4,
        norm_eps=1e-5,
        num_class_embeds=3,
    ).eval()
    flat = trees.flatten(params)
    stored = {
        torch_names(path)[0]: torch.from_numpy(np.array(to_torch(path, np.asarray(x))))
        for path, x in flat.items()
    }
    theirs.load_state_dict(stored, strict=True)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 8, 12, 2)).astype(np.float32)
    timesteps, labels = np.array([3, 801]), np.array([0, 2])
    given = (jnp.asarray(x) for x in (images, timesteps, labels))
    got = jax.jit(ours.apply)({"params": params}, *given)
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(images.transpose(0, 3, 1, 2)),
            torch.from_numpy(timesteps),
            class_labels=torch.from_numpy(labels),
        ).sample
    expected = expected.numpy().transpose(0, 2, 3, 1)
    assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 31_140_577),
        ({"channels": 4, "layers_per_block": 2, "residual": True}, 45_152_996),
    ],
)
def test_the_published_networks_have_their_size(fields, count):
    unet = ConvUNet(**fields)
    params, stats = unet.init_variables(jax.random.key(0))
    assert trees.count(params) == count
    # Running averages are not counted.
    assert trees.count(stats) > 0


@pytest.fixture(scope="module")
def conv_unet():
    unet = ConvUNet(block_out_channels=(4, 8, 8), residual=True, num_classes=2)
    params, stats = unet.init_variables(jax.random.key(0))
    apply = jax.jit(unet.apply, static_argnames=("train", "mutable"))
    return apply, {"params": params, "batch_stats": stats}


def test_evaluation_normalises_by_running_averages(conv_unet):
    apply, variables = conv_unet
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((4, 8, 8, 1)), jnp.float32)
    times, labels = jnp.arange(4), jnp.array([0, 1, 2, 0])
    alone = apply(variables, images[:1], times[:1], labels[:1])
    together = apply(variables, images, times, labels)
    # In training mode an example's result depends on the others of its batch.
    np.testing.assert_allclose(alone, together[:1], atol=1e-5)
    trained, _ = apply(
        variables, images, times, labels, train=True, mutable="batch_stats"
    )
    assert jnp.abs(trained - together).max() > 1e-2


@pytest.mark.ci
def test_running_averages_approach_the_batches(conv_unet):
    apply, variables = conv_unet
    rng = np.random.default_rng(0)
    images = jnp.asarray(3 + 2 * rng.standard_normal((8, 8, 8, 1)), jnp.float32)
    times, labels = jnp.zeros(8), jnp.zeros(8, jnp.int32)

    given = variables
    for _ in range(100):
        trained, renewed = apply(
            given, images, times, labels, train=True, mutable="batch_stats"
        )
        given = {**variables, **renewed}
    np.testing.assert_allclose(apply(given, images, times, labels), trained, atol=1e-3)


def test_a_class_changes_the_output(conv_unet):
    apply, variables = conv_unet
    images, times = jnp.zeros((3, 8, 8, 1)), jnp.zeros(3)
    outputs = apply(variables, images, times, jnp.arange(3))
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert jnp.abs(outputs[one] - outputs[other]).max() > 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"norm_num_groups": 3}, "not divisible by norm_num_groups=3"),
        ({"attention_levels": (2,)}, "levels contains 2; expected levels .* to 1"),
    ],
)
def test_widths_that_do_not_fit_are_told(fields, said):
    with pytest.raises(UserError, match=said):
        UNet2D(**SMALL | fields).check()
