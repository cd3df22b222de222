"""A run is read as it was written, and stays so."""

import dataclasses
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from medjax import trees
from medjax.errors import UserError
from medjax.pretrained import load_controlnet, save_controlnet, save_stable_diffusion
from medjax.pretrained.tiny import tiny_stable_diffusion
from medjax.runs import find_checkpoint
from medjax.runs.open_run import load_run
from medjax.tasks.base_model import trained_schedule
from tests.commands import files
from tests.pretrained.small import assert_same
from tests.saved_runs import save_run

pytestmark = pytest.mark.devices(8)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run of two checkpoints, whose U-Net trains too, and what it saved last."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, save_run(workdir, steps=(1, 3))


def test_the_newest_average_is_read_in_place_of_the_base(world):
    workdir, saved = world
    run = load_run(workdir)
    assert (run.step, run.weights, run.trained) == (3, "ema", ("controlnet", "unet"))
    assert run.metrics == {"val/loss": 1 / 3}
    assert run.base["source"] == "" and run.dataset["source"] == "phantoms"
    assert_same(run.sd.controlnet.params, saved.ema_params["controlnet"])
    assert_same(run.sd.unet.params, saved.ema_params["unet"])
    assert_same(run.sd.vae.params, tiny_stable_diffusion().vae.params)
    assert run.sd.schedule.prediction_type == "sample"
    assert run.sd.schedule.config["beta_schedule"] == "scaled_linear"


@pytest.mark.parametrize(
    ("kind", "scheduler"),
    [(None, "PNDM"), ("epsilon", "PNDM"), ("v_prediction", "PNDM"), ("sample", "DDIM")],
)
def test_the_scheduler_is_the_bases_unless_it_takes_no_such_model(kind, scheduler):
    base = tiny_stable_diffusion().schedule
    schedule = trained_schedule(base, kind)
    wanted = kind or "epsilon"
    assert schedule.prediction_type == schedule.config["prediction_type"] == wanted
    assert schedule.config["_class_name"] == f"{scheduler}Scheduler"
    assert schedule.config["clip_sample"] is False
    assert schedule.config["steps_offset"] == 1
    np.testing.assert_array_equal(schedule.alphas_cumprod, base.alphas_cumprod)


@pytest.mark.ci
def test_weights_and_step_are_those_asked_for(world, monkeypatch):
    workdir, saved = world
    raw = load_run(workdir, weights="raw")
    assert raw.weights == "raw"
    assert_same(raw.sd.controlnet.params, saved.params["controlnet"])
    first = load_run(workdir, step=1, weights="raw")
    assert first.step == 1 and first.metrics == {"val/loss": 1.0}
    assert load_run(workdir, step="best").step == load_run(workdir, step="3").step == 3
    kept = {"1": 0.2, "3": 0.3}
    monkeypatch.setattr(
        find_checkpoint, "read_metrics", lambda f: {"val/loss": kept[f.name]}
    )
    assert load_run(workdir, step="best").step == 1
    with pytest.raises(UserError, match="--step=frist: expected the step of a"):
        load_run(workdir, step="frist")
    kernels = [run.sd.controlnet.params["conv_in"]["kernel"] for run in (raw, first)]
    assert not np.array_equal(*kernels)


def test_the_workdir_may_be_relative(world, monkeypatch):
    monkeypatch.chdir(world[0].parent)
    assert load_run(world[0].name, step="best").step == 3


def test_nothing_in_the_workdir_changes(world):
    workdir, _ = world
    before = files(workdir)
    (workdir / "checkpoints" / "9.orbax-checkpoint-tmp-1").mkdir()
    load_run(workdir)
    assert files(workdir) == before
    # What a running one is writing; it is not cleaned up.
    (workdir / "checkpoints" / "9.orbax-checkpoint-tmp-1").rmdir()


def test_a_damaged_checkpoint_is_passed_over_and_left(world, tmp_path, caplog):
    workdir = tmp_path / "run"
    shutil.copytree(world[0], workdir)
    (workdir / "checkpoints" / "3" / "state" / "manifest.ocdbt").write_bytes(b"x")
    assert load_run(workdir).step == 1
    assert "3 is damaged: state/manifest.ocdbt does not match" in caplog.text
    with pytest.raises(UserError, match="damaged checkpoints: 3: state/manifest"):
        load_run(workdir, step=3)
    (workdir / "checkpoints" / "1" / "checksums.json").unlink()
    with pytest.raises(UserError, match="3: .*; 1: checksums.json is missing"):
        load_run(workdir)
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["1", "3"]


@pytest.mark.ci
def test_a_part_of_the_unet_is_put_among_the_rest(tmp_path):
    changes = {"model__train_unet": False, "model__sd_locked": False}
    saved = save_run(tmp_path, **changes, model__dtype="bfloat16")
    run = load_run(tmp_path)
    base = trees.flatten(tiny_stable_diffusion().unet.params)
    trained = trees.flatten(saved.ema_params["unet"])
    assert 0 < len(trained) < len(base)
    assert_same(run.sd.unet.params, trees.unflatten(base | trained))


def test_without_an_average_the_last_weights_are_read(tmp_path):
    saved = save_run(tmp_path, optim__ema_decay=None, model__train_unet=False)
    run = load_run(tmp_path)
    assert (run.weights, run.trained) == ("raw", ("controlnet",))
    assert_same(run.sd.controlnet.params, saved.params["controlnet"])
    with pytest.raises(UserError, match=r"--weights=ema: the run has no average"):
        load_run(tmp_path, weights="ema")


@pytest.mark.ci
def test_connections_that_were_unused_are_zero(tmp_path):
    saved = save_run(tmp_path, model__only_mid_control=True)
    params = load_run(tmp_path).sd.controlnet.params
    rest, unused = {}, {}
    for name, leaf in params.items():
        (unused if name.startswith("controlnet_down_blocks_") else rest)[name] = leaf
    assert len(unused) == 4
    assert not any(leaf.any() for leaf in trees.flatten(unused).values())
    wanted = saved.ema_params["controlnet"]
    assert_same(rest, {name: wanted[name] for name in wanted if name in rest})


@pytest.mark.release
def test_what_the_controlnet_started_from_gives_its_configuration_alone(tmp_path):
    workdir, start = tmp_path / "run", tmp_path / "start"
    save_run(tmp_path / "first")
    controlnet = load_run(tmp_path / "first").sd.controlnet
    config = {**controlnet.config, "controlnet_conditioning_channel_order": "bgr"}
    save_controlnet(dataclasses.replace(controlnet, config=config), start)
    assert load_controlnet(start).module.controlnet_conditioning_channel_order == "bgr"
    saved = save_run(workdir, model__controlnet=str(start))
    (start / "diffusion_pytorch_model.safetensors").unlink()
    read = load_run(workdir).sd.controlnet
    assert read.module.controlnet_conditioning_channel_order == "bgr"
    assert_same(read.params, saved.ema_params["controlnet"])
    (start / "config.json").unlink()
    with pytest.raises(UserError, match=r"started from .*json is missing"):
        load_run(workdir)


@pytest.mark.ci
def test_a_base_is_known_by_its_weights_wherever_it_lies(tmp_path):
    workdir, home = tmp_path / "run", tmp_path / "base"
    save_stable_diffusion(tiny_stable_diffusion(), home)
    save_run(workdir, model__pretrained=str(home), model__train_unet=False)
    home.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"the base .*base'.*set --base to"):
        load_run(workdir)
    moved = load_run(workdir, base=str(tmp_path / "moved"))
    assert_same(moved.sd.unet.params, tiny_stable_diffusion().unet.params)
    save_stable_diffusion(tiny_stable_diffusion(seed=1), home)
    with pytest.raises(UserError, match=r"is not the one that the run was trained on"):
        load_run(workdir)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"step": 7}, r"no checkpoint of step 7\. Existing steps: \[1, 3\]"),
        ({"weights": "emma"}, "--weights=emma: .*did you mean 'ema'"),
    ],
)
def test_what_there_is_not_is_named(world, options, said):
    with pytest.raises(UserError, match=said):
        load_run(world[0], **options)


def test_folders_that_are_no_run_are_named(tmp_path):
    with pytest.raises(UserError, match="none: no such folder"):
        load_run(tmp_path / "none")
    with pytest.raises(UserError, match="no checkpoint found"):
        load_run(tmp_path)
    for name in ("fold-0", "fold-1"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"Its folds have some: --workdir=\S+/fold-0$"):
        load_run(tmp_path)


def test_a_checkpoint_of_eight_devices_is_read_on_one(tmp_path):
    from medjax.meshes import MeshConfig, make_mesh, place_params
    from medjax.runs.checkpoints import Checkpoints
    from medjax.runs.read_checkpoint import read_trees, state_layout

    params = {"a": {"kernel": jnp.arange(64.0).reshape(8, 8)}}
    placed = place_params(params, make_mesh(MeshConfig(data=2, fsdp=4)))
    with Checkpoints(tmp_path, {}, {}) as checkpoints:
        checkpoints.save(1, {"params": placed, "opt_state": placed})
    layout = state_layout(tmp_path / "1")
    assert set(layout) == {"params", "opt_state"}
    read = read_trees(tmp_path / "1", {"params": layout["params"]})["params"]
    assert isinstance(read["a"]["kernel"], np.ndarray)
    assert_same(read, params)
