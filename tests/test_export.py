"""Exports hold the run's weights in folders and files that others load, or fail."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from medjax import trees
from medjax.errors import UserError
from medjax.export import export
from medjax.pretrained import load_controlnet, load_stable_diffusion
from medjax.pretrained.tiny import tiny_stable_diffusion, tiny_tokenizer
from medjax.pretrained.tokenizer import save_tokenizer
from medjax.runs.config import parse
from medjax.runs.open_run import load_run
from medjax.tasks import TASKS
from medjax.tasks.interface import TaskInputs
from tests.commands import files, medjax, one_line
from tests.pretrained import original
from tests.pretrained.small import assert_same
from tests.pretrained.test_single_file import write
from tests.saved_runs import save_run
from tests.tiny_demo import get_config

NETWORKS = ("unet", "vae", "text_encoder", "controlnet")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A run of the demo that also trains its U-Net, and the weights that it saved."""
    workdir = tmp_path_factory.mktemp("runs") / "demo"
    return workdir, save_run(workdir)


@pytest.fixture(scope="module")
def exported(demo, tmp_path_factory):
    """The demo's pipeline, compared with PyTorch if that is installed."""
    return export(demo[0], tmp_path_factory.mktemp("exported") / "x")


@pytest.fixture(scope="module")
def not_compared(demo, tmp_path_factory):
    """The same, but not compared."""
    return export(demo[0], tmp_path_factory.mktemp("exported") / "x", parity=False)


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A run on one original file, with a frozen U-Net."""
    folder = tmp_path_factory.mktemp("locked")
    save_tokenizer(tiny_tokenizer(), folder / "tokenizer")
    weights = original.drawn(original.whole(original.SD1))
    base = write(folder / "base.safetensors", weights)
    changes = {"model__train_unet": False, "diffusion__prediction_type": "epsilon"}
    workdir = folder / "chests"
    return workdir, save_run(workdir, model__pretrained=str(base), **changes)


def assembled(**changes):
    """Return the built task at the start of a run of the demo."""
    config = get_config()
    config.model.update(changes)
    run = parse(config)
    given = TaskInputs(run.model, run.data, run.diffusion, jax.random.key(0))
    return TASKS[run.task].build(given)


def expected(saved, kind="ema_params"):
    """Return all weights that an export of the demo should have."""
    sd = tiny_stable_diffusion()
    base = {name: getattr(sd, name).params for name in NETWORKS[:3]}
    return base | getattr(saved, kind)


@pytest.mark.parametrize(
    ("weights", "dtype"),
    [
        ("ema", "float32"),
        pytest.param("raw", "bfloat16", marks=pytest.mark.ci),
        pytest.param("raw", "float32", marks=pytest.mark.release),
        pytest.param("ema", "float16", marks=pytest.mark.release),
    ],
)
def test_a_pipeline_has_the_runs_weights(demo, tmp_path, weights, dtype):
    workdir, saved = demo
    folder = export(workdir, tmp_path / "x", weights=weights, dtype=dtype, parity=False)
    assert folder == tmp_path / "x"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    sd = load_stable_diffusion(folder, dtype=dtype, controlnet=True)
    wanted = expected(saved, "params" if weights == "raw" else "ema_params")
    for name in NETWORKS:
        assert_same(getattr(sd, name).params, trees.cast(wanted[name], dtype))
    assert sd.schedule.prediction_type == "sample"


@pytest.mark.ci
def test_pytorch_loads_it_with_nothing_missing_or_left_over(demo, exported):
    torch = pytest.importorskip("torch", reason="torch absent")
    diffusers = pytest.importorskip("diffusers", reason="diffusers absent")
    from medjax.pretrained import layout
    from medjax.pretrained.diffusers_format import torch_tensors

    cls = diffusers.StableDiffusionControlNetPipeline
    pipeline = cls.from_pretrained(exported)
    assert isinstance(pipeline.controlnet, diffusers.ControlNetModel)
    sd = load_run(demo[0]).sd
    parts = layout.STABLE_DIFFUSION | {"controlnet": layout.PIPELINE_CONTROLNET}
    for name in NETWORKS:
        module = getattr(pipeline, name)
        _, info = type(module).from_pretrained(
            exported / name, output_loading_info=True
        )
        assert not any(info.values()), info
        # transformers 5 omits the first part of the text encoder's names.
        ours, theirs = (
            {key.removeprefix("text_model."): x for key, x in tensors.items()}
            for tensors in (
                torch_tensors(getattr(sd, name), parts[name]),
                module.state_dict(),
            )
        )
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            assert torch.equal(tensor, torch.from_numpy(ours[key].copy())), key
    report = json.loads((exported / "parity.json").read_text())
    halves = {"vae_encoder", "vae_decoder"}
    assert report["networks"].keys() == {*NETWORKS, *halves} - {"vae"}
    for name, error in report["networks"].items():
        assert 0 < error["relative_l2"] < 1e-5, name
        assert 0 < error["max_abs"] < 1e-3, name
    assert report["stored"] == "float32" and "diffusers" in report["versions"]
    assert report["image"]["psnr_db"] >= 50
    assert 0 < report["image"]["max_abs"] < 0.01


def drawn_by_the_card(folder: Path, side: int) -> np.ndarray:
    """Run the code in an export's model card, as a user would; return its image."""
    pytest.importorskip("torch", reason="torch absent")
    pytest.importorskip("diffusers", reason="diffusers absent")
    edges = np.zeros((side, side, 3), np.uint8)
    edges[side // 4 : side // 2, side // 2] = 255
    Image.fromarray(edges).save(folder.parent / "edges.png")
    card = (folder / "README.md").read_text()
    done = subprocess.run(
        [sys.executable, "-c", card.partition("```python\n")[2].partition("```")[0]],
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(folder.parent / "image.png"))


@pytest.mark.release
def test_the_cards_code_draws_an_image(not_compared, tmp_path):
    drawn = drawn_by_the_card(shutil.copytree(not_compared, tmp_path / "x"), 64)
    assert drawn.shape == (64, 64, 3) and drawn.std() > 5


@pytest.mark.release
def test_from_training_to_an_image_by_pytorch(tmp_path):
    small = ["data.image_size=16", "train.steps=2", "eval.examples=8", "eval.samples=8"]
    done = medjax(
        "train",
        "--config=tests/tiny_demo.py",
        f"--workdir={tmp_path / 'run'}",
        *(f"--config.{flag}" for flag in [*small, "eval.sampler_steps=2"]),
    )
    assert done.returncode == 0, done.stderr
    done = medjax("export", f"--workdir={tmp_path / 'run'}", f"--to={tmp_path / 'x'}")
    assert done.returncode == 0, done.stderr
    assert f"step 2 (ema weights) is in {tmp_path / 'x'}" in done.stderr
    assert "| val/edge_f1 |" in (tmp_path / "x" / "README.md").read_text()
    assert drawn_by_the_card(tmp_path / "x", 16).shape == (16, 16, 3)


@pytest.mark.release
def test_parity_sees_what_is_stored(demo, tmp_path):
    pytest.importorskip("torch", reason="torch absent")
    pytest.importorskip("diffusers", reason="diffusers absent")
    from medjax.pretrained.parity import measure_parity

    workdir, _ = demo
    sd = load_run(workdir).sd
    half = export(workdir, tmp_path / "half", dtype="bfloat16", parity=False)
    raw = export(workdir, tmp_path / "raw", weights="raw", parity=False)
    rounded = measure_parity(half, sd)["networks"]["unet"]["relative_l2"]
    other = measure_parity(raw, sd)["networks"]["unet"]["relative_l2"]
    assert 1e-4 < rounded < 0.05 < other


@pytest.mark.ci
def test_a_controlnet_alone_and_in_one_file(locked, tmp_path):
    workdir, saved = locked
    wanted = saved.ema_params["controlnet"]
    folder = export(workdir, tmp_path / "folder", format="controlnet", parity=False)
    assert_same(load_controlnet(folder).params, wanted)
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "medjax.json",
    ]
    one = export(workdir, tmp_path / "one", format="single_file")
    assert sorted(p.name for p in one.iterdir()) == [
        "README.md",
        "control_chests.safetensors",
        "medjax.json",
    ]
    file = one / "control_chests.safetensors"
    assert_same(load_controlnet(file).params, wanted)


@pytest.mark.parametrize(
    ("dtype", "least", "most"),
    [
        pytest.param("float32", 0, 1e-5, marks=pytest.mark.ci),
        pytest.param("bfloat16", 1e-4, 0.05, marks=pytest.mark.ci),
        pytest.param("float16", 1e-4, 0.01, marks=pytest.mark.release),
    ],
)
@pytest.mark.usefixtures("optimized")
def test_a_controlnet_alone_has_its_parity(dtype, least, most, locked, tmp_path):
    """The limit of float32 is no limit of lower precisions."""
    pytest.importorskip("torch", reason="torch absent")
    pytest.importorskip("diffusers", reason="diffusers absent")
    folder = export(
        locked[0], tmp_path / "x", format="controlnet", parity=True, dtype=dtype
    )
    report = json.loads((folder / "parity.json").read_text())
    assert list(report["networks"]) == ["controlnet"]
    assert least < report["networks"]["controlnet"]["relative_l2"] < most


@pytest.mark.ci
def test_a_controlnet_that_differs_in_pytorch_is_refused(locked, tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="torch absent")
    pytest.importorskip("diffusers", reason="diffusers absent")
    from medjax.exporting import formats

    save = formats.save_controlnet

    def save_changed(network, folder, dtype):
        kernel = network.params["conv_in"]["kernel"]
        changed = network.params | {
            "conv_in": {"kernel": kernel, "bias": 1 + kernel[0, 0, 0]}
        }
        save(dataclasses.replace(network, params=changed), folder, dtype)

    monkeypatch.setattr(formats, "save_controlnet", save_changed)
    with pytest.raises(UserError, match="controlnet differs from the run's: its rela"):
        export(locked[0], tmp_path / "x", format="controlnet", parity=True)
    assert not (tmp_path / "x").exists()


@pytest.mark.ci
def test_training_goes_on_from_what_was_exported(locked, tmp_path):
    workdir, saved = locked
    base = load_run(workdir).base["source"]
    wanted = saved.ema_params["controlnet"]
    export(workdir, tmp_path / "folder", format="controlnet", parity=False)
    export(workdir, tmp_path / "one", format="single_file")
    whole = export(workdir, tmp_path / "whole", parity=False)
    for start in ("folder", "one/control_chests.safetensors", "whole/controlnet"):
        assembly = assembled(
            pretrained=base, controlnet=str(tmp_path / start), train_unet=False
        )
        assert_same(assembly.params["controlnet"], wanted)
    # The pipeline as a base is equal bit for bit.
    assembly = assembled(pretrained=str(whole), train_unet=False)
    assert assembly.base["fingerprint"] == load_run(workdir).base["fingerprint"]
    assert load_run(workdir, base=str(whole)).step == 2


@pytest.mark.ci
def test_a_trained_unet_is_a_base_too(demo, exported, tmp_path):
    workdir, saved = demo
    assert_same(
        assembled(pretrained=str(exported)).params["unet"], saved.ema_params["unet"]
    )
    for format in ("controlnet", "single_file"):
        with pytest.raises(UserError, match="cannot store the U-Net, .*--format=pipel"):
            export(workdir, tmp_path / "y", format=format)


def test_a_network_that_a_single_file_cannot_describe_is_refused(tmp_path):
    save_run(tmp_path / "run", model__train_unet=False)
    with pytest.raises(UserError, match=r"norm_num_groups=8 \(readers assume 32\)"):
        export(tmp_path / "run", tmp_path / "x", format="single_file")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_what_is_there_is_replaced_only_when_asked_and_only_an_export(demo, tmp_path):
    workdir, saved = demo
    target = tmp_path / "x"
    target.mkdir()
    export(workdir, target, weights="raw", parity=False)
    before = files(target)
    with pytest.raises(UserError, match=r"already contains README.md.*--overwrite"):
        export(workdir, target, parity=False)
    with pytest.raises(UserError, match="no checkpoint of step 9"):
        export(workdir, target, step=9, overwrite=True)
    assert files(target) == before
    export(workdir, target, overwrite=True, parity=False)
    unet = load_stable_diffusion(target).unet.params
    assert_same(unet, saved.ema_params["unet"])
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="already contains thesis.txt"):
        export(workdir, target, overwrite=True, parity=False)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


KILLED = """
import os, signal, sys, time
from medjax.exporting import write
# Who runs the tests in the background may have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The signal may take a moment to arrive.
write.model_card = lambda *_: (os.kill(os.getpid(), signal.{name}), time.sleep(60))
from medjax.export import export
export(sys.argv[1], sys.argv[2], overwrite=True, parity=False)
"""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("SIGKILL", marks=pytest.mark.ci),
        pytest.param("SIGINT", marks=pytest.mark.release),
    ],
)
def test_an_export_cut_short_leaves_what_was_there(demo, not_compared, tmp_path, name):
    workdir, _ = demo
    target = tmp_path / "x"
    if name == "SIGINT":
        shutil.copytree(not_compared, target)
    before = files(target)
    command = [sys.executable, "-c", KILLED.format(name=name), workdir, target]
    done = subprocess.run(
        command, capture_output=True, check=False, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == -getattr(signal, name), done.stderr
    # After SIGKILL, only the next export cleans up.
    left = ["x"] if before else [".x.incomplete", ".x.incomplete.lock"]
    assert sorted(p.name for p in tmp_path.iterdir()) == left
    assert files(target) == before
    if not before:
        export(workdir, target, parity=False)
        assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.release
def test_a_full_disk_is_one_line_and_leaves_nothing(demo, tmp_path):
    limit = ("sh", "-c", 'ulimit -f 100 && exec "$@"', "sh")
    line = one_line(
        medjax("export", f"--workdir={demo[0]}", f"--to={tmp_path / 'x'}", before=limit)
    )
    assert "File too large" in line
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_gives_the_old_one_back(
    demo, exported, tmp_path, monkeypatch
):
    workdir, _ = demo
    target = shutil.copytree(exported, tmp_path / "x")
    before, rename = files(target), os.rename

    def failing(path, to):
        if Path(path).name == ".x.incomplete":
            raise OSError(28, os.strerror(28))
        rename(path, to)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="No space left"):
        export(workdir, target, overwrite=True, parity=False)
    assert files(target) == before
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
