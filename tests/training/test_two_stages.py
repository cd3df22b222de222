"""One command trains an autoencoder and then a diffusion model of its latents."""

import dataclasses
import functools
import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from configs import brain_ldm
from medjax import trees
from medjax.data.phantoms import PhantomsConfig
from medjax.errors import Stopped, UserError
from medjax.runs import find_checkpoint, open_run
from medjax.runs.config import parse
from medjax.runs.open_run import AUTOENCODER, load_run
from medjax.training import two_stages
from tests import in_process
from tests.commands import medjax, one_line

FIRST = """
from configs.brain_vqvae import get_config as demo

def get_config(variant=""):
    config = demo("demo")
    config.model.block_out_channels = (8, 8)
    config.model.norm_num_groups = 4
    config.model.codebook_size = 16
    config.data.batch_size = 8
    config.train.steps = 2
    config.eval.examples = 4
    config.eval.samples = 2
    return config
"""


def small(folder, **changes):
    """Return the demo's config, as small as possible, on phantoms of 16 × 16 pixels."""
    (folder / "first.py").write_text(FIRST)
    config = brain_ldm.get_config("demo")
    config.data.image_size = 16
    config.data.batch_size = 8
    config.data.phantoms.count = 24
    config.model.autoencoder_config = str(folder / "first.py")
    config.model.block_out_channels = (8, 16)
    config.model.attention_head_dim = 4
    config.model.norm_num_groups = 4
    config.model.layers_per_block = 1
    config.train.steps = 2
    config.eval.examples = 4
    config.eval.samples = 2
    config.eval.sampler_steps = 2
    config.eval.sampler_eta = 0.5
    for key, value in changes.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return parse(config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("brain")
    config = small(folder)
    state = two_stages.train_stages(config, folder / "run")
    return folder, config, state


@pytest.mark.ci
def test_the_autoencoder_is_trained_first_on_the_same_data(trained):
    folder, config, _ = trained
    first = load_run(folder / "run" / AUTOENCODER)
    assert first.config.task == "vq_vae"
    assert first.step == 2
    for name in ("root", "image_size", "phantoms"):
        assert getattr(first.config.data, name) == getattr(config.data, name)


@pytest.mark.ci
def test_the_latents_scale_is_kept_with_the_run(trained):
    folder, _, state = trained
    run = load_run(folder / "run")
    own = trees.flatten(state.statistics)
    for path, leaf in trees.flatten({"latents": run.model.nets["latents"]}).items():
        np.testing.assert_array_equal(leaf, own[path])
    autoencoder = load_run(folder / "run" / AUTOENCODER).model
    assert run.base["fingerprint"] == autoencoder.fingerprint


@pytest.mark.ci
def test_a_second_call_goes_on_with_what_is_there(trained, monkeypatch):
    folder, config, state = trained
    asked = []
    monkeypatch.setattr(
        two_stages, "train", lambda config, *_: asked.append(config.task) or state
    )
    # Its config is not read again.
    (folder / "first.py").rename(folder / "moved.py")
    two_stages.train_stages(config, folder / "run")
    (folder / "moved.py").rename(folder / "first.py")
    assert asked == ["unconditional"]


@pytest.mark.ci
def test_one_that_was_not_evaluated_to_its_end_is_gone_on_with(trained, monkeypatch):
    folder, config, state = trained
    asked = []
    monkeypatch.setattr(
        two_stages, "train", lambda config, *_: asked.append(config.task) or state
    )
    monkeypatch.setattr(open_run, "read_metrics", lambda folder: {})
    two_stages.train_stages(config, folder / "run")
    assert asked == ["vq_vae", "unconditional"]


@pytest.mark.ci
def test_one_that_is_there_is_told_of_where_its_config_has_changed(
    trained, monkeypatch, caplog
):
    folder, config, state = trained
    monkeypatch.setattr(two_stages, "train", lambda *_: state)
    two_stages.train_stages(config, folder / "run")
    assert "using the autoencoder in" not in caplog.text
    first = (folder / "first.py").read_text()
    changed = first.replace("steps = 2", "steps = 5").replace(
        "_groups = 4", "_groups = 2"
    )
    (folder / "changed.py").write_text(changed)
    model = dataclasses.replace(
        config.model, autoencoder_config=str(folder / "changed.py")
    )
    two_stages.train_stages(dataclasses.replace(config, model=model), folder / "run")
    assert "config.train.steps is now 5, and was 2" in caplog.text
    assert "config.model.norm_num_groups is now 2, and was 4" in caplog.text
    model = dataclasses.replace(config.model, autoencoder_config="brain_vqvae:demo")
    two_stages.train_stages(dataclasses.replace(config, model=model), folder / "run")
    assert "in brain_vqvae:demo config.model.codebook_size is now 1024" in caplog.text


@pytest.mark.ci
def test_a_named_autoencoder_is_taken_as_it_is(trained, monkeypatch, caplog):
    folder, config, state = trained
    asked = []
    monkeypatch.setattr(
        two_stages, "train", lambda config, *_: asked.append(config.task) or state
    )
    # Although its config has more steps than it has done.
    first = (folder / "first.py").read_text()
    (folder / "longer.py").write_text(first.replace("steps = 2", "steps = 5"))
    given = dataclasses.replace(
        config.model,
        autoencoder=str(folder / "run" / AUTOENCODER),
        autoencoder_config=str(folder / "longer.py"),
    )
    config = dataclasses.replace(config, model=given)
    two_stages.train_stages(config, folder / "other")
    assert asked == ["unconditional"]
    assert "was trained on other data" not in caplog.text
    assert "of its 2 steps" not in caplog.text
    fold = dataclasses.replace(config.data, folds=2)
    two_stages.train_stages(dataclasses.replace(config, data=fold), folder / "other")
    assert "or another fold of" in caplog.text
    caplog.clear()
    other = dataclasses.replace(config.data, phantoms=PhantomsConfig(kind="knee"))
    two_stages.train_stages(dataclasses.replace(config, data=other), folder / "other")
    assert "was trained on other data" in caplog.text


@pytest.mark.ci
def test_one_that_is_not_trained_to_its_end_is_not_stood_on(
    trained, tmp_path, monkeypatch, caplog
):
    _, config, _ = trained
    plan = dataclasses.replace(config.train, max_hours=1e-9)
    state = two_stages.train_stages(dataclasses.replace(config, train=plan), tmp_path)
    assert int(state.step) == 1
    assert not (tmp_path / "checkpoints").exists()
    assert load_run(tmp_path / AUTOENCODER).step == 1
    given = dataclasses.replace(config.model, autoencoder=str(tmp_path / AUTOENCODER))
    monkeypatch.setattr(two_stages, "train", lambda *_: state)
    two_stages.train_stages(
        dataclasses.replace(config, model=given), tmp_path / "other"
    )
    assert "has done 1 of its 2 steps" in caplog.text


@pytest.mark.release
def test_one_that_gets_no_better_is_stood_on(tmp_path, monkeypatch):
    """It ends before its last planned step, and its best step may be an earlier one."""
    # As if its loss had risen.
    monkeypatch.setattr(
        find_checkpoint, "read_metrics", lambda f: {"val/loss": float(f.name)}
    )
    config = small(tmp_path)
    impatient = (
        "    config.train.steps = 9\n"
        "    config.eval.every = config.train.checkpoint_every = 1\n"
        "    config.best.patience = 1\n"
        "    config.best.min_change = 1e9\n"
        "    return config"
    )
    (tmp_path / "first.py").write_text(FIRST.replace("    return config", impatient))
    state = two_stages.train_stages(config, tmp_path / "run")
    folder = tmp_path / "run" / AUTOENCODER
    assert load_run(folder).step == 3
    best = load_run(folder, "best")
    assert best.step < 3
    assert load_run(tmp_path / "run").base["fingerprint"] == best.model.fingerprint
    assert int(state.step) == 2 and "unet" in state.params


def test_a_signal_after_the_first_stage_is_heard(tmp_path, monkeypatch):
    def terminated(config, *_):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(two_stages, "train", terminated)
    with pytest.raises(Stopped, match="asked to stop when the autoencoder"):
        two_stages.train_stages(small(tmp_path), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model__channels": 3}, r"^config.model.channels=3: the autoencoder of .* 1 "),
        ({"train__gradient_accumulation_steps": 3}, r"gradient_accumulation_steps=3"),
        ({"model__autoencoder_config": "configs/knee_ddpm.py"}, "of task uncondition"),
        ({"data__image_size": 18}, "image_size=18: expected a multiple of 4"),
        ({"data__classes": ("AD", "MCI")}, "no image has the label 'MCI'. .* AD, NC"),
        ({"model__norm_num_groups": 5}, "norm_num_groups"),
    ],
)
def test_mistakes_of_the_second_stage_come_before_the_first(tmp_path, change, said):
    config = small(tmp_path, **change)
    with pytest.raises(UserError, match=said):
        two_stages.train_stages(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.ci
def test_what_is_no_autoencoder_is_refused(trained, tmp_path):
    folder, config, _ = trained

    def start(place):
        model = dataclasses.replace(
            config.model, autoencoder=str(place), autoencoder_config=None
        )
        two_stages.train_stages(dataclasses.replace(config, model=model), tmp_path)

    with pytest.raises(UserError, match="holds no trained autoencoder"):
        start(tmp_path)
    with pytest.raises(UserError, match="the run has task unconditional"):
        start(folder / "run")
    with pytest.raises(UserError, match="config.model.autoencoder_config is missing"):
        start("")


def test_mistakes_of_the_first_stage_name_its_config(tmp_path):
    config = small(tmp_path)
    (tmp_path / "first.py").write_text(FIRST.replace("_groups = 4", "_groups = 3"))
    with pytest.raises(UserError, match=r"first with .*first.py: .*norm_num_groups=3"):
        two_stages.train_stages(config, tmp_path / "run")


@pytest.mark.release
def test_what_was_trained_draws(trained):
    folder, _, _ = trained
    out = folder / "drawn"
    common = (f"--workdir={folder}/run", f"--out={out}", "--steps=3", "--size=16")
    done = medjax("sample", *common, "--num=4")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in out.iterdir()} == {
        *(f"{n:04d}.png" for n in range(4)),
        "grid-0000.png",
    }
    done = in_process.medjax("sample", *common, "--mode=illustrate", "--prompt=AD")
    assert done.returncode == 0, done.stderr
    done = in_process.medjax(
        "sample", *common, "--mode=gif", "--prompt=NC", "--sampler=ddpm"
    )
    assert done.returncode == 0, done.stderr
    assert (out / "0005.gif").read_bytes().startswith(b"GIF")

    def told(name):
        image = Image.open(out / name)
        return json.loads(image.info.get("medjax") or image.info["comment"])

    # The classes in turn, unless one is requested; with the run's own sampler.
    config = load_run(folder / "run").config
    classes = [told(f"{n:04d}.png")["prompt"] for n in range(4)]
    assert classes == [*config.data.classes] * 2
    assert (told("0004.png")["prompt"], told("0005.gif")["prompt"]) == ("AD", "NC")
    assert told("0000.png")["sampler"] == config.eval.sampler
    # The run's own eta applies only to this sampler.
    assert (told("0000.png")["eta"], told("0005.gif")["eta"]) == (0.5, 0)
    pytest.importorskip("umap")
    unsized = (*common[:-1], "--mode=umap", "--num=3", "--seed=5")
    four = os.environ | {"JAX_NUM_CPU_DEVICES": "4"}
    for number, start in enumerate(
        (in_process.medjax, functools.partial(medjax, env=four))
    ):
        done = start("sample", *unsized)
        assert done.returncode == 0, done.stderr
        measures = json.loads((out / f"umap-{number:04d}.json").read_text())
        assert measures["classifier_accuracy_chance"] == 0.5
        assert (measures["steps"], measures["seed"], measures["num"]) == (3, 5, 3)
        assert (out / f"umap-{number:04d}.png").is_file()
    done = in_process.medjax("sample", *unsized, f"--data={folder}/elsewhere")
    assert done.returncode == 2
    assert f"{folder}/elsewhere" in one_line(done)
    done = in_process.medjax(
        "export", f"--workdir={folder}/run", f"--to={folder}/exported", "--noparity"
    )
    assert done.returncode == 0, done.stderr
    assert "AUTOENCODER" in (folder / "exported" / "README.md").read_text()
    for typed, said in (
        (("--prompt=AX",), "--prompt=AX: this model does not read captions. Expec"),
        (("--negative_prompt=AD",), "--negative_prompt requires a model that"),
        (("--mode=single", "--num=2"), "--mode=single gives one image"),
        (("--data=x",), "--data requires --mode=umap"),
        (("--mode=umap",), "--num=1: --mode=umap compares sets of images"),
        (("--mode=umap", "--num=2"), "--size does not apply to --mode=umap"),
    ):
        done = in_process.medjax("sample", *common, *typed)
        assert done.returncode == 2
        assert said in done.stderr
