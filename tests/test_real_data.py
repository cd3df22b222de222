"""Real brains, knees and X-rays, from folder to samples; losses fall."""

import csv
import json
import subprocess
import sys

import pytest

from tests.commands import REPOSITORY

pytestmark = pytest.mark.release

SMALL = [
    "--config.data.image_size=32",
    "--config.train.steps=80",
    "--config.train.checkpoint_every=40",
    "--config.eval.every=20",
    "--config.eval.sample_every=80",
    "--config.eval.examples=16",
    "--config.eval.samples=4",
]


def medjax(command, *arguments):
    """Run a command to its end, like a user."""
    subprocess.run(
        [sys.executable, "-m", f"medjax.{command}", *map(str, arguments)],
        cwd=REPOSITORY,
        timeout=900,
        check=True,
    )


def prepared(dataset, source, out):
    """Prepare a data set; return its report."""
    medjax("prepare", f"--dataset={dataset}", f"--source={source}", f"--out={out}")
    return json.loads((out / "report.json").read_text())


def check_that_it_learns(workdir, loss="val/loss"):
    with (workdir / "metrics.csv").open() as file:
        losses = [float(row[loss]) for row in csv.DictReader(file) if row[loss]]
    assert len(losses) > 1 and losses[-1] < 0.9 * losses[0]
    assert (workdir / "samples" / "0000080.png").is_file()


def test_brains(shared_data, tmp_path):
    data, first, second = (tmp_path / name for name in ("data", "vq", "ldm"))
    prepared("adni", shared_data / "brain", data)
    root = f"--config.data.root={data}"
    vq, ldm = "configs/brain_vqvae.py:demo", "configs/brain_ldm.py:demo"
    medjax("train", f"--config={vq}", f"--workdir={first}", root, *SMALL)
    check_that_it_learns(first)
    given = (
        f"--config.model.autoencoder={first}",
        "--config.model.autoencoder_config=None",
    )
    medjax("train", f"--config={ldm}", f"--workdir={second}", root, *given, *SMALL)
    check_that_it_learns(second)
    drawn = tmp_path / "drawn"
    medjax("sample", f"--workdir={second}", "--num=2", "--prompt=NC", f"--out={drawn}")
    assert len(list(drawn.glob("0*.png"))) == 2


def test_knees(shared_data, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    report = prepared("oai_akoa", shared_data / "knee", data)
    losses = "val/loss" if "validation" in report["splits"] else "train/loss"
    config, root = "configs/knee_ddpm.py:demo", f"--config.data.root={data}"
    often = "--config.train.log_every=40"
    medjax("train", f"--config={config}", f"--workdir={run}", root, often, *SMALL)
    check_that_it_learns(run, losses)


def test_xrays_by_lora_in_folds(shared_data, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    prepared("nih_cxr", shared_data / "nih_cxr", data)
    medjax(
        "cross_validate",
        "--config=configs/cxr_lora.py:demo",
        f"--workdir={run}",
        f"--config.data.root={data}",
        "--config.data.image_size=32",
        "--config.data.batch_size=8",
        "--config.model.cache_latents=False",
        "--config.eval.chest_findings=False",
        "--config.eval.examples=8",
        "--config.eval.samples=4",
        "--config.eval.sampler_steps=4",
        "--config.train.steps=4",
        "--config.train.checkpoint_every=2",
        "--config.eval.every=2",
        "--config.eval.sample_every=2",
        "--images=8",
    )
    metrics = json.loads((run / "cross_validation.json").read_text())["metrics"]
    assert {len(one["folds"]) for one in metrics.values()} == {2}
    assert {"ssim", "psnr_db", "frechet_distance", "val/loss"} <= metrics.keys()
    out = tmp_path / "lora"
    medjax("export", f"--workdir={run / 'fold-0'}", "--step=best", f"--to={out}")
    assert (out / "pytorch_lora_weights.safetensors").is_file()
