"""A Stable Diffusion from scratch: an autoencoder first, then all else upon it."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import phantom_sd, phantom_vae
from medjax import trees
from medjax.errors import UserError
from medjax.export import export
from medjax.models.autoencoder_kl import AutoencoderKL
from medjax.pretrained import efficientnet, load_stable_diffusion, phantom
from medjax.runs import open_run
from medjax.runs.config import make_config, parse
from medjax.runs.open_run import load_run
from medjax.sampling.source import load_source
from medjax.tasks import caption_measures
from medjax.tasks.adapters import AdapterConfig
from medjax.tasks.caption_measures import TextToImageEvalConfig, measure_likeness
from medjax.tasks.interface import SamplePage, TaskInputs
from medjax.tasks.latent_scaling import TrainedAutoencoder
from medjax.tasks.text_to_image import TextToImageConfig, make_text_to_image_task
from medjax.training.two_stages import train_stages
from tests.pretrained.small import assert_same
from tests.saved_runs import save_run
from tests.smallest import TEXT, UNET

NETWORKS = ("unet", "vae", "text_encoder")


def shrunk(config, **changes):
    """Return a config of two steps on phantoms of 16 × 16 pixels."""
    config.data.image_size = 16
    config.data.batch_size = 8
    config.data.phantoms.count = 16
    config.train.steps = 2
    config.eval.examples = 8
    config.eval.samples = 2
    for key, value in changes.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return config


@pytest.fixture(scope="module")
def small_networks():
    """Networks of phantom-SD's kind that compile in seconds, while the module runs."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(phantom, "_UNET", UNET)
        patched.setattr(phantom, "_TEXT", TEXT)
        yield


@pytest.fixture(scope="module")
def trained(small_networks, tmp_path_factory):
    """Folders of an autoencoder's run and of one upon it, and the latter's state."""
    folder = tmp_path_factory.mktemp("scratch")
    save_run(
        folder / "vae",
        config=shrunk(
            phantom_vae.get_config(),
            model__block_out_channels=(8, 8),
            model__norm_num_groups=4,
        ),
    )
    config = shrunk(
        phantom_sd.get_config(),
        model__autoencoder=str(folder / "vae"),
        model__autoencoder_config=None,
        eval__sampler_steps=2,
        optim__ema_decay=None,
    )
    return folder / "vae", folder / "sd", train_stages(parse(config), folder / "sd")


@pytest.mark.ci
def test_all_but_the_autoencoder_trains(trained):
    vae, sd, state = trained
    run = load_run(sd)
    assert run.trained == ("text_encoder", "unet")
    for name in run.trained:
        assert_same(getattr(run.sd, name).params, state.params[name])
    assert_same(run.sd.vae.params, load_run(vae).model.weights["network"])


@pytest.mark.ci
def test_latents_have_unit_variance(trained):
    _, sd, state = trained
    deviation = float(state.statistics["vae"]["deviation"])
    found = load_run(sd).sd.vae
    assert found.config["scaling_factor"] == pytest.approx(1 / deviation)
    assert found.module.scaling_factor == found.config["scaling_factor"]


@pytest.mark.ci
def test_an_export_has_all_of_it(trained, tmp_path):
    _, sd, _ = trained
    folder = export(sd, tmp_path / "x", parity=None)
    run, loaded = load_run(sd), load_stable_diffusion(folder)
    for name in NETWORKS:
        assert_same(getattr(loaded, name).params, getattr(run.sd, name).params)
    assert loaded.vae.config["scaling_factor"] == run.sd.vae.config["scaling_factor"]
    card = (folder / "README.md").read_text()
    assert "started from random weights" in card
    assert run.base["fingerprint"] in card
    assert "--config.model.autoencoder=AUTOENCODER" in card
    assert "StableDiffusionPipeline.from_pretrained" in card
    assert "ontrol" not in card
    source = load_source(pretrained=str(folder))
    assert source.size == (16, 16)
    if (folder / "parity.json").exists():
        report = json.loads((folder / "parity.json").read_text())
        assert report["networks"].keys() >= {"unet", "text_encoder", "vae_decoder"}
        for name, error in report["networks"].items():
            assert 0 < error["relative_l2"] < 1e-5, name
        assert report["image"]["psnr_db"] >= 50


@pytest.mark.ci
def test_formats_of_controlnets_are_refused(trained, tmp_path):
    with pytest.raises(UserError, match="--format=controlnet: not available for runs"):
        export(trained[1], tmp_path / "x", format="controlnet")


@pytest.mark.ci
def test_another_autoencoder_is_refused(trained, monkeypatch):
    other = dataclasses.replace(load_run(trained[0]).model, weights={"network": {}})
    monkeypatch.setattr(open_run, "trained_autoencoder", lambda run: other)
    with pytest.raises(UserError, match="is not the one that the run was trained on"):
        load_run(trained[1])


def test_a_gray_autoencoder_is_refused():
    config = parse(phantom_sd.get_config())
    gray = TrainedAutoencoder(AutoencoderKL(in_channels=1, out_channels=1), {}, "")
    given = TaskInputs(
        config.model, config.data, config.diffusion, jax.random.key(0), gray
    )
    with pytest.raises(UserError, match="channels=3"):
        make_text_to_image_task(given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"autoencoder_config": "x.py"}, "autoencoder_config is set"),
        ({"autoencoder": "", "train_text_encoder": True}, "from scratch"),
        ({"autoencoder": "", "pretrained": ""}, "from scratch"),
        (
            {"train_text_encoder": True, "text_encoder_lora": AdapterConfig(rank=1)},
            "cannot be combined with text_encoder_lora.rank",
        ),
        (
            {"train_text_encoder": True, "unet_lora": AdapterConfig(rank=1)},
            "cannot be combined with unet_lora.rank",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        TextToImageConfig(**settings)


@pytest.mark.ci
def test_every_weight_differs_after_training(trained):
    _, _, state = trained
    still = [
        path for path, leaf in trees.flatten(state.params).items() if not np.any(leaf)
    ]
    # What began at zero has moved: biases, and the last convolution.
    assert not still


@pytest.mark.ci
def test_likeness_is_of_pairs_and_of_sets():
    real = np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 3)).astype(np.float32)
    config = TextToImageEvalConfig()

    def measured(drawn, config=config):
        columns = {"generated": drawn, "target": real}
        return measure_likeness(SamplePage(columns, {}, ()), None, config)

    same, other = measured(real), measured(-real)
    assert same["mse"] == 0 and same["ssim"] == pytest.approx(1)
    assert other["mse"] == pytest.approx(4 * np.square(real).mean())
    assert other["psnr_db"] == pytest.approx(-10 * np.log10(other["mse"] / 4), abs=0.5)
    assert "frechet_distance" not in same
    pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet absent")
    whole = dataclasses.replace(config, frechet_distance=True)
    # Of sets: their order is nothing to it.
    assert abs(measured(real[::-1], whole)["frechet_distance"]) < 1e-3
    assert measured(-real, whole)["frechet_distance"] > 1e-2


def test_findings_are_those_of_the_captions(monkeypatch):
    seen = []
    monkeypatch.setattr(
        caption_measures, "findings", lambda *pair: seen.append(pair) or {"heart": 0.5}
    )
    drawn = np.zeros((2, 16, 16, 3), np.float32)
    shown = SamplePage(
        {"generated": drawn, "target": drawn}, {}, [{"text": "a"}, {"text": "b"}]
    )
    assert "heart" not in measure_likeness(shown, None, TextToImageEvalConfig())
    config = TextToImageEvalConfig(chest_findings=True)
    assert measure_likeness(shown, None, config)["heart"] == 0.5
    assert seen == [(drawn, ["a", "b"])]


@pytest.mark.parametrize("setting", [{"root": "DATA"}, {"phantoms.kind": "brain"}])
def test_findings_are_of_computed_chests_alone(setting):
    config = make_config("text_to_image")
    config.eval.chest_findings = True
    parse(config)
    config.data.update_from_flattened_dict(setting)
    with pytest.raises(UserError, match=r"config\.eval\.chest_findings=True requires"):
        parse(config)


def test_a_distance_that_cannot_be_measured_is_told_at_once(monkeypatch):
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="frechet_distance=True: .*pip install"):
        TextToImageEvalConfig(frechet_distance=True)
