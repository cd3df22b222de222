"""Names and layouts: one mapping, its inverse, and errors that name the weights."""

import numpy as np
import pytest

from medjax import trees
from medjax.errors import UserError
from medjax.pretrained import names
from tests.pretrained.small import PARTS, network

NETWORKS = [(name, "sd1") for name in PARTS]
NETWORKS += [(name, kind) for name in ("unet", "controlnet") for kind in ("sd2", "odd")]

EXAMPLES = {
    "time_embedding/linear_1/kernel": "time_embedding.linear_1.weight",
    "conv_norm_out/scale": "conv_norm_out.weight",
    "down_blocks_0/attentions_1/transformer_blocks_0/ff/net_0/proj/kernel": (
        "down_blocks.0.attentions.1.transformer_blocks.0.ff.net.0.proj.weight"
    ),
    "up_blocks_1/attentions_0/transformer_blocks_0/attn2/to_out_0/bias": (
        "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0.bias"
    ),
    "controlnet_cond_embedding/blocks_3/kernel": (
        "controlnet_cond_embedding.blocks.3.weight"
    ),
    "controlnet_down_blocks_11/bias": "controlnet_down_blocks.11.bias",
    "decoder/mid_block/attentions_0/proj_attn/kernel": (
        "decoder.mid_block.attentions.0.to_out.0.weight"
    ),
    "text_model/encoder/layers/10/self_attn/q_proj/kernel": (
        "text_model.encoder.layers.10.self_attn.q_proj.weight"
    ),
    "text_model/embeddings/token_embedding/embedding": (
        "text_model.embeddings.token_embedding.weight"
    ),
}


@pytest.mark.parametrize("path", EXAMPLES)
def test_names_are_torchs(path):
    assert names.torch_names(path)[0] == EXAMPLES[path]


@pytest.mark.parametrize(("name", "kind"), NETWORKS)
def test_mapping_inverts_and_no_two_weights_share_a_name(name, kind):
    flat = trees.flatten(network(name, kind).params)
    every = [alias for path in flat for alias in names.torch_names(path)]
    assert len(set(every)) == len(every)
    for path, leaf in flat.items():
        stored = names.to_torch(path, leaf)
        assert stored.shape == names.torch_shape(path, leaf.shape)
        back = names.from_torch(path, leaf.shape, stored)
        np.testing.assert_array_equal(back, leaf)


def test_layouts_are_torchs():
    kernel = np.arange(3 * 5 * 7 * 11).reshape(3, 5, 7, 11)
    stored = names.to_torch("conv_in/kernel", kernel)
    assert stored.shape == (11, 7, 3, 5)
    assert stored[2, 4, 1, 3] == kernel[1, 3, 4, 2]
    dense = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(names.to_torch("to_q/kernel", dense), dense.T)
    np.testing.assert_array_equal(names.to_torch("a/embedding", dense), dense)


def expected_and_stored(name):
    flat = trees.flatten(network(name).params)
    expected = {path: leaf.shape for path, leaf in flat.items()}
    stored = {
        names.torch_names(path)[0]: names.torch_shape(path, shape)
        for path, shape in expected.items()
    }
    return expected, stored


def test_every_weight_that_does_not_fit_is_named():
    expected, stored = expected_and_stored("unet")
    del stored["conv_in.bias"]
    stored["time_embedding.linear_9.weight"] = (3,)
    stored["conv_out.weight"] = (4, 16, 1, 1)
    with pytest.raises(UserError) as error:
        names.match(expected, stored, "FILE")
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("FILE")
    assert "missing: conv_in.bias;" in message
    assert "unexpected: time_embedding.linear_9.weight;" in message
    assert "conv_out.weight (4, 16, 1, 1) instead of (4, 16, 3, 3)" in message


def test_an_endless_list_is_cut():
    expected, _ = expected_and_stored("unet")
    with pytest.raises(UserError, match=r"missing: .*\.weight and \d+ more"):
        names.match(expected, {}, "FILE")


def test_position_ids_are_no_weight():
    expected, stored = expected_and_stored("text_encoder")
    stored["text_model.embeddings.position_ids"] = (1, 77)
    assert len(names.match(expected, stored, "FILE")) == len(expected)


def test_text_encoders_of_newer_files_have_no_prefix():
    expected, stored = expected_and_stored("text_encoder")
    bare = {name.removeprefix("text_model."): s for name, s in stored.items()}
    assert len(names.match(expected, bare, "FILE")) == len(expected)


def test_1x1_convolutions_pass_for_dense_layers_in_old_autoencoders_alone():
    expected, stored = expected_and_stored("vae")
    name = "encoder.mid_block.attentions.0.to_q.weight"
    as_conv = stored | {name: (*stored[name], 1, 1)}
    assert len(names.match(expected, as_conv, "FILE")) == len(expected)

    expected, stored = expected_and_stored("unet")
    name = "time_embedding.linear_1.weight"
    with pytest.raises(UserError, match="time_embedding.linear_1.weight"):
        names.match(expected, stored | {name: (*stored[name], 1, 1)}, "FILE")


def test_trees_are_compared_both_ways():
    with pytest.raises(UserError, match=r"missing: b; unexpected: c; .*a \(2,\)"):
        names.check_tree({"a": (1,), "b": (1,)}, {"a": (2,), "c": (1,)}, "here")
