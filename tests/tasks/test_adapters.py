"""Adapters lie where they are asked for, begin as peft's, and merge into kernels."""

import jax
import numpy as np
import pytest

from medjax import trees
from medjax.errors import UserError
from medjax.models.lora import is_adapter
from medjax.models.unet_2d_condition import UNet2DCondition
from medjax.pretrained.tiny import tiny_stable_diffusion
from medjax.tasks.adapters import (
    AdapterConfig,
    draw_adapters,
    merge_adapters,
    saved_paths,
    with_adapters,
)

KEY = jax.random.key(0)
UNET, TEXT = (
    getattr(tiny_stable_diffusion(), n).params for n in ("unet", "text_encoder")
)


def layers(tree):
    """Return the layers that have an adapter."""
    return {path.rpartition("/")[0] for path in trees.flatten(tree) if is_adapter(path)}


def test_by_default_all_projections_of_attention_have_one():
    for network, params, ends in (
        ("unet", UNET, ("to_q", "to_k", "to_v", "to_out_0")),
        ("text_encoder", TEXT, ("q_proj", "k_proj", "v_proj", "out_proj")),
    ):
        drawn = layers(draw_adapters(network, params, AdapterConfig(rank=2), KEY))
        paths = {path.rpartition("/")[0] for path in trees.flatten(params)}
        assert drawn == {path for path in paths if path.endswith(ends)} != set()


@pytest.mark.ci
def test_stable_diffusion_gets_as_many_numbers_as_by_peft():
    shapes = UNet2DCondition().param_shapes()
    drawn = draw_adapters("unet", shapes, AdapterConfig(rank=4), KEY)
    assert trees.count(drawn) == 797_184


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("conv_in", {"conv_in"}),
        ("mid_block/*/attn2/to_[kv]", {f"attn2/to_{x}" for x in "kv"}),
        ("time_emb_proj", {"time_emb_proj"}),
    ],
)
def test_a_target_is_the_end_of_a_path(target, found):
    config = AdapterConfig(rank=2, targets=(target,))
    drawn = layers(draw_adapters("unet", UNET, config, KEY))
    depth = next(iter(found)).count("/") + 1
    assert {"/".join(path.split("/")[-depth:]) for path in drawn} == found


def test_they_begin_uniform_within_the_root_of_their_inputs_and_at_zero():
    config = AdapterConfig(rank=5, targets=("conv1", "to_q"))
    flat = trees.flatten(draw_adapters("unet", UNET, config, KEY))
    own = trees.flatten(UNET)
    for path, leaf in flat.items():
        layer, _, name = path.rpartition("/")
        shape = own[f"{layer}/kernel"].shape
        assert leaf.dtype == np.float32
        if name == "lora_b":
            assert leaf.shape == (5, shape[-1]) and not leaf.any()
            continue
        assert leaf.shape == (*shape[:-1], 5)
        bound = np.prod(shape[:-1]) ** -0.5
        assert 0.95 * bound < np.abs(leaf).max() <= bound
        # The variance of numbers that are uniform.
        assert leaf.var() == pytest.approx(bound**2 / 3, rel=0.2)
    drawn = [leaf.tobytes() for path, leaf in flat.items() if path.endswith("a")]
    assert len(set(drawn)) == len(drawn)
    again = trees.flatten(draw_adapters("unet", UNET, config, KEY))
    assert all((again[path] == leaf).all() for path, leaf in flat.items())


def test_merging_leaves_all_but_targets_and_takes_the_scale_in():
    config = AdapterConfig(rank=2, alpha=3.0, targets=("conv1", "to_q"))
    drawn = draw_adapters("unet", UNET, config, KEY)
    moved = jax.tree.map(lambda x: x + np.float32(0.1), drawn)
    flat, before = trees.flatten(moved), trees.flatten(UNET)
    merged = trees.flatten(merge_adapters(trees.merge(UNET, moved), config))
    assert merged.keys() == before.keys()
    for path, leaf in merged.items():
        assert leaf.dtype == np.float32
        layer, _, name = path.rpartition("/")
        if layer not in layers(moved) or name != "kernel":
            np.testing.assert_array_equal(leaf, before[path])
            continue
        a, b = flat[f"{layer}/lora_a"], flat[f"{layer}/lora_b"]
        change = 1.5 * np.einsum("...r,ro->...o", a.astype(np.float64), b)
        np.testing.assert_allclose(leaf - before[path], change, atol=1e-6)


def test_only_dropout_needs_keys():
    keys = jax.random.split(KEY, 4)
    drawn = {
        path: set(trees.flatten(with_adapters(tree, config, given)))
        for path, config, given, tree in (
            ("neither", AdapterConfig(rank=2), keys, None),
            ("no keys", AdapterConfig(rank=2, dropout=0.1), None, None),
            ("dropout", AdapterConfig(rank=2, dropout=0.1), keys, None),
        )
        for tree in [draw_adapters("text_encoder", TEXT, config, KEY)]
    }
    names = {
        kind: {p.rpartition("/")[2] for p in paths} for kind, paths in drawn.items()
    }
    assert names["neither"] == names["no keys"] == {"lora_a", "lora_b", "lora_scale"}
    assert names["dropout"] == names["neither"] | {"lora_keys", "lora_rate"}


def test_whole_layers_are_named_like_targets_or_by_one_array():
    def paths(*names):
        config = AdapterConfig(rank=2, modules_to_save=names)
        return saved_paths("unet", UNET, config)

    assert paths("conv_in") == {"conv_in/kernel", "conv_in/bias"}
    assert paths("conv_in/kernel", "conv_norm_out/scale") == {
        "conv_in/kernel",
        "conv_norm_out/scale",
    }
    assert paths() == set()
    assert {path.split("/")[0] for path in paths("mid_block")} == {"mid_block"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ("to.out.0",)}, "targets: 'to.out.0' .* did you mean 'to_out_0'"),
        ({"targets": ("o_q",)}, "targets: 'o_q' is not a layer of the unet"),
        ({"targets": ("conv_norm_out",)}, "targets: 'conv_norm_out' is not a layer"),
        ({"modules_to_save": ("convin",)}, "modules_to_save: .* mean 'conv_in'"),
        (
            {"targets": ("conv_in",), "modules_to_save": ("conv_in",)},
            "unet_lora: conv_in is in both targets and modules_to_save",
        ),
    ],
)
def test_what_the_network_has_not_is_named(settings, message):
    with pytest.raises(UserError, match=message):
        draw_adapters("unet", UNET, AdapterConfig(rank=2, **settings), KEY)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 2, "alpha": 0.0}, "alpha=0.0"),
        ({"rank": 2, "dropout": 1.0}, "dropout=1.0"),
        ({"alpha": 2.0}, "alpha=2.0: rank is None"),
        ({"dropout": 0.1}, "dropout=0.1: rank is None"),
        ({"targets": ("to_q",)}, "targets=.*: rank is None"),
        ({"modules_to_save": ("conv_in",)}, "modules_to_save=.*: rank is None"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        AdapterConfig(**settings)
