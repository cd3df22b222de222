"""Exports of adapters hold all numbers of the run in each format, or are refused."""

import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from medjax import trees
from medjax.errors import UserError
from medjax.export import export
from medjax.models.layers import conv, dense
from medjax.pretrained import load_stable_diffusion
from medjax.pretrained.names import torch_names
from medjax.pretrained.tiny import tiny_stable_diffusion
from medjax.runs.open_run import load_run
from medjax.tasks.adapter_export import exact, low_rank_changes
from medjax.tasks.adapters import AdapterConfig
from tests.pretrained.small import assert_same
from tests.saved_runs import save_run
from tests.tiny_lora import get_config

LORA, KOHYA = "pytorch_lora_weights.safetensors", "lora_chests.safetensors"
NETWORKS = ("unet", "text_encoder")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A run with adapters in both networks, and the weights that it saved."""
    workdir = tmp_path_factory.mktemp("runs") / "chests"
    return workdir, save_run(workdir, config=get_config())


def kernel(tensors, a, b, scale):
    """Return the change to a torch kernel by two stored matrices."""
    down, up = tensors[a].astype(np.float64), tensors[b].astype(np.float64)
    return scale * np.einsum("or,r...->o...", up.reshape(up.shape[:2]), down)


def changes(sd):
    """Return how a Stable Diffusion differs from the tiny one, in torch's layout."""
    base = tiny_stable_diffusion()
    for network in NETWORKS:
        before = trees.flatten(getattr(base, network).params)
        for path, leaf in trees.flatten(getattr(sd, network).params).items():
            change = leaf.astype(np.float64) - before[path]
            if change.any():
                yield (
                    network,
                    path.removesuffix("/kernel"),
                    np.moveaxis(np.swapaxes(change, -1, -2), (-2, -1), (0, 1)),
                )


def test_the_base_is_untouched_but_for_targets_and_named_layers(adapted):
    sd = load_run(adapted[0]).sd
    changed = {f"{network}/{layer}" for network, layer, _ in changes(sd)}
    params = trees.flatten(adapted[1].params)
    assert changed == {path.rpartition("/")[0] for path in params}
    assert sd.adapters.keys() == set(NETWORKS)
    assert load_run(adapted[0]).trained == ("text_encoder", "unet")


def test_diffusers_file_comes_to_the_runs_kernels(adapted, tmp_path):
    folder = export(adapted[0], tmp_path / "x")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", LORA]
    tensors = load_file(folder / LORA)
    with safe_open(folder / LORA, "numpy") as file:
        about = json.loads(file.metadata()["lora_adapter_metadata"])
    # Programs that read the header and others use the same factor: one.
    assert (about["unet.r"], about["unet.lora_alpha"]) == (4, 4)
    assert (about["text_encoder.r"], about["text_encoder.lora_alpha"]) == (2, 2)
    found = set()
    for network, layer, change in changes(load_run(adapted[0]).sd):
        name = torch_names(f"{layer}/kernel")[0].removesuffix(".weight")
        a, b = (f"{network}.{name}.lora_{x}.weight" for x in "AB")
        short = name.removeprefix("text_model.")
        rank = about[f"{network}.rank_pattern"].get(short, about[f"{network}.r"])
        alpha = about[f"{network}.alpha_pattern"].get(
            short, about[f"{network}.lora_alpha"]
        )
        assert tensors[a].shape[0] == rank == alpha
        got = kernel(tensors, a, b, 1)
        np.testing.assert_allclose(got, change, atol=1e-6)
        assert short in about[f"{network}.target_modules"]
        found |= {a, b}
    assert found == tensors.keys()
    card = (folder / "README.md").read_text()
    assert f'load_lora_weights("x", weight_name="{LORA}")' in card
    assert "- lora\n" in card and "config.model.unet_lora.rank = 4" in card


def test_web_uis_file_comes_to_the_runs_kernels(adapted, tmp_path):
    folder = export(adapted[0], tmp_path / "x", format="kohya", dtype="float16")
    tensors = load_file(folder / KOHYA)
    found = set()
    for network, layer, change in changes(load_run(adapted[0]).sd):
        prefix = {"unet": "lora_unet", "text_encoder": "lora_te"}[network]
        name = f"{prefix}_{layer.replace('/', '_')}"
        names = [f"{name}.lora_{x}.weight" for x in ("down", "up")]
        assert tensors[names[0]].dtype == np.float16
        scale = float(tensors[f"{name}.alpha"]) / tensors[names[0]].shape[0]
        got = kernel(tensors, *names, scale)
        np.testing.assert_allclose(got, change, atol=2e-3 * np.abs(change).max())
        found |= {*names, f"{name}.alpha"}
    assert found == tensors.keys()
    card = (folder / "README.md").read_text()
    assert f"`{KOHYA}`" in card and "<lora:lora_chests:1>" in card


def test_merged_they_are_the_pipeline_that_sampling_uses(adapted, tmp_path):
    folder = export(adapted[0], tmp_path / "x", format="pipeline", parity=False)
    loaded, run = load_stable_diffusion(folder), load_run(adapted[0])
    for name in NETWORKS:
        assert_same(getattr(loaded, name).params, getattr(run.sd, name).params)


@pytest.mark.release
@pytest.mark.parametrize(("dtype", "least"), [("float32", 0), ("bfloat16", 1e-4)])
def test_merged_they_have_their_parity(dtype, least, adapted, tmp_path):
    pytest.importorskip("torch", reason="torch absent")
    pytest.importorskip("diffusers", reason="diffusers absent")
    folder = export(
        adapted[0], tmp_path / "x", format="pipeline", dtype=dtype, parity=True
    )
    report = json.loads((folder / "parity.json").read_text())
    assert least < report["networks"]["unet"]["relative_l2"]
    assert report["stored"] == dtype


@pytest.mark.parametrize(
    ("layer", "fan_in", "rank"),
    [
        (dense(9, name="l"), (5,), 5),
        (dense(3, name="l"), (5,), 3),
        (conv(40, name="l"), (3, 3, 4), 36),
        (conv(20, stride=2, name="l"), (3, 3, 4), 20),
    ],
)
def test_a_whole_layer_is_of_low_rank_without_an_error(layer, fan_in, rank):
    random = np.random.default_rng(0)
    change = random.standard_normal((*fan_in, layer.features)).astype(np.float32)
    low = exact(change)
    assert low.rank == low.alpha == rank
    np.testing.assert_array_equal(low.a @ low.b, change)
    x = random.standard_normal((2, 7, 7, fan_in[-1])).astype(np.float32)
    bias = np.zeros(layer.features, np.float32)
    zero = {"kernel": np.zeros_like(change), "bias": bias}
    adapter = {"lora_a": low.a, "lora_b": low.b, "lora_scale": 1.0}
    got = layer.apply({"params": zero, "lora": adapter}, jax.numpy.asarray(x))
    expected = layer.apply({"params": zero | {"kernel": change}}, jax.numpy.asarray(x))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_what_is_no_kernel_is_told_and_what_did_not_move_is_left_out():
    base = {"conv": {"kernel": np.ones((1, 1, 2, 3), np.float32), "bias": np.zeros(3)}}
    config = AdapterConfig(rank=1)
    same = low_rank_changes(base, base, config)
    assert not same.layers and not same.rest
    moved = jax.tree.map(lambda x: x + 1, base)
    both = low_rank_changes(base, moved, config)
    assert list(both.layers) == ["conv"] and both.rest == ("conv/bias",)


@pytest.mark.ci
@pytest.mark.parametrize("format", [None, "lora", "kohya"])
def test_a_trained_bias_goes_out_merged_alone(format, tmp_path):
    config = get_config("unet")
    config.model.unet_lora.modules_to_save = ("conv_in",)
    save_run(tmp_path / "run", config=config)
    with pytest.raises(UserError, match="unet/conv_in/bias, .*--format=pipeline"):
        export(tmp_path / "run", tmp_path / "x", format=format)
    folder = export(tmp_path / "run", tmp_path / "x", format="pipeline", parity=False)
    bias = load_stable_diffusion(folder).unet.params["conv_in"]["bias"]
    assert (bias != tiny_stable_diffusion().unet.params["conv_in"]["bias"]).all()


@pytest.mark.parametrize("format", [None, "lora"])
@pytest.mark.parametrize("missing", [[], ["torch"]])
def test_parity_of_a_file_is_refused_with_and_without_torch(
    missing, format, adapted, tmp_path, monkeypatch
):
    monkeypatch.setattr("medjax.pretrained.parity.missing_libraries", lambda _: missing)
    with pytest.raises(UserError, match="--parity: .*not --format=lora"):
        export(adapted[0], tmp_path / "x", format=format, parity=True)


def test_formats_that_do_not_apply_are_refused(adapted, tmp_path):
    with pytest.raises(UserError, match="Expected --format=lora or kohya or pipeline"):
        export(adapted[0], tmp_path / "x", format="controlnet")


def test_a_card_says_what_the_base_does_not_know(adapted, tmp_path):
    workdir = tmp_path / "run"
    save_run(
        workdir, config=get_config("unet"), diffusion__prediction_type="v_prediction"
    )
    card = (export(workdir, tmp_path / "x") / "README.md").read_text()
    assert 'prediction_type="v_prediction"' in card
    compile(card.partition("```python\n")[2].partition("```")[0], "card", "exec")
    card = (export(adapted[0], tmp_path / "y") / "README.md").read_text()
    assert "Scheduler" not in card
