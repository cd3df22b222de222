"""The commands as a user types them: real processes, and real X-rays if available."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).parents[1]
SMALL = [
    "--config.data.image_size=16",
    "--config.data.batch_size=8",
    "--config.train.steps=2",
    "--config.eval.examples=4",
    "--config.eval.samples=2",
    "--config.eval.sampler_steps=2",
]


def medjax(command, *arguments):
    """Run ``python -m medjax.<command>`` and return the finished process."""
    return subprocess.run(
        [sys.executable, "-m", f"medjax.{command}", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.release
def test_from_a_folder_of_xrays_to_a_checkpoint(shared_data, tmp_path):
    done = medjax(
        "prepare",
        "--dataset=nih_cxr",
        f"--source={shared_data / 'nih_cxr'}",
        f"--out={tmp_path / 'data'}",
    )
    assert done.returncode == 0, done.stderr
    for resize in ("center_crop", "letterbox"):
        workdir = tmp_path / resize
        done = medjax(
            "train",
            "--config=configs/cxr_controlnet.py:demo",
            f"--workdir={workdir}",
            f"--config.data.root={tmp_path / 'data'}",
            f"--config.data.resize={resize}",
            "--config.data.workers=2",
            *SMALL,
        )
        assert done.returncode == 0, done.stderr
        assert "671 training examples" in done.stderr
        with (workdir / "metrics.csv").open() as file:
            assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]
        assert (workdir / "samples" / "0000002.png").is_file()
        assert (workdir / "checkpoints" / "2").is_dir()


@pytest.mark.release
def test_from_the_demo_to_images_here_and_in_torch(tmp_path):
    config = "--config=configs/cxr_controlnet.py:demo"
    run, out = tmp_path / "run", tmp_path / "out"
    done = medjax("train", config, f"--workdir={run}", *SMALL)
    assert done.returncode == 0, done.stderr
    done = medjax("export", f"--workdir={run}", f"--to={out}")
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "parity.json").read_text())
    # torch has loaded the export and sampled from it.
    assert report["image"]["psnr_db"] >= 50
    edges = np.zeros((16, 16, 3), np.uint8)
    edges[4:12, 8] = 255
    Image.fromarray(edges).save(tmp_path / "edges.png")
    images = []
    for source in (f"--workdir={run}", f"--pretrained={out}"):
        drawn = tmp_path / str(len(images))
        done = medjax(
            "sample",
            source,
            f"--edges={tmp_path / 'edges.png'}",
            "--prompt=cardiomegaly",
            "--steps=5",
            f"--out={drawn}",
        )
        assert done.returncode == 0, done.stderr
        images.append(np.asarray(Image.open(drawn / "0000.png")).astype(int))
    assert images[0].shape == (16, 16, 3)
    assert np.abs(images[0] - images[1]).max() <= 1


def test_help_shows_examples():
    done = medjax("train", "--help")
    assert "--config=cxr_controlnet:demo --workdir=DIR" in done.stdout
    assert "--workdir" in done.stdout
