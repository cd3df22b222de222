"""A fine-tuned autoencoder is exported to diffusers, and used in another run's base."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.data.pipeline import open_dataset
from medjax.errors import UserError
from medjax.export import export
from medjax.pretrained import load_autoencoder, load_stable_diffusion
from medjax.runs.config import make_config
from medjax.runs.open_run import load_run
from medjax.tasks.latent_scaling import encode
from tests.pretrained.small import assert_same
from tests.saved_runs import save_run

WIDTHS = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}


def save_autoencoder_run(workdir, **model):
    """Write a run of task autoencoder_kl with latents that fit the tiny base."""
    config = make_config("autoencoder_kl")
    config.data.image_size = 16
    config.data.phantoms.count = 16
    config.model.update(model if "pretrained" in model else WIDTHS | model)
    return save_run(workdir, config=config)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The saved weights of an autoencoder's run, and the folder of its export."""
    folder = tmp_path_factory.mktemp("vae")
    saved = save_autoencoder_run(folder / "run")
    return saved, export(folder / "run", folder / "fitted")


@pytest.mark.ci
def test_it_has_the_runs_weights_and_a_card(exported):
    saved, folder = exported
    assert_same(load_autoencoder(folder).params, saved.params["network"])
    card = (folder / "README.md").read_text()
    assert "AutoencoderKL.from_pretrained" in card
    assert "--config.model.vae=fitted" in card
    assert "This model has no base. It started from random weights." in card
    assert "aption" not in card
    assert "synthetic" not in card and "encodes and decodes" in card


def test_its_latents_scale_is_measured(exported, tmp_path):
    """From scratch it is unknown; Stable Diffusion's belongs to another autoencoder."""
    folder = exported[1]
    vae = load_autoencoder(folder)
    run = load_run(folder.parent / "run")
    source = open_dataset(run.config.data, "train")
    pixels = np.stack([source[i]["image"] for i in range(len(source))])
    weights = {"network": vae.params}
    images = jnp.asarray(pixels, jnp.float32) / 127.5 - 1
    keys = jax.random.split(jax.random.key(1), len(images))
    latents = np.asarray(encode(vae.module, weights, images, keys))
    scale = json.loads((folder / "config.json").read_text())["scaling_factor"]
    assert scale == vae.module.scaling_factor != 0.18215
    assert (scale * latents).std() == pytest.approx(1, rel=0.05)
    save_autoencoder_run(tmp_path / "tuned", pretrained=str(folder))
    tuned = export(tmp_path / "tuned", tmp_path / "x", parity=False)
    assert load_autoencoder(tuned).module.scaling_factor == scale


def test_pytorch_computes_the_same(exported):
    pytest.importorskip("torch", reason="torch absent")
    pytest.importorskip("diffusers", reason="diffusers absent")
    report = json.loads((exported[1] / "parity.json").read_text())
    assert report["networks"].keys() == {"vae_encoder", "vae_decoder"}
    for error in report["networks"].values():
        assert 0 < error["relative_l2"] < 1e-5


@pytest.mark.release
def test_a_gray_one_goes_out_too(tmp_path):
    saved = save_autoencoder_run(tmp_path / "run", channels=1)
    folder = export(tmp_path / "run", tmp_path / "x", format="vae")
    assert_same(load_autoencoder(folder).params, saved.params["network"])


@pytest.mark.ci
def test_a_run_stands_on_it(exported, tmp_path):
    saved, folder = exported
    save_run(tmp_path / "run", model__vae=str(folder))
    run = load_run(tmp_path / "run")
    assert_same(run.sd.vae.params, saved.params["network"])
    out = export(tmp_path / "run", tmp_path / "x", parity=False)
    assert_same(load_stable_diffusion(out).vae.params, saved.params["network"])
    card = (out / "README.md").read_text()
    assert "Its autoencoder was replaced by `fitted`" in card
    assert "--config.model.vae=VAE" in card


@pytest.mark.release
def test_another_one_in_its_place_is_refused(exported, tmp_path):
    folder = tmp_path / "fitted"
    save_autoencoder_run(tmp_path / "first")
    export(tmp_path / "first", folder, parity=False)
    save_run(tmp_path / "run", model__vae=str(folder))
    save_autoencoder_run(tmp_path / "second", layers_per_block=2)
    export(tmp_path / "second", folder, parity=False, overwrite=True)
    with pytest.raises(UserError, match="is not the one that the run was trained on"):
        load_run(tmp_path / "run")


@pytest.mark.ci
def test_one_whose_latents_do_not_fit_is_refused(tmp_path):
    save_autoencoder_run(tmp_path / "run", latent_channels=8)
    folder = export(tmp_path / "run", tmp_path / "x", parity=False)
    with pytest.raises(UserError, match=r"config.model.vae=.*gives 8"):
        save_run(tmp_path / "other", model__vae=str(folder))


def test_other_formats_and_tasks_are_refused(exported, tmp_path):
    run = exported[1].parent / "run"
    with pytest.raises(UserError, match="Expected --format=vae"):
        export(run, tmp_path / "x", format="pipeline")
    save_run(tmp_path / "run")
    with pytest.raises(UserError, match="--format=pipeline or controlnet"):
        export(tmp_path / "run", tmp_path / "x", format="vae")
